"""Knows how far an edited scan has gone in the latent space: the divergence that a counterfactual should keep small."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

OTHERS, OWN = 0.8, 0.2
"""How much it counts to stay nearer than scans that have the wanted value, and to leave those that have the present."""


def normal_divergence(
    loc: Float[np.ndarray, "n latents"],
    scale: Float[np.ndarray, "n latents"],
    to_loc: Float[np.ndarray, " latents"],
    to_scale: Float[np.ndarray, " latents"],
) -> Float[np.ndarray, " n"]:
    """``KL(N(loc, scale^2) || N(to_loc, to_scale^2))`` of independent normal latents, in nats.

    Pitfalls: scales are standard deviations. A published benchmark passes the mean for mean and log-scale both, and
    keeps log-variances, so that its divergence is that of other distributions.
    """
    ratio = (scale / to_scale) ** 2
    nats: np.ndarray = 0.5 * (ratio + ((loc - to_loc) / to_scale) ** 2 - 1 - np.log(ratio)).sum(axis=-1)
    return nats


def counterfactual_latent_divergence(
    edited: float, wanted: Float[np.ndarray, " n"], present: Float[np.ndarray, " m"]
) -> float:
    """CLD, how minimal an edit is: 0 is minimal and effective, 1 is neither; less is better.

    ``log(0.8 exp P(wanted <= edited) + 0.2 exp P(present >= edited))``: the share of scans with the wanted value that
    lie nearer to the scan than its edit does, and the share of scans with the present value that lie further away than
    the edit does. An edit should go further than scans of the same value differ, and stay nearer than other people.

    Args:
        edited: Divergence of the edited scan from the scan.
        wanted: That of other scans with the wanted value.
        present: That of other scans with the scan's own value.

    Pitfalls: doing nothing scores ``log(0.8 + 0.2 e)``, 0.30, which is better than many an edit: never alone. It asks
    an encoder, so that what the encoder does not see costs nothing.

    References:
        Diffusion Causal Models for Counterfactual Estimation (Sanchez and Tsaftaris, 2022)
        Benchmarking Counterfactual Image Generation (Melistas et al., 2024): the weights
    """
    if not wanted.size or not present.size:
        return math.nan
    nearer, further = float(np.mean(wanted <= edited)), float(np.mean(present >= edited))
    return math.log(OTHERS * math.exp(nearer) + OWN * math.exp(further))
