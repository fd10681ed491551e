"""`scaling gc`: remove checkpoints of a store that nothing needs."""

from scaling import human, store
from scaling.store import gc


def collect(store_path: str, dry_run: bool) -> None:
    """Print what goes, with sizes, and the total; remove it unless `dry_run`.

    Raises ValueError, before anything is removed, where there is no store, or one of another version.
    """
    results = store.Store(store_path)
    if not results.exists():
        raise ValueError(f"there is no store at {store_path}; give its folder, or its bucket's URL")
    if not dry_run:
        results.check_writable()
    removable = gc.find(results)
    gone: list[gc.Removal] = []

    def tell(removal: gc.Removal) -> None:
        gone.append(removal)
        print(f"{removal.key} ({human.size(removal.size)}): {removal.reason}", flush=True)

    if dry_run:
        for removal in removable.removals():
            tell(removal)
    else:
        gc.remove(results, removable, tell)
    for why, count in removable.left.items():
        print(f"{count} runs {why}: left as they are")
    done, total = "would remove" if dry_run else "removed", sum(removal.size for removal in gone)
    print(f"{done} {len(gone)} checkpoints and files, {human.size(total)}")
