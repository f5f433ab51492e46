"""Render heads seen by four scanners, bring them to the reference scanner, and hold them against what it truly shows.

Prints the relative counterfactual error (RCE: doing nothing scores 1) of the model's own reference, and of the mean of
a few scans that the reference scanner made of other people.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

import medisent
from medisent.harmonisation import Target, harmonised_scan, look
from medisent.phantoms import Plan, sample
from medisent.phantoms.cohort import Truth
from medisent.readings import read_factors
from medisent.volumes import Volume

OTHERS = 8


def main() -> None:
    """Render, harmonise, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=40)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--foreign", action="store_true", help="scanners that the model's cannot express")
    asked = parser.parse_args()
    trained = medisent.load("rendered-heads").trained
    plan = Plan(subjects=asked.subjects + OTHERS, seed=asked.seed, foreign=asked.foreign)
    people = [Truth.of(visit, plan) for visit in sample(plan)]
    seen = [Volume(person.scan(), plan.geometry) for person in people]
    settings = [replace(person.visit.acquisition, gain=1.0, gamma=1.0, bias=()) for person in people]
    wanted = [person.scan(setting) for person, setting in zip(people, settings, strict=True)]
    others = [read_factors(trained, Volume(scan, plan.geometry)) for scan in wanted[asked.subjects :]]
    readings = [read_factors(trained, scan) for scan in seen[: asked.subjects]]
    looks = [look(trained, reading.scan, reading) for reading in readings]
    targets = {
        "the model's reference": Target.reference(trained, [one.spread for one in looks if one.known]),
        f"{OTHERS} scans of the reference scanner": Target.like(trained, others),
        "one scan of it": Target.like(trained, others[:1]),
    }
    print(f"{'brought to':38} {'RCE, median':>12} {'RCE, all':>9}")
    print(f"{'nothing done':38} {1:12.3f} {1:9.3f}")
    for name, target in targets.items():
        missed, asked_for = [], []
        for reading, truth in zip(readings, wanted, strict=False):
            result = harmonised_scan(trained, reading, target).voxels
            missed.append(float(np.square(result - truth).sum()))
            asked_for.append(float(np.square(reading.scan.voxels - truth).sum()))
        median = float(np.median(np.array(missed) / np.array(asked_for)))
        print(f"{name:38} {median:12.3f} {sum(missed) / sum(asked_for):9.3f}")


if __name__ == "__main__":
    main()
