"""The largest batch that fits."""

from __future__ import annotations

from collections.abc import Callable


def largest(fits: Callable[[int], bool], batch: int, step: int, tries: int = 6) -> int:
    """Searches below a batch that does not fit.

    Args:
        fits: whether a batch does; called `tries` times at most, since each is a compilation.
        batch: one that does not.
        step: what a batch must be a multiple of: the number of devices.
        tries: how closely to search.

    Returns:
        A batch that fits, close to the largest; 0 when not even one row per device does.

    >>> largest(lambda rows: rows <= 100, 1024, 4)
    96
    """
    if batch <= step or not fits(step):
        return 0
    low, high = 1, batch // step  # in steps: the first fits, the second does not
    for _ in range(tries - 1):
        if high - low < 2:
            break
        # By ratio rather than difference, while they are far apart.
        middle = max(low + 1, round((low * high) ** 0.5)) if high > 2 * low else (low + high) // 2
        low, high = (middle, high) if fits(middle * step) else (low, middle)
    return low * step
