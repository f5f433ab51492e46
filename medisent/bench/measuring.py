"""What is measured of a method: readouts, probes, leakage, separation, the site, and a model's own edits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from medisent.bench.figures import Edit, Figures, Leak
from medisent.checkpoints import Trained
from medisent.cohorts import read_table
from medisent.config import Study
from medisent.evaluation.edits import Crowd, edit_scores
from medisent.evaluation.findings import EditScore, SideEffect
from medisent.evaluation.material import Material, evenly, gathered
from medisent.evaluation.separation import told_by_labels
from medisent.factors import Partition, Role
from medisent.metrics import coverage, leakage, r2
from medisent.metrics.panel import HONEST
from medisent.metrics.probes import held_out_probabilities
from medisent.metrics.samples import sample
from medisent.progress import Progress
from medisent.readings import abducted, ranges

COLUMNS: Mapping[str, tuple[Role, str]] = {
    "tumour_volume": ("anatomy", "tumour_ml"),
    "ventricle_volume": ("anatomy", "ventricle_ml"),
    "head_size": ("anatomy", "head_size_mm"),
    "brightness": ("nuisance", "gain"),
    "contrast": ("nuisance", "gamma"),
    "bias_field": ("nuisance", "bias_field"),
}
"""Every factor of a rendered head whose truth the table holds: its role and its column."""

_MASKS = {"tumour_volume": "tumour_mask", "ventricle_volume": "ventricle_mask"}

METRICS = ("infom", "infoc", "infoe", "dci_disentanglement", "dci_completeness", "dci_informativeness", "mcc")
_FOLDS = 5
_EDITED = 20


@dataclass(frozen=True, eq=False)
class Judge:
    """Scans whose truth is known, whatever the study of a model says of them.

    Attributes:
        table: Their table.
        labels: One column a factor.
        sites: Of each scan.
        subjects: Of each scan.
        masks: Of each scan, by structure.
    """

    table: Path
    labels: pd.DataFrame
    sites: Sequence[str]
    subjects: Sequence[str]
    masks: Sequence[Mapping[str, Path]]

    @classmethod
    def of(cls, table: Path) -> Judge:
        """The test scans of a table."""
        rows = read_table(table)
        rows = rows[rows["split"] == "test"]
        labels = {name: pd.to_numeric(rows[column]).to_numpy() for name, (_, column) in COLUMNS.items()}
        masks = [
            {name: table.parent / path for name, path in zip(_MASKS, paths, strict=True) if path}
            for paths in rows[list(_MASKS.values())].itertuples(index=False)
        ]
        return cls(table, pd.DataFrame(labels), list(rows["site"]), list(rows["subject"]), masks)

    def material(self, study: Study, progress: Progress) -> Material:
        """The scans on a study's grid, with the true counterfactuals of twenty of them, evenly spread.

        Growing structures takes longer than all else that is measured. The masks are the table's, whether or not the
        study knows of them: they say where an edit should leave a structure alone.
        """
        own = replace(study, cohort=replace(study.cohort, split="split"))
        found = gathered(own, self.table, "test", progress)
        edited = set(evenly(sorted({truth.row for truth in found.truths}), _EDITED))
        masked = zip(found.cohort.rows, self.masks, strict=True)
        rows = tuple(replace(row, masks=masks) for row, masks in masked)
        return replace(
            found,
            cohort=replace(found.cohort, rows=rows),
            truths=tuple(truth for truth in found.truths if truth.row in edited),
        )


def figures_of_codes(
    codes: Float[np.ndarray, "scans latents"], judge: Judge, partition: Partition | None, seed: int, *, latents: bool
) -> Figures:
    """What codes tell: of the whole code the factors; of blocks what leaks; of the latents how they are apart.

    Arguments:
        codes: One row a judged scan.
        judge: The truth.
        partition: Which latents belong to whom; None is a code whose parts nothing has set apart.
        seed: Of folds.
        latents: Whether single latents are meant to mean something, so that their separation is measured.
    """
    people = np.array(judge.subjects)
    everything = {"code": range(codes.shape[1])}
    probe = leakage(codes, everything, judge.labels, groups=people, seed=seed)["code"]
    anatomy = slice(None) if partition is None else partition.of_role("anatomy").numpy()
    figures = Figures(
        probe=probe,
        site=held_out_site(codes[:, anatomy], judge, seed),
        site_chance=_most_frequent(judge.sites),
        separation=separation_of(codes, judge, seed) if latents else {},
    )
    if partition is None:
        return figures
    blocks = {name: range(b.start, b.start + b.size) for name, b in partition.items() if b.size}
    leaks = leakage(codes, blocks, judge.labels, groups=people, seed=seed)
    return replace(
        figures,
        own={name: leaks[name][name] for name in leaks if name in COLUMNS},
        leak_between=_worst((p for p in _pairs(leaks) if p.block in COLUMNS and p.block != p.factor), judge, seed),
        leak_to_anatomy=_worst(_across(leaks, partition, "nuisance"), judge, seed),
        leak_to_nuisance=_worst(_across(leaks, partition, "anatomy"), judge, seed),
    )


def separation_of(codes: Float[np.ndarray, "scans latents"], judge: Judge, seed: int) -> dict[str, float]:
    """The metrics of separation on single latents, without their intervals, floors and ceilings."""
    rows = sample(codes, judge.labels, np.array(judge.subjects), np.zeros(len(codes), dtype=bool))
    found: dict[str, float] = {}
    with threadpool_limits(1):
        for family in HONEST:
            if set(family.names) & set(METRICS):
                values = family.compute(rows, np.random.default_rng([seed, 0]))
                found |= {name: float(v) for name, v in zip(family.names, values, strict=True) if name in METRICS}
    return found


def held_out_site(codes: Float[np.ndarray, "scans latents"], judge: Judge, seed: int) -> float:
    """Share of scans whose site a logistic regression tells from codes, subjects held out."""
    levels = np.unique(list(judge.sites), return_inverse=True)[1]
    names, person = np.unique(list(judge.subjects), return_inverse=True)
    folds = np.random.default_rng(seed).permutation(len(names))[person] % _FOLDS
    spread = codes.std(0)
    standard = (codes - codes.mean(0)) / np.where(spread > 1e-12, spread, 1.0)
    likely, _ = held_out_probabilities(standard, levels, folds)
    return float((likely.argmax(1) == levels).mean())


def figures_of_model(trained: Trained, judge: Judge, apart: Judge, seed: int, progress: Progress) -> Figures:
    """All but the maps of a trained model.

    Arguments:
        trained: The model.
        judge: Scans on which it is read and which it edits.
        apart: Scans on which blocks are held apart; other ones than ``judge`` where factors go together there.
        seed: Of folds.
        progress: Is told how far the work is.
    """
    network = trained.network.eval()
    material = judge.material(trained.study, progress)
    read = abducted(network, material.batch)
    codes = read.q.loc if apart is judge else _codes(trained, apart, progress)
    study = trained.study
    told = bool(study.factors or study.scanner.factors or study.supervision)
    partition = network.partition if told else None
    figures = figures_of_codes(codes.double().numpy(), apart, partition, seed, latents=True)
    readout, inside = {}, {}
    estimates = {name: values.double().numpy().T for name, values in ranges(trained, read).items()}
    for name, (estimate, low, high) in _told(trained, estimates):
        truth = judge.labels[name].to_numpy()
        readout[name] = r2(estimate, truth)
        # Settings without labels have intervals that nothing has calibrated.
        if np.isfinite([low, high]).all() and trained.card.factors[name].calibrated:
            inside[name] = coverage(low, high, truth)
    values = {name: found[0] for name, found in estimates.items()} | {
        name: judge.labels[name].to_numpy() for name in COLUMNS if name in estimates
    }
    edits = edit_scores(trained, material, Crowd(read.q, values, material.subjects), lambda: None)
    return replace(
        figures,
        readout=readout,
        coverage=inside,
        edits={edit: _edit(score, edits.side_effects.get(edit, {})) for edit, score in edits.scores.items()},
        commutativity=edits.commutativity,
    )


def _edit(score: EditScore, elsewhere: Mapping[str, SideEffect]) -> Edit:
    return Edit(
        rce=score.rce,
        effect_error=score.effect_error,
        off_target=score.off_target,
        n=score.n,
        elsewhere_ml={name: effect.ml for name, effect in elsewhere.items()},
        composition=score.composition,
        reversibility=score.reversibility,
    )


def _codes(trained: Trained, judge: Judge, progress: Progress) -> torch.Tensor:
    return abducted(trained.network, judge.material(trained.study, progress).batch).q.loc


def _told(
    trained: Trained, estimates: Mapping[str, Float[np.ndarray, "3 scans"]]
) -> Iterator[tuple[str, Float[np.ndarray, "3 scans"]]]:
    """The factors whose truth is known and of whose values training was told."""
    for name, values in estimates.items():
        factor = trained.network.factors[name]
        if name in COLUMNS and (factor.column or factor.mask):
            yield name, values


def _pairs(leaks: Mapping[str, Mapping[str, float]]) -> Iterator[Leak]:
    return (Leak(told, block, name) for block, row in leaks.items() for name, told in row.items())


def _across(leaks: Mapping[str, Mapping[str, float]], partition: Partition, role: Role) -> Iterator[Leak]:
    """What blocks of one role tell of factors of the other."""
    return (p for p in _pairs(leaks) if partition[p.block].role == role and COLUMNS[p.factor][0] != role)


def _worst(pairs: Iterable[Leak], judge: Judge, seed: int) -> Leak | None:
    """The pair that leaks most, with what the labels alone tell of it."""
    worst = max(pairs, key=lambda leak: leak.r2, default=None)
    if worst is None or worst.block not in COLUMNS:
        return worst
    told = told_by_labels(judge.labels, worst.block, [worst.factor], np.array(judge.subjects), seed)
    return replace(worst, labels=told.get(worst.factor))


def _most_frequent(names: Sequence[str]) -> float:
    return float(np.unique(list(names), return_counts=True)[1].max() / len(names))
