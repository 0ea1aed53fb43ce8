"""Who matches whom: candidates from fingerprints by hashing, then one-to-one acceptance. numpy on the host."""

import itertools
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

WINDOW = 0.2  # how far two fingerprints may lie apart, in each coordinate
SIGHT = 0.1  # the residual a stranger is taken to have where none is seen: beyond this, fingerprints may miss it
ROUNDING = 1e-6  # a residual below this is as good as 0, and none is better than another
LONE = 1e-4  # pairs of strangers that may look like partners, expected in one search
CHANCE, FAMILY = 0.01, 10  # and for each accepted pair, once there are so many that chance cannot have made them
KEEP = 3  # candidates of one leg that are worth a confirming comparison
CROWD = 32  # looked at in one row of cells; where more are alike, none stands out anyway
SHARPER = 4.0  # scalars: the window is this fraction of what one of their terms amounts to
TWINS = 1e-4  # how far the fingerprints of copies lie apart, which differ by rounding
HASHED = 3  # coordinates that the cells are made of


def candidates(prints: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """[C, 2] rows of ``prints`` [L, d] that lie within WINDOW and have different owners, the nearest of each.

    Cells as wide as the window make it one sort and a few binary searches a row, however many rows there are.
    """
    alive = np.flatnonzero(np.isfinite(prints).all(axis=1))
    if len(alive) < 2:
        return np.empty((0, 2), dtype=np.int64)
    points = prints[alive]
    cells = np.floor(points[:, :HASHED] / WINDOW).astype(np.int64)
    cells -= cells.min(axis=0) - 1
    strides = np.cumprod(np.append(1, cells.max(axis=0)[:0:-1] + 2))[::-1]
    keys = cells @ strides
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    near: list[np.ndarray] = []
    for offset in itertools.product((-1, 0, 1), repeat=cells.shape[1] - 1):
        middle = keys + np.dot(offset, strides[:-1])  # the last coordinate's three cells lie side by side
        low, high = np.searchsorted(ordered, middle - 1), np.searchsorted(ordered, middle + 1, side="right")
        counts = np.minimum(high - low, CROWD)
        left = np.repeat(np.arange(len(points)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        right = order[np.repeat(low, counts) + within]
        close = np.ones(len(left), dtype=np.bool_)
        for column in points.T:  # one at a time: most are apart in the first
            left, right = left[close], right[close]
            close = np.abs(column[left] - column[right]) <= WINDOW
        near.append((np.minimum(left, right) * len(points) + np.maximum(left, right))[close])
    left, right = np.divmod(_distinct(np.concatenate(near)), len(points))
    foreign = owners[alive[left]] != owners[alive[right]]
    left, right = left[foreign], right[foreign]
    apart = ((points[left] - points[right]) ** 2).sum(axis=1)
    # Of three or more that are alike, as copies are, no two are a pair rather than any other two.
    alike = apart <= TWINS**2
    ends, whose = (np.concatenate([a[alike], b[alike]]) for a, b in ((left, right), (right, left)))
    count = owners.max() + 1
    twins = np.bincount(_distinct(ends * count + owners[alive[whose]]) // count, minlength=len(points))
    single = ~alike | (np.maximum(twins[left], twins[right]) < 2)
    left, right, apart = left[single], right[single], apart[single]
    return alive[_nearest(np.stack([left, right], axis=1)[np.argsort(apart, kind="stable")])]


def _distinct(keys: np.ndarray) -> np.ndarray:
    """Sorted. numpy's own takes ten times as long for keys that are made of two numbers, of which it makes a hash."""
    keys = np.sort(keys)
    return keys[np.append(True, np.diff(keys) > 0)[: len(keys)]]


def _nearest(pairs: np.ndarray) -> np.ndarray:
    """Of pairs sorted by distance, those among the first KEEP of either end."""
    ends = pairs.ravel()
    order = np.argsort(ends, kind="stable")
    first = np.searchsorted(ends[order], ends[order])  # where the run of this end begins
    rank = np.empty(len(ends), dtype=np.int64)
    rank[order] = np.arange(len(ends)) - first
    return pairs[rank.reshape(-1, 2).min(axis=1, initial=KEEP) < KEEP] if len(pairs) else pairs.reshape(-1, 2)


def accept(
    pairs: Sequence[tuple[Hashable, Hashable]],
    residuals: Sequence[float],
    chances: Sequence[float],
    population: int,
    bound: float,
) -> list[int]:
    """Positions of the pairs that stand out: best for both ends, and neither next best nor luck explains it.

    A pair's residual is at most ``bound`` of that of either end's next best (its square root once a FAMILY is found),
    and of SIGHT. ``chances`` says how probably a pair of strangers is as close; in a ``population``, population^2 / 2
    times as many are expected. LONE of them is tolerated, and CHANCE of each in a FAMILY (Benjamini and Hochberg,
    1995): Kronecker modules come in numbers, coincidences alone. Accepted ends leave, so that fewer strangers remain
    and hidden pairs stand out: repeated until nothing changes.
    """
    alive = sorted((k for k in range(len(pairs)) if residuals[k] <= SIGHT), key=lambda k: residuals[k])
    accepted: list[int] = []
    clear = bound
    while alive:
        near: dict[Hashable, list[int]] = defaultdict(list)
        for k in alive:
            for end in pairs[k]:
                near[end].append(k)
        strangers = (population - 2 * len(accepted)) ** 2 / 2
        lucky: dict[int, float] = {}
        for k in alive:
            ends = [near[end] for end in pairs[k]]
            if all(end[0] == k for end in ends):
                nearest = min([SIGHT, *(residuals[end[1]] for end in ends if len(end) > 1)])
                if max(residuals[k], ROUNDING) <= min(clear * nearest, bound * SIGHT):
                    lucky[k] = strangers * chances[k]
        best = sorted(lucky, key=lucky.__getitem__)
        certain = sum(lucky[k] <= LONE for k in best)
        family = [(r, len(accepted) + r) for r in range(1, len(best) + 1)]
        jointly = max((r for r, n in family if n >= FAMILY and lucky[best[r - 1]] <= n * CHANCE), default=0)
        fresh = best[: certain or jointly]
        if not fresh and (clear >= bound**0.5 or len(accepted) < FAMILY):
            break
        clear = bound if fresh else bound**0.5
        accepted += fresh
        gone = {end for k in fresh for end in pairs[k]}
        alive = [k for k in alive if gone.isdisjoint(pairs[k])]
    return accepted


def equal(values: np.ndarray, norms: np.ndarray, limit: float, bound: float) -> list[tuple[int, int, float]]:
    """Rows of ``values`` [U, T] that agree in every column, with their residual: |v - v'| / (n + n'), over the columns.

    v is a sum that cancels, and the norm n of its terms (``norms``) says how far rounding can move it. Strangers lie
    a few n apart, so that k looks are below r with a chance of less than r^k, unless they are 0 for a reason of their
    own, as weights before a normalisation are: hence the chance is that of |v - v'| / (|v| + |v'|) where it is more.
    NaN says nothing, nor do two zeros.
    """
    told = (norms > 0).any(axis=0)
    values, norms = values[:, told], norms[:, told]
    if len(values) < 2 or not told.any():
        return []
    unit = np.nanmedian(np.where(norms > 0, norms, np.nan), axis=0)
    prints = SHARPER * np.arcsinh(np.nan_to_num(values) / unit)
    prints[~(norms > 0).any(axis=1)] = np.nan
    left, right = candidates(prints, np.arange(len(values))).T
    scale = norms[left] + norms[right]
    apart, size = np.abs(values[left] - values[right]), np.abs(values[left]) + np.abs(values[right])
    looks = ((norms[left] > 0) & (norms[right] > 0)).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rest, sizes = np.sqrt(np.nanmean([(apart / scale) ** 2, (size / scale) ** 2], axis=2))
        relative = rest / np.minimum(1, sizes)
    near = np.flatnonzero((rest <= limit) & (looks > 0))
    pairs = [(i, j) for i, j in np.stack([left, right], axis=1)[near].tolist()]
    chances = np.minimum(1, relative[near]) ** looks[near]
    chosen = accept(pairs, rest[near].tolist(), chances.tolist(), len(values), bound)
    return [(*pairs[k], float(rest[near[k]])) for k in chosen]
