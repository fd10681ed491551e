"""What starting rules of laws share: the scales of a law's terms, given everything else."""

import numpy as np
from jaxtyping import Bool, Float


def scales(
    terms: Float[np.ndarray, "starts points terms"], y: Float[np.ndarray, " points"]
) -> tuple[Float[np.ndarray, "starts terms"], Bool[np.ndarray, " starts"]]:
    """c with the least Σ_p (Σ_t c_t terms_pt / y_p − 1)² for every start, and which starts have finite positive c."""
    design = terms / y[:, None]
    size = np.sqrt(np.sum(design**2, axis=1))
    usable = np.isfinite(size).all(axis=1) & (size > 0).all(axis=1)
    unit = np.where(usable[:, None, None], design, 1.0) / np.where(usable[:, None], size, 1.0)[:, None, :]
    gram = unit.swapaxes(1, 2) @ unit + 1e-12 * np.eye(terms.shape[2])
    c = np.linalg.solve(gram, unit.sum(axis=1)[:, :, None])[:, :, 0] / np.where(usable[:, None], size, 1.0)
    return c, usable & np.isfinite(c).all(axis=1) & (c > 0).all(axis=1)


def grid(*axes: tuple[float, ...]) -> list[np.ndarray]:
    """The products of the axes, an array an axis."""
    return [axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")]
