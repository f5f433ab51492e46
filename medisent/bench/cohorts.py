"""Knows the cohorts of the benchmark: which heads are rendered, and in which tables they are trained on and judged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medisent.bench.claims import claimed, wait_for
from medisent.cohorts import read_table
from medisent.evaluation.material import TRUTHS
from medisent.files import write_text
from medisent.phantoms import write_cohort
from medisent.phantoms.cohort import LABELS
from medisent.progress import Progress

TABLE = "cohort.tsv"
_PATHS = ("scan", "tumour_mask", "ventricle_mask", "counterfactual")


@dataclass(frozen=True)
class Rendering:
    """How a cohort is rendered.

    Attributes:
        seed: Of its heads and scanners; another seed is other people and other scanners.
        share: How many heads, relative to what the benchmark was asked for.
        confound: Correlation of log tumour volume and log gain.
        travelling: Share of the heads that every scanner sees.
        clamped: How many clamped groups of four each factor has, and how many groups of four people are alike in all of
            them, relative to the heads.
        pairs: Share of the heads that are pairs.
        foreign: Whether its scanners are of a family that the model cannot express.
        judged: Whether every head is for testing, with true counterfactuals.
    """

    seed: int
    share: float = 1.0
    confound: float = 0.0
    travelling: float = 0.0
    clamped: float = 0.0
    pairs: float = 0.0
    foreign: bool = False
    judged: bool = False


RENDERINGS = {
    "plain": Rendering(seed=0),
    "held": Rendering(seed=101, share=0.25, judged=True),
    "confounded": Rendering(seed=102, confound=0.8),
    "opposite": Rendering(seed=103, share=0.25, confound=-0.8, judged=True),
    "travelling": Rendering(seed=104, share=0.5, travelling=0.25),
    "foreign": Rendering(seed=105, share=0.5, foreign=True),
    "clamped": Rendering(seed=106, share=2.0, clamped=0.07),
    "pairs": Rendering(seed=107, share=0.5, pairs=0.4),
}


@dataclass(frozen=True)
class Cohorts:
    """The cohorts in a folder, each rendered when it is first asked for.

    Attributes:
        folder: Where they are.
        subjects: How many heads a cohort of share 1 has.
        spacing_mm: Of their voxels.
        side: Voxels along each axis.
    """

    folder: Path
    subjects: int
    spacing_mm: float = 6.0
    side: int = 32

    def table(self, name: str, progress: Progress) -> Path:
        """The table of a cohort: one of ``RENDERINGS``, or a table that is made from those.

        ``missing`` is ``plain`` without half of its labels. ``mixed``, to train on, holds one foreign scanner's heads
        among the ordinary ones; ``far``, to judge on, other heads of that very scanner.
        """
        path = self.folder / name / TABLE
        ready, lock = self.folder / f"{name}.ready", self.folder / f"{name}.lock"
        while not ready.is_file():
            with claimed(lock) as mine:
                if mine and not ready.is_file():
                    self._make(name, progress)
                    write_text(ready, f"{self.subjects} heads asked for\n")
            if not mine:
                wait_for(lock)
        return path

    def _make(self, name: str, progress: Progress) -> None:
        if name in ("mixed", "far"):
            self._share_out(progress)
            return
        if name == "missing":
            self._forget(progress)
            return
        plan = RENDERINGS[name]
        count = max(12, round(self.subjects * plan.share))
        table = write_cohort(
            self.folder / name,
            subjects=count,
            seed=plan.seed,
            spacing_mm=self.spacing_mm,
            shape=(self.side, self.side, self.side),
            confound=plan.confound,
            travelling=round(count * plan.travelling),
            clamped=round(count * plan.clamped),
            clamped_size=4,
            alike=round(count * plan.clamped),
            pairs=round(count * plan.pairs),
            foreign=plan.foreign,
            counterfactuals=plan.judged or plan.foreign,
            progress=progress,
        )
        if plan.judged:
            _write(read_table(table).assign(split="test"), table)

    def _forget(self, progress: Progress) -> None:
        """Empty half of the cells of each label, with its mask, outside the test split."""
        plain = self.table("plain", progress)
        rows, chance = _elsewhere(plain), np.random.default_rng(108)
        for names in LABELS:
            rows.loc[(chance.random(len(rows)) < 0.5) & (rows["split"] != "test"), list(names)] = ""
        _write(rows, self.folder / "missing" / TABLE)
        study = plain.with_name("study.toml").read_text(encoding="utf-8")
        write_text(self.folder / "missing" / "study.toml", study)

    def _share_out(self, progress: Progress) -> None:
        """Deal the heads of one foreign scanner to both tables: those with counterfactuals are judged."""
        plain, foreign = self.table("plain", progress), self.table("foreign", progress)
        ordinary, seen = _elsewhere(plain), _elsewhere(foreign)
        seen = seen[seen["site"] == "site-1"].assign(site="site-foreign")
        seen["subject"] = "foreign-" + seen["subject"]
        learned = seen[seen["split"] == "train"]
        learned = learned[: (len(seen) + 1) // 2]
        judged = seen.drop(learned.index).assign(split="test")
        _write(pd.concat([ordinary[ordinary["split"] != "test"], learned]), self.folder / "mixed" / TABLE)
        _write(judged, self.folder / "far" / TABLE)
        _write(_elsewhere(foreign.with_name(TRUTHS)), self.folder / "far" / TRUTHS)


def _elsewhere(table: Path) -> pd.DataFrame:
    """A table whose paths hold from a neighbouring folder."""
    rows = read_table(table)
    for name in _PATHS:
        if name in rows.columns:
            rows[name] = rows[name].map(lambda path: f"../{table.parent.name}/{path}" if path else path)
    return rows


def _write(rows: pd.DataFrame, path: Path) -> None:
    write_text(path, rows.to_csv(sep="\t", index=False, lineterminator="\n"))
