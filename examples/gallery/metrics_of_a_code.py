"""Score three codes: one that keeps factors apart, one that mixes them, one that is noisy.

python examples/gallery/metrics_of_a_code.py metrics_of_a_code.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import medisent

SHOWN = ("infom", "infoc", "infoe", "mig", "mcc", "modularity")


def main(picture: Path) -> None:
    """Each score with its interval, beside what a perfect code (ceiling) and chance (floor) score on as many scans."""
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(150, 3))
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    codes = {
        "apart": factors + 0.1 * rng.normal(size=factors.shape),
        "mixed": factors @ rotation,
        "noisy": factors + rng.normal(size=factors.shape),
    }
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axis = figure.subplots()
    for number, (name, code) in enumerate(codes.items()):
        scores = medisent.metrics.panel(code, factors, seed=0)
        chosen = [scores[metric] for metric in SHOWN]
        print(name, {metric: round(score.value, 2) for metric, score in zip(SHOWN, chosen, strict=True)})
        at = np.arange(len(SHOWN)) + 0.25 * (number - 1)
        values = np.array([score.value for score in chosen])
        reach = np.clip([[s.value - s.low for s in chosen], [s.high - s.value for s in chosen]], 0, None)
        axis.bar(at, values, 0.22, yerr=reach, label=name)
        if number == 0:
            for x, score in enumerate(chosen):
                axis.plot([x - 0.4, x + 0.4], [score.ceiling] * 2, "k-", label="perfect code" if x == 0 else None)
                axis.plot([x - 0.4, x + 0.4], [score.floor] * 2, "k:", label="chance" if x == 0 else None)
    axis.set_xticks(range(len(SHOWN)), SHOWN)
    axis.set_ylim(0, 1.3)
    axis.legend(ncols=5, loc="upper center", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
