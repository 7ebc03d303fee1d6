"""K-means in one dimension, in fp64: what levels of samples are measured against."""

import numpy as np


def best_error(v, number, starts=6):
    """Mean squared error of the best of several runs of k-means in fp64, from k-means++ starts."""
    v, rng = np.sort(np.asarray(v, np.float64)), np.random.default_rng(0)
    middle = len(v) // 2
    low, high = -np.cumsum(v[:middle][::-1])[::-1], np.cumsum(v[middle:])
    total, best = np.concatenate([low, [0], high]), np.inf
    for _ in range(starts):
        levels = [rng.choice(v)]
        far = np.square(v - levels[0])
        for _ in range(number - 1):
            place = np.searchsorted(np.cumsum(far), rng.random() * far.sum())
            levels.append(v[min(place, len(v) - 1)])
            far = np.minimum(far, np.square(v - levels[-1]))
        levels = np.sort(levels)
        for _ in range(200):
            at = np.searchsorted(v, (levels[1:] + levels[:-1]) / 2, "right")
            at = np.concatenate([[0], at, [len(v)]])
            count = np.diff(at)
            levels = np.where(count > 0, np.diff(total[at]) / np.maximum(count, 1), levels)
        best = min(best, error_and_cells(v, levels)[0])
    return best


def error_and_cells(v, levels):
    v, levels = np.asarray(v, np.float64), np.sort(np.asarray(levels, np.float64))
    cell = np.searchsorted((levels[1:] + levels[:-1]) / 2, v)
    return np.square(v - levels[cell]).mean(), len(np.unique(cell))
