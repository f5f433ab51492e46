"""Measure edits with a ruler that is no model, on the rendered heads of `medisent demo`.

    python examples/measure_edits.py demo/run [SUBJECTS] [SEED]

The ruler knows each person and scanner, and asks how large a tumour, or the ventricles, the edited scan shows. Prints
the median error of the change asked for, what the ruler says of the true counterfactual beside it, and how many mL the
other structure moves, which the edit should leave alone.
"""

from __future__ import annotations

import sys

import numpy as np

import medisent
from medisent.errors import MedisentError
from medisent.phantoms.cohort import Truth
from medisent.phantoms.ruler import Ruler
from medisent.phantoms.sampling import Plan, sample
from medisent.volumes import Volume


def main(run: str, subjects: int, seed: int) -> None:
    """Both edits on every test subject."""
    model = medisent.load(run)
    plan = Plan(subjects=subjects, seed=seed)
    errors: dict[str, list[tuple[float, ...]]] = {"tumour_volume": [], "ventricle_volume": []}
    for visit in sample(plan):
        if visit.split != "test":
            continue
        truth = Truth.of(visit, plan)
        scan = Volume(truth.scan(), plan.geometry)
        ruler = Ruler.of(visit.anatomy, plan.geometry, visit.acquisition)
        readouts = model.explain(scan).reading.readouts
        for name, asked in (("tumour_volume", 15.0), ("ventricle_volume", 0.6 * truth.ventricle_ml)):
            measures = ruler.tumour_ml, ruler.ventricle_ml
            measure, elsewhere = measures if name == "tumour_volume" else measures[::-1]
            try:
                other = (
                    truth.with_tumour(truth.tumour_ml + asked)
                    if name == "tumour_volume"
                    else truth.with_ventricles(truth.ventricle_ml + asked)
                )
                edited = model.counterfactual(scan, extrapolate=True, **{name: readouts[name].estimate + asked})
            except MedisentError as refusal:
                print(f"subject {visit.subject}: {refusal}")
                errors[name].append((-1.0, 0.0, 0.0, 0.0))
                continue
            before, after, true = measure(scan.voxels), measure(edited.voxels), measure(other.scan())
            # Against the truth: what a tumour covers of the ventricles does not count against the model.
            aside = elsewhere(edited.voxels).ml - elsewhere(other.scan()).ml
            errors[name].append(
                ((after.ml - before.ml) / asked - 1, (true.ml - before.ml) / asked - 1, after.explained, aside)
            )
    for name, found in errors.items():
        share, true, explained, aside = np.array(found).T
        print(
            f"{name}: {len(found)} edits; median |error| {100 * np.median(np.abs(share)):.1f} %, "
            f"median error {100 * np.median(share):+.1f} %; "
            f"on true counterfactuals {100 * np.median(np.abs(true)):.1f} %; "
            f"tissue explains {np.median(explained):.2f}; "
            f"the other structure moves by {np.median(np.abs(aside)):.2f} mL"
        )


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[2:4]]
    main(sys.argv[1], *(numbers + [400, 0][len(numbers) :]))
