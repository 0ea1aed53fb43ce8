"""The trend of a noisy series."""

import numpy as np


def smoothed(values: list[float], decay: float) -> np.ndarray:
    """Bias-corrected exponential moving average."""
    total = weight = 0.0
    result = np.empty(len(values))
    for i, value in enumerate(values):
        total, weight = decay * total + value, decay * weight + 1
        result[i] = total / weight
    return result
