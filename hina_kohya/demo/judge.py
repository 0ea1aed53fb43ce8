"""An independent judge of generated digits: a support vector classifier that never saw a generated image."""

import dataclasses as dc

import numpy as np
import torch

from .data import load_digits


@dc.dataclass(frozen=True)
class Verdict:
    """How many images show the digit of their caption: over all, and per digit."""

    images: int
    accuracy: float
    per_digit: dict[int, float]

    @classmethod
    def of(cls, asked: np.ndarray, read: np.ndarray) -> "Verdict":
        right = read == asked
        per_digit = {int(d): float(right[asked == d].mean()) for d in np.unique(asked)}
        return cls(len(right), float(right.mean()), per_digit)


class Judge:
    def __init__(self):
        from sklearn.svm import SVC  # noqa: PLC0415 (a second of import)

        train_x, train_y, test_x, test_y = load_digits()
        self._svc = SVC(kernel="rbf", C=10.0, gamma="scale").fit(train_x.reshape(len(train_x), -1), train_y)
        self.held_out_accuracy = float(self._svc.score(test_x.reshape(len(test_x), -1), test_y))

    def read(self, images: torch.Tensor) -> np.ndarray:
        return self._svc.predict(images.numpy().reshape(len(images), -1))
