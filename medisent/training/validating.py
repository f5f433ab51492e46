"""What a network tells of held-out scans while it learns: readouts, active latents, leaks; from few scans, cheaply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from medisent.batches import Batch
from medisent.factors import Nominal
from medisent.metrics import leakage
from medisent.model import Abduction, PartitionedVAE
from medisent.objectives import active_units
from medisent.readings import estimates, readout_error

MOST_SCANS = 48
"""So many of the held-out scans are looked at; the others would cost more than they tell."""

_FEWEST_SUBJECTS = 5  # below which held-out folds say nothing


@dataclass(frozen=True)
class Readout:
    """How well a factor is read: R2 (None where the truth never varies), and the mean absolute error in its unit."""

    r2: float | None
    mae: float


@dataclass(frozen=True)
class Validation:
    """What was found in held-out scans.

    Attributes:
        scans: How many were looked at.
        readout: By factor of which a value is known.
        active_units: Block, how many of its latents move from scan to scan; the scanner's are logarithms, of which less
            than that is much, and are left out.
        leakage: Block, factor, held-out R2 of a linear probe.
        calibrated: Whether the network was finished; until then it reads a little worse than it will.
    """

    scans: int
    readout: Mapping[str, Readout]
    active_units: Mapping[str, int]
    leakage: Mapping[str, Mapping[str, float]]
    calibrated: bool = False

    def record(self) -> dict[str, object]:
        """The same in JSON's own types, in four digits; what is no number becomes None."""
        table: dict[str, object] = _rounded(asdict(self))  # type: ignore[assignment]
        return table


def some(held: Batch, subjects: Sequence[str]) -> tuple[Batch, list[str]]:
    """At most 48 of the scans, evenly spread, and whose they are."""
    rows = torch.linspace(0, len(held) - 1, min(MOST_SCANS, len(held))).round().long()
    return held[rows.to(held.scan.device)], [subjects[row] for row in rows.tolist()]


@torch.no_grad()
def validated(
    network: PartitionedVAE, held: Batch, subjects: Sequence[str], *, batch: int, calibrated: bool = False
) -> Validation:
    """What a network tells of held-out scans; nothing is drawn by chance, and the network stays as it is.

    Arguments:
        network: In its eval mode.
        held: The scans, wherever they are.
        subjects: Whose each is.
        batch: How many of them at once.
        calibrated: Whether the network is finished.
    """
    device = network.pivot.device
    codes, values = [], []
    for rows in torch.arange(len(held)).split(batch):
        found = (network.abduct if calibrated else partial(_glimpse, network))(
            held[rows.to(held.scan.device)].to(device)
        )
        read = estimates(network, found.q)
        codes.append(found.q.loc.cpu())
        told = torch.zeros(len(rows), len(network.factors))
        for column, name in enumerate(network.factors):
            told[:, column] = network.value(name, read[name][0]).cpu()
        values.append(told)
    code, estimate = torch.cat(codes), torch.cat(values).double().numpy()
    truth = held.values.cpu().double().numpy()
    readout = {}
    for column, (name, factor) in enumerate(network.factors.items()):
        known = np.isfinite(truth[:, column])
        if known.any():
            readout[name] = Readout(*readout_error(factor, estimate[known, column], truth[known, column]))
    return Validation(
        scans=len(held),
        readout=readout,
        active_units={n: u for n, u in active_units(code, network.partition).items() if n not in network.scanner_names},
        leakage=_leaks(network, code, truth, subjects),
        calibrated=calibrated,
    )


def _glimpse(network: PartitionedVAE, batch: Batch) -> Abduction:
    """What the network infers from one position of each scan, a third of the work, without masks."""
    sight = network.see(batch)
    canonical = network.canonical(batch.scan, sight.scanner, batch.coverage)
    return Abduction(sight, canonical, batch.masks[:, :0], network.encode(canonical, sight))


def _leaks(
    network: PartitionedVAE,
    code: Float[Tensor, "scans latents"],
    truth: Float[np.ndarray, "scans factors"],
    subjects: Sequence[str],
) -> dict[str, dict[str, float]]:
    """How well a ridge regression on each block tells each factor that varies over five subjects or more."""
    owners = np.array(subjects)
    columns: dict[str, list[object]] = {}
    for column, (name, factor) in enumerate(network.factors.items()):
        known = np.isfinite(truth[:, column])
        if len(set(owners[known])) >= _FEWEST_SUBJECTS and np.ptp(truth[known, column]) > 0:
            text = isinstance(factor, Nominal)  # levels without an order are text
            column_of: list[object] = [(f"{value:g}" if text else value) for value in truth[:, column].tolist()]
            columns[name] = [value if there else None for value, there in zip(column_of, known, strict=True)]
    if not columns:
        return {}
    blocks = {name: range(b.start, b.start + b.size) for name, b in network.partition.items() if b.size}
    return leakage(code.double().numpy(), blocks, pd.DataFrame(columns), groups=owners, trees=False)


def _rounded(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, float):
        return round(value, 4) if np.isfinite(value) else None
    return value
