"""Knows how to score separation, leakage, readouts and images, never without what it takes to read the score."""

from medisent.metrics.blocks import leakage, leakage_floor
from medisent.metrics.images import ncc, psnr, relative_counterfactual_error, ssim
from medisent.metrics.latents import counterfactual_latent_divergence, normal_divergence
from medisent.metrics.panel import panel
from medisent.metrics.readouts import ReadoutScore, conformal_quantile, coverage, mae, r2, readout_scores
from medisent.metrics.sampled import beta_vae, factor_vae, unfairness
from medisent.metrics.scores import Score

__all__ = [
    "ReadoutScore",
    "Score",
    "beta_vae",
    "conformal_quantile",
    "counterfactual_latent_divergence",
    "coverage",
    "factor_vae",
    "leakage",
    "leakage_floor",
    "mae",
    "ncc",
    "normal_divergence",
    "panel",
    "psnr",
    "r2",
    "readout_scores",
    "relative_counterfactual_error",
    "ssim",
    "unfairness",
]
