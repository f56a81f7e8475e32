"""Whether a model is as sure as it is right."""

from __future__ import annotations

import torch


def expected_calibration_error(confidences: torch.Tensor, correct: torch.Tensor, bins: int = 15) -> float:
    """The gap between confidence and accuracy, averaged over equal-width bins (Guo et al. 2017, equation 3).

    Args:
        confidences: (N,) probability of the predicted class, in (0, 1]; a bin holds its upper edge.
        correct: (N,) bool.
        bins: number of bins over (0, 1].
    """
    confidences = confidences.double()
    bin_of = (confidences * bins).ceil().long().clamp(1, bins) - 1
    surplus = torch.zeros(bins, dtype=torch.float64, device=confidences.device)
    surplus.index_add_(0, bin_of, confidences - correct.double())
    return float(surplus.abs().sum() / len(confidences))


def confidences_apart(confidences: torch.Tensor, correct: torch.Tensor) -> dict[str, float | None]:
    """The calibration error `ece`, and the mean confidences `confidence_right` and `confidence_wrong`.

    Args:
        confidences: (N,) probability of the predicted class, in (0, 1].
        correct: (N,) bool; where there is nothing to average, the mean is None.
    """
    sure = confidences.double()
    return {
        "ece": expected_calibration_error(confidences, correct),
        "confidence_right": float(sure[correct].mean()) if correct.any() else None,
        "confidence_wrong": float(sure[~correct].mean()) if not correct.all() else None,
    }
