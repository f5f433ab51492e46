"""What `medisent.metrics.panel` takes at 2,000 scans, 16 latents and 10 factors, with intervals, family by family.

    python examples/benchmarks/panel.py [--rows N] [--kind mixed|discrete|continuous] [--json FILE]

Factors with two to ten levels, or normal ones, or half of each; every factor has a noisy latent of its own, six latents
are noise. Prints processor seconds of each family of the default and of the compatible panel, and of the metrics with
blocks, and their share in a minute of two cores. One thread: OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from medisent.metrics.panel import COMPATIBLE, HONEST, block_family
from medisent.metrics.samples import Sample, sample
from medisent.metrics.scores import Family, scores

LEVELS = (2, 2, 3, 3, 4, 4, 5, 6, 8, 10)
LATENTS = 16
MINUTE = 2 * 60


def material(rows: int, kind: str) -> Sample:
    """Codes and factors."""
    rng = np.random.default_rng(0)
    continuous = rng.normal(size=(rows, len(LEVELS)))
    discrete = np.stack([rng.integers(0, levels, rows) for levels in LEVELS], axis=1).astype(float)
    mixed = np.hstack([continuous[:, :5], discrete[:, ::2]])
    factors = {"mixed": mixed, "discrete": discrete, "continuous": continuous}[kind]
    own = (factors - factors.mean(axis=0)) / factors.std(axis=0) + 0.3 * rng.normal(size=factors.shape)
    return sample(np.hstack([own, rng.normal(size=(rows, LATENTS - len(LEVELS)))]), factors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--kind", choices=["mixed", "discrete", "continuous"], default="mixed")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    data = material(asked.rows, asked.kind)
    names = {f"block {index}": [index] for index in range(len(LEVELS))}
    blocks = {**names, "rest": list(range(len(LEVELS), LATENTS))}
    panels: dict[str, tuple[Family, ...]] = {
        "default": HONEST,
        "with blocks": (block_family(blocks),),
        "compatible": COMPATIBLE,
    }
    found: dict[str, dict[str, float]] = {}
    for panel, families in panels.items():
        found[panel] = {}
        for family in families:
            start = time.process_time()
            scores(family, data, 0, True)
            found[panel][", ".join(family.names)] = round(time.process_time() - start, 2)
            print(f"{panel}: {found[panel][', '.join(family.names)]:.2f} s for {', '.join(family.names)}", flush=True)
        total = sum(found[panel].values())
        print(f"{panel}: {total:.1f} s, {100 * total / MINUTE:.0f} % of a minute of two cores")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
