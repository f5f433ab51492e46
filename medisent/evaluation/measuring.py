"""The whole of an evaluation, from a model and a table to what was found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medisent.checkpoints import Trained
from medisent.evaluation.attributions import EXPLAINED, PATCH, SCANS, STEPS, map_scores
from medisent.evaluation.edits import Crowd, edit_scores
from medisent.evaluation.findings import EditScore, Evaluation
from medisent.evaluation.images import reconstruction_of, robustness_of
from medisent.evaluation.making import make, trio_of
from medisent.evaluation.material import Material, gathered
from medisent.evaluation.pictures import scatter, triple
from medisent.evaluation.separation import Separation, readout_of, separation_of
from medisent.formats import read
from medisent.progress import Progress, Silence
from medisent.readings import abducted, ranges, read_batch
from medisent.words import edit as in_words
from medisent.words import fixed, listed, sentence

_OF_EDITS = (
    "Every edit starts from what the model itself reads in the scan. Its RCE is the median scan's, with the 95 % "
    "interval of that median; inside and outside of where the truth changes noticeably (more than 2 % of its "
    "largest change) add up to it, scan by scan.",
    "Effect is measured on the voxels by rulers that are not the model: for brightness the typical intensity of "
    "tissue, for contrast the slope of log intensity over the scan's own, for all else the amount of change "
    "within 12 mm of where the truth changes. Effect error is its distance from the true effect, relative to it; "
    "missed is the same in the factor's unit, and asked the true change.",
    "Off target is the mean absolute error outside of what truly changes, relative to the mean true change inside.",
    "Off target in mL: the error near another structure with a known mask, where the truth does not change, over that "
    "structure's own contrast; more and less of it count alike.",
    "Composition: the largest voxel difference that an edit for nothing makes, in the scan's unit. Reversibility: "
    "the edited scan is read afresh and the factor moved back; what is left, relative to the edit. Commutativity: "
    "of two edits, reading afresh between them, what lies between the two orders, relative to both together; at "
    "most 6 scans.",
    "CLD, the counterfactual latent divergence: log(0.8 exp P1 + 0.2 exp P2), with P1 the share of other scans "
    "with the wanted value that the model sees nearer to the scan than its edit, and P2 the share of those with "
    "the present value that it sees further away. 0 is best, 1 worst; a fifth of the scans count as having a "
    "value.",
    "Doing nothing has perfect composition, reversibility and commutativity, and a good CLD. Only the RCE tells.",
)
_OF_MAPS = (
    f"Maps: correlation over voxels with the true change of the edit, in at most {SCANS} scans, integrated gradients "
    f"and occlusion in at most {EXPLAINED} of them. The factor map is an edit by one standard deviation of the cohort; "
    f"integrated gradients ({STEPS} steps, from air) and occlusion (cubes of {PATCH} grid voxels a side) explain what "
    "the model reads: of a factor with a mask the mask's volume."
)
_OF_LEAKAGE = (
    "Leakage: R² on held-out subjects of the better of a ridge regression and boosted trees, in five folds. It is "
    "below 0 where the mean of the other folds predicts better, as it does where there is nothing to tell."
)
_OF_CLAMPED = (
    "beta-VAE and FactorVAE score: from groups of scans in which one factor alone varies, how often that factor is "
    "told. As published, they tell a factor that is held fixed. Half of the groups teach, the others are judged."
)
_OF_ROBUSTNESS = (
    "Robustness: by what share the anatomy readouts move (median) when a formula changes the voxels' brightness."
)


def evaluate(
    trained: Trained, table: Path | None = None, *, split: str = "test", seed: int = 0, progress: Progress | None = None
) -> Evaluation:
    """What a trained model is worth on scans: readout, leakage, separation, counterfactuals, reconstruction.

    True counterfactuals are taken from ``counterfactuals.tsv`` beside the table. Without them nothing is said of the
    model's edits: being consistent with oneself is no score, since an edit that does nothing is perfectly so.
    The same model, table and seed give the same evaluation.

    Arguments:
        trained: The model; it is moved to the processor.
        table: A cohort table with the study's columns; None is the study's own. Of a factor without a column or
            without any value the truth is unknown.
        split: ``train``, ``validation`` or ``test``.
        seed: Of folds, permutations and halves.
        progress: Is told how far the work is.

    Raises:
        CohortError: The table is gone or does not fit, the split has no scan, or scans cannot be used.
    """
    progress = progress or Silence()
    material = gathered(trained.study, table, split, progress)
    network, labelled = trained.network.eval(), material.labelled()
    progress.stage("measuring readouts", len(material.cohort))
    found = abducted(network, material.batch)
    estimates = {name: values.double().numpy() for name, values in ranges(trained, found).items()}
    robustness = robustness_of(trained, material, found, lambda: progress.advance(1))
    progress.stage("editing scans", len(material.truths))
    labels = {name: values for name, (_, values) in labelled.items()}
    known = {name: labels.get(name, values[:, 0]) for name, values in estimates.items()}
    edits = edit_scores(trained, material, Crowd(found.q, known, material.subjects), lambda: progress.advance(1))
    progress.stage("comparing maps")
    maps = map_scores(trained, material, lambda: progress.advance(1))
    progress.stage("measuring separation", 3)
    codes = found.q.loc.double().numpy()
    separation = separation_of(codes, network.partition, material, seed, lambda: progress.advance(1))
    progress.stage("drawing")
    read_out = {name: (factor, estimates[name], truth) for name, (factor, truth) in labelled.items()}
    return Evaluation(
        n=len(material.cohort),
        split=split,
        seed=seed,
        readout={name: readout_of(*parts) for name, parts in read_out.items()},
        leakage=separation.leakage,
        leakage_floor=separation.floor,
        leakage_by_labels=separation.by_labels,
        disentanglement=separation.panel,
        counterfactual=edits.scores,
        side_effects=edits.side_effects,
        commutativity=edits.commutativity,
        maps=maps,
        reconstruction=reconstruction_of(network, found),
        robustness=robustness,
        notes=(*material.notes, *_notes(trained, material, edits.scores), *edits.notes, *separation.notes),
        definitions=_definitions(bool(edits.scores), bool(maps), separation),
        pictures=(
            *([("Estimates against the truth; lines are 90 % intervals.", scatter(read_out))] if read_out else []),
            *_pictures(trained, material, edits.typical),
        ),
    )


def _notes(trained: Trained, material: Material, edits: Mapping[str, EditScore]) -> list[str]:
    """What a reader of the figures must know first."""
    labelled = material.labelled()
    unknown = [name for name in trained.network.factors if name not in labelled]
    card = trained.card.factors
    loose = [name for name in labelled if not card[name].calibrated]
    notes = []
    if unknown:
        notes.append(f"Without known values nothing is said of the readout of {listed(unknown)}.")
    if loose:
        notes.append(f"Too few labelled validation scans to calibrate the intervals of {listed(loose)}.")
    constant = [name for name, (_, values) in labelled.items() if np.ptp(values[np.isfinite(values)]) == 0]
    if constant:
        notes.append(f"All scans have the same value of {listed(constant)}, so no R² can be given.")
    if not edits:
        notes.append(
            "Edits were not scored: that takes the true counterfactuals of these scans, and the table comes without. "
            "Being consistent with oneself is no score: an edit that does nothing is perfectly so."
        )
    return notes


def _definitions(evaluated: bool, mapped: bool, separation: Separation) -> tuple[str, ...]:
    """How what was measured was measured."""
    return (
        *(_OF_EDITS if evaluated else ()),
        *([_OF_MAPS] if mapped else []),
        *([_OF_LEAKAGE] if separation.leakage else []),
        *([_OF_CLAMPED] if "factor_vae" in separation.panel else []),
        _OF_ROBUSTNESS,
    )


def _pictures(trained: Trained, material: Material, typical: Mapping[str, int]) -> list[tuple[str, bytes]]:
    """For each edit the scan whose RCE is the median: before, as it should be, as it became."""
    pictures = []
    for edit, row in typical.items():
        truth = next(t for t in material.truths if t.row == row and t.edit == edit)
        scan = read(material.cohort.rows[row].scan)
        made = make(trained, read_batch(trained, [scan])[0], truth)
        rce = trio_of(made, trained.study.scanner.air).rce()
        picture = triple(scan, read(truth.path).voxels, made.result.voxels)
        said = sentence(in_words(edit, trained.network.factors[truth.wish.name].unit))
        pictures.append((f"{said}: the scan with the median error (RCE {fixed(rce, 2)}).", picture))
    return pictures
