"""What a study asks of the loop: how much each term counts, which scans go together, how fast to learn when."""

from __future__ import annotations

import math

from medisent.config import Study, Supervision
from medisent.model import PartitionedVAE
from medisent.supervision import Entry


def weights_of(study: Study) -> dict[str, float]:
    """How much each term counts; those of kinds of supervision that the study does not have are left out."""
    kinds = {said.kind for said in study.supervision}
    compared = "ranks" in kinds or any(matched(study, said) for said in study.supervision)
    clamped = "clamp" in kinds
    asked = (("invariance", clamped), ("differences", clamped), ("ranks", compared))
    idle = {name for name, there in asked if not there}
    return {n: getattr(study.weights, n) for n in study.weights.__dataclass_fields__ if n not in idle}


def matched(study: Study, said: Supervision) -> tuple[str, ...]:
    """The factors with labels of which a [[supervision]] says by name that they are the same in a group.

    The picture teaches nothing to blocks that have labels, so that likeness has to be a cost of its own. A volume
    with a mask is learned from masks alone.
    """
    labelled = {f.name for f in study.factors if f.column and not f.mask} - {*study.scanner.factors}
    return tuple(name for name in said.share or () if said.kind == "groups" and name in labelled)


def varied_settings(study: Study, said: Supervision) -> frozenset[str]:
    """The settings of the scanner that are not among what a [[supervision]] shares."""
    own, named = frozenset(study.scanner.factors), {*(said.share or ()), *(said.vary or ())}
    meant = own if "nuisance" in named else own & named
    return own - meant if said.share else meant


def entries_of(study: Study, network: PartitionedVAE) -> tuple[Entry, ...]:
    """Each [[supervision]] of a study, its names resolved to the blocks and scanner settings of a model."""
    entries = []
    for column, said in enumerate(study.supervision):
        blocks = frozenset(network.partition)
        blocks = network.named(said.share) if said.share else blocks - network.named(said.vary or ())
        own, varied = frozenset(network.scanner_names), varied_settings(study, said)
        if said.kind == "ranks":
            entries.append(Entry("ranks", column, factors=said.share or (), batches=said.batches))
            continue
        entries.append(
            Entry(
                said.kind,
                column,
                # The scanner of every scan is changed while training; its own blocks go by that change, not by sharing.
                blocks=blocks - own,
                alike=own - varied,
                factors=matched(study, said),
                pool=said.pool or "product",
                batches=said.batches,
                repeats=said.kind == "clamp" and bool(varied),
            )
        )
    return tuple(entries)


def schedule(share: float) -> float:
    """The learning rate's share of its highest: a short linear rise, then half a cosine down to a hundredth."""
    warm = min(1.0, (share + 0.002) / 0.03)
    return warm * (0.505 + 0.495 * math.cos(math.pi * min(1.0, share)))
