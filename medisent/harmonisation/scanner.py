"""Which scanner a scan is brought to, and the scan as that scanner would have shown it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medisent.checkpoints import Trained
from medisent.counterfactuals import shown
from medisent.readings import Reading
from medisent.scanners import BIAS_TERMS, Scanner
from medisent.volumes import Volume

_TISSUE = 0.05
DOUBTS = ("reconstruction", "similarity", "field_of_view")
"""Checks that say whether the model knows such scans at all."""


@dataclass(frozen=True, eq=False)
class Target:
    """The scanner that scans are brought to.

    Attributes:
        log_gain: Logarithm of what the brightest canonical tissue becomes, in the scans' unit.
        log_gamma: Logarithm of the contrast's exponent, as ``sharpened`` reads it.
        bias: Coefficients of the log bias field.
        known: Whether more than its brightness is known.
    """

    log_gain: float
    log_gamma: float
    bias: Float[Tensor, " terms"]
    known: bool = True

    @classmethod
    def like(cls, trained: Trained, readings: Sequence[Reading]) -> Target:
        """The mean scanner of a few scans."""
        seen = [sharpened(trained, reading) for reading in readings]
        gains = [float(one.scene.scanner.log_gain[0]) + one.log_scale for one in seen]
        gammas = [float(one.scene.scanner.log_gamma[0]) for one in seen]
        bias = torch.cat([one.scene.scanner.bias for one in seen]).mean(0)
        return cls(float(np.mean(gains)), float(np.mean(gammas)), bias, all(map(known, readings)))

    @classmethod
    def reference(cls, trained: Trained, spreads: Sequence[float]) -> Target:
        """The model's reference: gain 1, exponent 1, no bias field.

        Spreads have no zero of their own; the mean of scans that are harmonised together stands for what the network
        reads from them on average, so that only differences between them count.

        Arguments:
            trained: The model.
            spreads: Of all scans that are brought there, by ``log_spread``.
        """
        return cls(float(trained.network.reference), float(np.mean(spreads or [0.0])), torch.zeros(BIAS_TERMS))


def known(reading: Reading) -> bool:
    """Whether the model has seen such scans."""
    return all(reading.checks[name].ok for name in DOUBTS)


def log_spread(trained: Trained, reading: Reading) -> float:
    """By how much a canonical scan varies more than the model's redraw of its named factors, as a log exponent.

    0 for a scan that the model does not know, and for a model without contrast.
    """
    network = trained.network
    if "contrast" not in network.scanner_names or not known(reading):
        return 0.0
    code = reading.abduction.q.loc.clone()
    rest = network.partition["anatomy_rest"].where
    code[:, rest] = torch.tensor(trained.card.centre)[rest]
    with torch.no_grad():
        redrawn = network.decode(code).mean[0, 0]
    canonical, seen = reading.abduction.canonical[0, 0], reading.abduction.sight.batch.coverage[0, 0]
    inside = (canonical > _TISSUE) & (redrawn > _TISSUE) & (seen > 0)
    if int(inside.sum()) < 10 * BIAS_TERMS:
        return 0.0
    flat = torch.cat([torch.ones_like(canonical)[None], network.basis])[:, inside].T.double().numpy()
    logs = torch.stack([canonical[inside], redrawn[inside]], 1).double().log().numpy()
    weight = np.sqrt(canonical[inside].double().numpy())[:, None]
    fitted = np.linalg.lstsq(flat * weight, logs * weight, rcond=None)[0]
    left = ((logs - flat @ fitted) * weight).std(0)
    # Linear algebra may end in other last digits where memory lies otherwise; the same scan is to give the same bytes.
    return round(float(np.log(left[0] / left[1])), 6) if bool((left > 1e-6).all()) else 0.0


def sharpened(trained: Trained, reading: Reading) -> Reading:
    """The reading with an exponent held against the model's own redraw of the anatomy.

    A network tells the exponent from one scan within a tenth; how much wider the scan's log intensities spread than
    those of a head with the same tumour, ventricles and size tells it within a twentieth. What a scan is not known
    enough for is left to its measured scale: neither exponent nor bias field.
    """
    scanner, network = reading.scene.scanner, trained.network
    if not known(reading):
        none = torch.zeros(1)
        plain = Scanner(none - network.pivot, none, torch.zeros(1, BIAS_TERMS))
        return replace(reading, scene=replace(reading.scene, scanner=plain))
    gamma = scanner.log_gamma + log_spread(trained, reading)
    return replace(reading, scene=replace(reading.scene, scanner=replace(scanner, log_gamma=gamma)))


def harmonised_scan(trained: Trained, reading: Reading, target: Target) -> Volume:
    """The scan of a reading as the target's scanner would have shown it, in its own space; anatomy stays.

    Where the model does not know the scan, or those that the target was read from, the brightness alone is moved.
    """
    seen = sharpened(trained, reading)
    own = seen.scene.scanner
    gain = own.log_gain * 0 + target.log_gain - reading.log_scale
    moved = Scanner(gain, own.log_gamma * 0 + target.log_gamma, target.bias[None])
    wanted = moved if known(reading) and target.known else replace(own, log_gain=gain)
    return shown(seen, replace(seen.scene, scanner=wanted), trained.study.scanner.air)
