"""The statistics by number, and how a value counts in them."""

# mypy: disable-error-code="no-untyped-def"
# The compiled functions are typed by numba, from their first call.

import math

import numpy as np

from pipelines.features.compiling import compiled

LIMIT = 1e100  # larger numbers count as missing, so that sums of squares stay finite
ROUNDING = 1e-12  # a variance below this share of the mean square is a rounding error and counts as zero

COUNT, SINCE_LAST, SUM, MEAN, STD, MIN, MAX, RATIO, ZSCORE, ABOVE = range(10)
FRAUD_RATE, FRAUD_COUNT, LABELLED_COUNT, SMOOTHED_FRAUD_RATE = range(10, 14)
SINCE_FRAUD, SINCE_LEGIT, FRAUD_RUN, FRAUD_RUN_AGE = range(14, 18)
LAST_AGE, LAST_HOUR, LAST_VALUE = range(18, 21)


@compiled
def measured(value):
    """Normalise a value: -0.0 becomes 0.0; NaN, infinite and absurdly large values count as missing."""
    return value + 0.0 if abs(value) <= LIMIT else np.nan


@compiled
def finite(value):
    return value if math.isfinite(value) else np.nan


@compiled
def statistic(stat, value, n, total, square, low, high):
    """One statistic of `n` values; `square` is the sum of squares."""
    if stat == SUM:
        return total
    if n == 0:
        return np.nan
    if stat == MIN:
        return low
    if stat == MAX:
        return high
    mean = total / n
    if stat == MEAN:
        return mean
    if stat == RATIO:
        return value / mean
    mean_square = square / n
    variance = mean_square - mean * mean
    if variance <= ROUNDING * mean_square:
        variance = 0.0
    return spread(stat, value, n, mean, variance)


@compiled
def spread(stat, value, n, mean, variance):
    if n < 2:
        return np.nan
    deviation = math.sqrt(variance)
    return deviation if stat == STD else (value - mean) / deviation if deviation > 0.0 else np.nan
