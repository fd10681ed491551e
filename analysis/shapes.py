"""The shape of one curve before any law: how much its points scatter, and where it turns."""

import numpy as np

TURN = 5.0  # a rise or fall of so many deviations of the scatter is a turn
NAMED = 3  # turns that a warning names
FEWEST = 8  # distinct x below which a curve's shape is not judged


def noise(x: np.ndarray, z: np.ndarray) -> float:
    """Deviation of z: between repeats where there are as many as 3, else from how far points lie off their neighbours.

    The second is Gasser, Sroka & Jennen-Steinmetz 1986 (Biometrika 73, eq. 2.2), z_i less the line through its
    neighbours in log x; where points are far apart the curve's bend counts in it too.
    """
    sizes, place, count = np.unique(x, return_inverse=True, return_counts=True)
    mean = np.bincount(place, z) / count
    if (repeats := len(z) - len(sizes)) >= 3:
        return float(np.sqrt(np.sum((z - mean[place]) ** 2) / repeats))
    t = np.log(sizes)
    left = (t[2:] - t[1:-1]) / (t[2:] - t[:-2])
    off = left * mean[:-2] + (1 - left) * mean[2:] - mean[1:-1]
    return float(np.sqrt(np.mean(off**2 / (left**2 + (1 - left) ** 2 + 1))))


def turns(x: np.ndarray, y: np.ndarray, least: float) -> list[tuple[float, float]]:
    """Where y turns: (x, y) of each extreme that log y leaves by more than `least`, after a median over three points.

    The first and the last point are no turns. `x` ascends; y at repeated x is averaged in logs.
    """
    sizes, place = np.unique(x, return_inverse=True)
    z = np.bincount(place, np.log(y)) / np.bincount(place)
    z[1:-1] = np.median(np.stack([z[:-2], z[1:-1], z[2:]]), axis=0)
    extremes, low, high, way = [], 0, 0, 0
    for i, value in enumerate(z):
        low, high = (i if value < z[low] else low), (i if value > z[high] else high)
        extreme = low if way <= 0 and value > z[low] + least else high if way >= 0 and value < z[high] - least else None
        if extreme is not None:
            way = 1 if value > z[extreme] else -1
            if extreme:
                extremes.append((float(sizes[extreme]), float(np.exp(z[extreme]))))
            low = high = i
    return extremes


def turning(x: np.ndarray, y: np.ndarray, scatter: float, x_name: str, y_name: str) -> tuple[str, ...]:
    """A warning where y turns; `scatter` is the deviation of log y about the curve."""
    extremes = turns(x, y, max(TURN * scatter, 1e-9))
    if not extremes:
        return ()
    named = "; ".join(f"at {x_name} = {at:.4g} ({y_name} = {value:.4g})" for at, value in extremes[:NAMED])
    more = f"; and {len(extremes) - NAMED} more" if len(extremes) > NAMED else ""
    return (
        f"{y_name} is not monotone in {x_name}: it turns {named}{more}; a monotone law does not hold across a turn: "
        "use the points after the last one, or a broken law",
    )


def rising(x: np.ndarray, y: np.ndarray, scatter: float, x_name: str, y_name: str) -> tuple[str, ...]:
    """A warning where y rises from the first x to the last without a turn."""
    sizes = np.unique(x)
    start, end = (np.exp(np.log(y[x == size]).mean()) for size in (sizes[0], sizes[-1]))
    if end <= start * np.exp(TURN * scatter) or turns(x, y, max(TURN * scatter, 1e-9)):
        return ()
    return (f"{y_name} rises with {x_name}, from {start:.4g} to {end:.4g}: a falling law is flat at best here",)
