"""Knows how near one image is to another: counterfactual error, PSNR, SSIM, correlation of maps."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Num
from skimage.metrics import structural_similarity

from medisent.errors import UsageError


def relative_counterfactual_error(
    edited: Num[np.ndarray, "*shape"],
    scan: Num[np.ndarray, "*shape"],
    truth: Num[np.ndarray, "*shape"],
    *,
    within: Bool[np.ndarray, "*shape"] | None = None,
) -> float:
    """RCE, squared error of a counterfactual over that of doing nothing: 0 is perfect, 1 is the scan itself.

    ``sum((f(x) - x*)^2) / sum((x - x*)^2)``. With ``within`` only the error there is counted, still over the whole
    change, so that the inside and the outside of a change add up to the RCE.

    Pitfalls: needs the true counterfactual, so a renderer or a scan that really was taken; composition and
    reversibility alone are perfect for an edit that does nothing (RCE 1). Not bounded above: decoding directly gave 22
    for a tumour.

    Raises:
        UsageError: The true counterfactual is the scan itself, so there is no change to be right about.

    References:
        Measuring Axiomatic Soundness of Counterfactual Image Models (Monteiro, Ribeiro, Pawlowski, Castro and Glocker,
        2023), whose axioms this stands beside
    """
    change = float(np.sum((scan.astype(np.float64) - truth) ** 2))
    if change == 0:
        raise UsageError("The true counterfactual equals the scan, so there is no change to hold the edit against.")
    error = (edited.astype(np.float64) - truth) ** 2
    return float(np.sum(error if within is None else error[within])) / change


def psnr(image: Num[np.ndarray, "*shape"], truth: Num[np.ndarray, "*shape"], *, data_range: float) -> float:
    """Peak signal-to-noise ratio, ``10 log10(data_range^2 / mean squared error)``, in dB; infinite for equal images.

    Pitfalls: the number moves with ``data_range``: state it. 6 dB by doubling it.

    Raises:
        UsageError: The range is not positive.
    """
    _positive(data_range)
    error = float(np.mean((image.astype(np.float64) - truth) ** 2))
    return math.inf if error == 0 else 10 * math.log10(data_range**2 / error)


def ssim(image: Num[np.ndarray, "*shape"], truth: Num[np.ndarray, "*shape"], *, data_range: float) -> float:
    """Structural similarity, the mean over windows of 7 voxels a side (less for a smaller image); at most 1.

    Pitfalls: a large empty background counts as similar; windows, range and weighting differ between libraries.

    Raises:
        UsageError: The range is not positive, or the image is thinner than 3 voxels.

    References:
        Image Quality Assessment: From Error Visibility to Structural Similarity (Wang, Bovik, Sheikh and Simoncelli,
        2004)
    """
    _positive(data_range)
    thinnest = min(image.shape)
    if thinnest < 3:
        raise UsageError(f"SSIM needs at least 3 voxels along every axis; the image has {image.shape}.")
    window = min(7, thinnest - 1 + thinnest % 2)
    pair = image.astype(np.float64), truth.astype(np.float64)
    return float(structural_similarity(*pair, data_range=data_range, win_size=window))


def ncc(
    image: Num[np.ndarray, "*shape"],
    truth: Num[np.ndarray, "*shape"],
    *,
    within: Bool[np.ndarray, "*shape"] | None = None,
) -> float:
    """Normalised cross-correlation of two maps, -1 to 1: Pearson's over voxels; 0 if either is constant.

    Pitfalls: blind to the maps' scale. Against the true difference a shape mechanism's factor map had 0.74-0.76,
    integrated gradients 0.12-0.32.
    """
    left, right = (m.astype(np.float64)[... if within is None else within].ravel() for m in (image, truth))
    if not left.size or np.ptp(left) == 0 or np.ptp(right) == 0:
        return 0.0
    left, right = left - left.mean(), right - right.mean()
    left, right = left / np.abs(left).max(), right / np.abs(right).max()
    return float(np.clip(left @ right / math.sqrt((left @ left) * (right @ right)), -1.0, 1.0))


def _positive(data_range: float) -> None:
    if not data_range > 0:
        raise UsageError(f"The data range is {data_range}, but it must be positive: the difference of white and black.")
