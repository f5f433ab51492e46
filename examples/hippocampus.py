"""Train on 195 real hippocampi, explain one of them, and see what happens to a scan that is nothing like them.

    MEDISENT_TEST_DATA=/path/to/data python examples/hippocampus.py [FOLDER] [MINUTES] [SEED]

The factors are the volume of the hippocampus, whose masks are known, and the scanner's brightness, contrast and bias
field, of which nothing is known. Ends in one picture and one table.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

import medisent
from medisent.config import load_study
from medisent.evaluation import evaluate
from medisent.explanations import explain
from medisent.metrics import relative_counterfactual_error
from medisent.training import train

matplotlib.use("Agg")

STUDY = """\
[cohort]
table = "cohort.tsv"
split = "split"

[grid]
spacing_mm = 1.5
shape = [28, 38, 28]

[[factors]]
name = "hippocampal_volume"
role = "anatomy"
kind = "positive"
unit = "mL"
column = "volume_ml"
mask = "mask"

[training]
minutes = {minutes}
seed = {seed}
"""


def write_study(data: Path, folder: Path, minutes: float, seed: int) -> Path:
    """The table and the study of the cohort; every fifth subject validates, every fifth tests."""
    known = pd.read_csv(data / "factors.tsv", sep="\t")
    turns = ["train", "validation", "train", "test", "train"]
    table = pd.DataFrame(
        {
            "scan": [str(data / "images" / name) for name in known["file"]],
            "mask": [str(data / "labels" / name) for name in known["file"]],
            "subject": known["file"].str.removesuffix(".nii.gz"),
            "split": [turns[i % 5] for i in range(len(known))],
            "volume_ml": known["total_mm3"] / 1000,
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "cohort.tsv", sep="\t", index=False)
    (folder / "study.toml").write_text(STUDY.format(minutes=minutes, seed=seed), encoding="utf-8")
    return folder / "study.toml"


def brightened(model: medisent.models.Model, rows: pd.DataFrame) -> tuple[float, float]:
    """By how much the volume's readout moves, at the median and at worst, when a scan is half as bright again."""
    moves = []
    for path in rows["scan"]:
        scan = medisent.read(path)
        before, after = (
            model.explain(scan.with_voxels(scan.voxels * gain)).reading.readouts["hippocampal_volume"].estimate
            for gain in (1.0, 1.5)
        )
        moves.append(abs(after / before - 1))
    return float(np.median(moves)), float(max(moves))


def gained(model: medisent.models.Model, rows: pd.DataFrame) -> tuple[float, float]:
    """The error of an edit of the gain by 1.5, as a share of the true change, at the median and at worst.

    Of this edit the true counterfactual is known without rendering anything: the scan times 1.5.
    """
    errors = []
    for path in rows["scan"]:
        scan = medisent.read(path)
        gain = model.explain(scan).reading.readouts["brightness"].estimate
        edited = model.counterfactual(scan, brightness=1.5 * gain, extrapolate=True)
        errors.append(relative_counterfactual_error(edited.voxels, scan.voxels, 1.5 * scan.voxels))
    return float(np.median(errors)), float(max(errors))


def draw(explanation: medisent.explanations.Explanation, truth: pd.DataFrame, path: Path) -> None:
    """The scan, the factor map, the hippocampus halved and doubled; and readouts against the truth."""
    import matplotlib.pyplot as plt

    scan = explanation.scan.voxels.astype(float)
    change = explanation.maps["hippocampal_volume"].voxels
    edits = {k: v for k, v in explanation.counterfactuals.items() if k.startswith("hippocampal_volume")}
    at = int(np.abs(change).sum((0, 1)).argmax())
    top = float(np.percentile(scan, 99.5))
    figure, axes = plt.subplots(1, 3 + len(edits), figsize=(3.2 * (3 + len(edits)), 3.4), layout="constrained")
    axes[0].imshow(scan[:, :, at].T, cmap="gray", origin="lower", vmin=0, vmax=top)
    axes[0].set_title("a hippocampus")
    limit = float(np.abs(change).max())
    axes[1].imshow(change[:, :, at].T, cmap="RdBu_r", origin="lower", vmin=-limit, vmax=limit)
    axes[1].set_title("factor map, per mL")
    for axis, (name, edited) in zip(axes[2:], edits.items(), strict=False):
        axis.imshow(edited.voxels[:, :, at].T, cmap="gray", origin="lower", vmin=0, vmax=top)
        axis.set_title(f"{name.rsplit('_', 1)[1]} mL")
    for axis in axes[:-1]:
        axis.set_axis_off()
    for split, marker in (("validation", "o"), ("test", "^")):
        rows = truth[truth["split"] == split]
        axes[-1].plot(rows["volume_ml"], rows["estimate"], marker, ms=4, alpha=0.7, label=split)
    ends = [truth["volume_ml"].min(), truth["volume_ml"].max()]
    axes[-1].plot(ends, ends, "k-", lw=0.8)
    axes[-1].set(xlabel="manual, mL", ylabel="read, mL", title="volume")
    axes[-1].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(folder: Path, minutes: float, seed: int) -> None:
    """The whole study."""
    data = Path(os.environ["MEDISENT_TEST_DATA"])
    study = load_study(write_study(data / "hippocampus", folder, minutes, seed))
    trained = train(study, folder / "run")
    model = medisent.load(folder / "run")
    for split in ("validation", "test"):
        scores = evaluate(trained, split=split)
        scores.save(folder / split)
        print(split, scores.to_json()["readout"])
    table = pd.read_csv(folder / "cohort.tsv", sep="\t")
    held = table[table["split"] != "train"].copy()
    held["estimate"] = [model.explain(path).reading.readouts["hippocampal_volume"].estimate for path in held["scan"]]
    median, worst = brightened(model, held[held["split"] == "validation"])
    print(f"scan x1.5: the volume moves by {100 * median:.2f} % at the median, {100 * worst:.2f} % at worst")
    median, worst = gained(model, held[held["split"] == "validation"])
    print(f"gain x1.5: RCE {median:.2g} at the median, {worst:.2g} at worst; doing nothing is 1")
    explanation = model.explain(held["scan"].iloc[0])
    explanation.save(folder / "explanation")
    draw(explanation, held, folder / "hippocampus.png")
    print(explanation.factors.to_string(index=False))
    series = sorted(
        p for p in (data / "pgbm_dicom").rglob("*") if p.is_dir() and any(q.is_file() for q in p.iterdir())
    )[0]
    stranger = explain(trained, medisent.read(series))
    stranger.save(folder / "stranger")
    print("\nA DICOM series of a whole head, which this model has never seen the like of:")
    print("\n".join(stranger.reading.warnings))


if __name__ == "__main__":
    given = dict(enumerate(sys.argv))
    main(Path(given.get(1, "hippocampus")), float(given.get(2, 5.0)), int(given.get(3, 0)))
