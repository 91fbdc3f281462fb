"""What probabilities are worth against labels: accuracy, loss, confusion and the worst mistakes. NumPy only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Keras clips probabilities here before it takes the logarithm, and so its losses and ours agree.
_SMALLEST_PROBABILITY = 1e-7


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of N images in C classes. A row of probabilities that isn't finite counts as wrong and is in no class."""

    count: int
    """Images scored (N)."""
    not_finite: int
    """Images whose probabilities hold a NaN or an infinity."""
    accuracy: float
    """Share of right predictions, 0 to 1."""
    standard_error: float
    """Of the accuracy: the square root of p(1 − p)/N."""
    loss: float
    """Mean cross-entropy in nats; NaN if any row isn't finite."""
    confusion: NDArray[np.int64]
    """[C, C]: images by true class (row) and predicted class (column)."""
    precision: NDArray[np.float64]
    """[C]: right among those predicted as the class; NaN where none was."""
    recall: NDArray[np.float64]
    """[C]: right among those of the class; NaN where there are none."""
    f1: NDArray[np.float64]
    """[C]: harmonic mean of precision and recall; NaN for a class that is neither there nor predicted."""
    support: NDArray[np.int64]
    """[C]: images of the class."""


def score(labels: NDArray[np.integer], probabilities: NDArray[np.floating]) -> Scores:
    """Score probabilities [N, C] against labels [N] (0 to C − 1).

    Raises:
        ValueError: the shapes don't fit each other, a label has no column, or there is no image.
    """
    labels, probabilities = _checked(labels, probabilities)
    count, classes = probabilities.shape
    finite = np.isfinite(probabilities).all(axis=1)
    predicted = predictions(probabilities)
    pairs = labels[finite] * classes + predicted[finite]
    confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    right = np.diagonal(confusion)
    support = np.bincount(labels, minlength=classes)
    accuracy = float(right.sum() / count)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = right / confusion.sum(axis=0)
        recall = right / support
        f1 = 2 * right / (confusion.sum(axis=0) + support)
    return Scores(
        count=count,
        not_finite=int(count - finite.sum()),
        accuracy=accuracy,
        standard_error=standard_error(accuracy, count),
        loss=float(_losses(labels, probabilities).mean()),
        confusion=confusion,
        precision=precision,
        recall=recall,
        f1=f1,
        support=support,
    )


def predictions(probabilities: NDArray[np.floating]) -> NDArray[np.int64]:
    """Most probable class [N] for probabilities [N, C]; −1 where a row isn't finite."""
    finite = np.isfinite(probabilities).all(axis=1)
    return np.where(finite, np.argmax(probabilities, axis=1), -1)


def standard_error(accuracy: float, count: int) -> float:
    """Standard error of an accuracy (0 to 1) measured on `count` independent images."""
    return float(np.sqrt(accuracy * (1 - accuracy) / count))


def worst_mistakes(labels: NDArray[np.integer], probabilities: NDArray[np.floating], most: int) -> NDArray[np.int64]:
    """Indices of at most `most` wrongly predicted images, the highest loss first (the order of images breaks ties)."""
    labels, probabilities = _checked(labels, probabilities)
    predicted = predictions(probabilities)
    wrong = np.flatnonzero((predicted != labels) & (predicted >= 0))
    # Ties are common at the clipping limit: there the more certain mistake is the worse one.
    true_share = probabilities[wrong, labels[wrong]]
    order = np.lexsort((-probabilities[wrong].max(axis=1), true_share))
    return wrong[order[:most]]


def _losses(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    true_share = np.clip(probabilities[np.arange(len(labels)), labels], _SMALLEST_PROBABILITY, 1)
    return np.where(np.isfinite(probabilities).all(axis=1), -np.log(true_share), np.nan)


def _checked(
    labels: NDArray[np.integer], probabilities: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(
            "labels and probabilities don't fit: "
            f"received {labels.shape} and {probabilities.shape}, expected [N] and [N, C]."
        )
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise ValueError(
            f"a label has no class: received {labels.min()} to {labels.max()} for {probabilities.shape[1]}."
        )
    return labels.astype(np.int64), probabilities.astype(np.float64)
