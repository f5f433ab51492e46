"""What an explanation says in sentences: the value, whether the scanner matters for it, and how it was found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medisent.checkpoints import Trained
from medisent.explanations.choices import LEVELED, standing
from medisent.plurals import several
from medisent.readings import Reading, Readout
from medisent.reports import Answer, EditCheck
from medisent.rereading import Reread, dependence
from medisent.version import __version__
from medisent.words import amount, edit_decimals, fixed, listed, number, percent, readout_decimals, sentence, words


@dataclass(frozen=True, eq=False)
class Sentences:
    """What is said of one scan.

    Attributes:
        trained: The model.
        reading: What it read.
    """

    trained: Trained
    reading: Reading

    @property
    def first(self) -> Readout:
        """The factor that a reader wants to know first: the first of the anatomy."""
        rows = list(self.reading.readouts.values())
        return next((row for row in rows if row.role == "anatomy"), rows[0])

    def headline(self, rereads: Sequence[Reread] = ()) -> str:
        """One plain sentence: the first anatomy factor, its interval and percentile, and whether brightness matters.

        Arguments:
            rereads: Edited scans that were read again, if they were.
        """
        first = self.first
        text = f"{sentence(first.name)} is {self._shown(first)}"
        if math.isfinite(first.low):
            text += f" ({self._interval(first)})"
        text += f", {standing(first.percentile)}."
        brighter = [found for found in rereads if found.before.name == "brightness" and first.name in found.others]
        if brighter:
            after = brighter[0].others[first.name]
            matters = {"hardly": "hardly matters", "somewhat": "matters somewhat", "much": "matters"}
            text += f" Brightness {matters[dependence(first, after)]} for it: {self._other_scanner(brighter[0])}."
        elif self.trained.network.scanner_names and first.role == "anatomy":
            text += " The brightness of the scanner was taken out before it was read."
        return text

    def _shown(self, readout: Readout) -> str:
        """What was read, in the digits that the interval of the scan's own reading deserves."""
        return self._amount(readout.name, readout.estimate, _decimals(self.reading.readouts[readout.name]))

    def _amount(self, name: str, value: float, decimals: int) -> str:
        factor = self.trained.network.factors[name]
        return factor.show(value) if factor.kind in LEVELED else amount(value, factor.unit, decimals)

    def _interval(self, readout: Readout) -> str:
        low, high = (fixed(end, _decimals(readout)) for end in (readout.low, readout.high))
        return f"{percent(self.trained.card.level)} interval {low} to {high}"

    def asked(self, name: str, value: float) -> tuple[str, int]:
        """From what to what an edit goes, and with how many decimals."""
        before, factor = self.reading.readouts[name], self.trained.network.factors[name]
        if factor.kind in LEVELED:
            return f"{factor.show(before.estimate)} → {factor.show(value)}", 0
        decimals = edit_decimals(before.estimate, value, _decimals(before))
        return f"{fixed(before.estimate, decimals)} → {amount(value, factor.unit, decimals)}", decimals

    def _other_scanner(self, found: Reread) -> str:
        """What is read of the first factor when the scanner is another."""
        ratio = found.asked / found.before.estimate if found.before.estimate else math.nan
        name = words(found.before.name)
        change = f"{number(ratio, 2)} times the {name}" if ratio > 0 else f"{name} {number(found.asked)}"
        return f"with {change} the same scan reads {self._shown(found.others[self.first.name])}"

    def answers(self, rereads: Sequence[Reread]) -> tuple[Answer, ...]:
        """What the value is, and whether the scanner matters for it."""
        first = self.first
        interval = f"{self._interval(first)}; " if math.isfinite(first.low) else ""
        question = f"What is the {words(first.name)}?"
        answers = [
            Answer(question, self._shown(first), (interval + standing(first.percentile)).capitalize() + ".", "info")
        ]
        scanner = [f for f in rereads if f.before.role == "nuisance" and first.name in f.others]
        if scanner:
            worst = max(scanner, key=lambda f: abs(f.others[first.name].estimate - first.estimate))
            extent = dependence(first, worst.others[first.name])
            detail = self._other_scanner(worst)
            answers.append(
                Answer(
                    "Does the scanner matter for it?",
                    {"hardly": "Hardly", "somewhat": "Somewhat", "much": "Yes"}[extent],
                    f"{detail[0].upper()}{detail[1:]}; no other scanner setting moves it more.",
                    "ok" if extent == "hardly" else "warn",
                )
            )
        return tuple(answers)

    def edit_check(self, found: Reread) -> EditCheck:
        """What the page says of an edited scan that was read again."""
        name, moved = found.before.name, found.most_moved
        asked, decimals = self.asked(name, found.asked)
        return EditCheck(
            factor=name,
            role=found.before.role,
            asked=asked,
            read=self._amount(name, found.after.estimate, decimals),
            ruled=self._amount(name, found.ruled, decimals) if math.isfinite(found.ruled) else "",
            moved=f"{words(moved[0])}, by {percent(moved[1])} of its interval's half width" if moved else "",
            found=found.found,
            kept=found.kept,
        )

    def methods(self) -> str:
        """A paragraph to copy into a paper."""
        study, card = self.trained.study, self.trained.card
        counts = {name: entry.calibrated for name, entry in card.factors.items() if entry.calibrated}
        calibrated = (
            f"Intervals were calibrated by split conformal prediction on {several(max(counts.values()), 'subject')} "
            f"({listed(counts)}). "
            if counts
            else "Intervals were not calibrated, for want of labels. "
        )
        return (
            f"The scan was laid on a grid of {' × '.join(map(str, study.grid.shape))} cells of "
            f"{study.grid.spacing_mm:g} mm. The settings of the scanner (gain, contrast exponent, bias field of second "
            "order) were estimated and removed, and the factors of the anatomy read from the resulting canonical scan "
            "by a partitioned variational autoencoder "
            f"(medisent {__version__}, trained on {card.learned_from}). {calibrated}"
            "Counterfactual scans add to the scan what the model says would change, and nothing else: volumes by "
            "moving the surface of a predicted mask, the scanner's factors through the scanner's equation at full "
            "resolution, other factors by the difference of two decodings."
        )


def _decimals(readout: Readout) -> int:
    return readout_decimals(readout.estimate, readout.low, readout.high)
