"""Knows the panel: which metrics there are, and how each gets its interval, floor and ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Shaped

from medisent.errors import UsageError
from medisent.metrics import compatibility as compatible
from medisent.metrics.blocks import block_scores, checked_blocks, halved_block_scores
from medisent.metrics.correlations import correlation_scores, gaussian_tc_score, irs_score
from medisent.metrics.importances import dci_scores
from medisent.metrics.information import information_scores
from medisent.metrics.probes import linear_scores, sap_svm_score
from medisent.metrics.samples import sample
from medisent.metrics.scores import Family, Score, scores

Table = Shaped[np.ndarray, "_n _columns"] | pd.DataFrame


def panel(
    codes: Shaped[np.ndarray, "_n _latents"] | pd.DataFrame,
    factors: Shaped[np.ndarray, "_n _factors"] | pd.DataFrame,
    *,
    seed: int = 0,
    codes_test: Shaped[np.ndarray, "_m _latents"] | pd.DataFrame | None = None,
    factors_test: Shaped[np.ndarray, "_m _factors"] | pd.DataFrame | None = None,
    groups: Shaped[np.ndarray, " subjects"] | None = None,
    compatibility: bool = False,
    intervals: bool = True,
    blocks: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Score]:
    """Every metric of separation with its 95 % interval, floor and ceiling, by name.

    Factors with few values are discrete, with many continuous; an unknown label (not a number) leaves that scan out of
    that factor; a factor that never varies is left out. Intervals come from halves of the subjects, see
    `scores.half_sample_interval`: 40 of them where that is cheap, 16 for the linear probes, 8 for SAP by SVM and for
    DCI.

    Args:
        codes: The latents, one row a scan, one column a latent.
        factors: The factors, one row a scan, one column a factor; text columns of a DataFrame are nominal factors.
        seed: Of folds, permutations and halves. The same input and seed give the same scores.
        codes_test: Further rows. The compatible metrics test on them, the others, which cross-fit, take them as more
            rows.
        factors_test: The factors of these rows.
        groups: The subject of each row, of the test rows too where there are any; rows of one subject are never torn
            apart.
        compatibility: Compute as disentanglement_lib (mean codes; 20 equal-width bins; MIG, modularity, explicitness,
            SAP, DCI, IRS, Gaussian TC) and the authors of InfoMEC do. DCI then takes minutes, has no interval, and its
            floor and ceiling are those of 1,000 rows.
        intervals: Whether to compute intervals; else low and high are the ends of the metric's range.
        blocks: The columns of each block of a partition; adds scores with blocks in the place of latents, named
            ``block_...``, since a factor that two latents share has MIG 0 by definition.

    Raises:
        UsageError: The tables do not fit together, codes are not finite, or there is nothing to score.
    """
    rows, labels, test = _stacked(codes, factors, codes_test, factors_test)
    people = _with_test_rows(groups, test) if groups is not None else None
    data = sample(rows, labels, people, test)
    families = COMPATIBLE if compatibility else HONEST
    if blocks:
        checked_blocks(blocks, data.codes.shape[1])
        families = (*families, block_family(blocks))
    found: dict[str, Score] = {}
    for family in families:
        found.update(scores(family, data, seed, intervals))
    return found


def _stacked(
    codes: Table, factors: Table, codes_test: Table | None, factors_test: Table | None
) -> tuple[np.ndarray, Table, np.ndarray]:
    """Training and test rows one above the other, and which are test rows."""
    if (codes_test is None) != (factors_test is None):
        raise UsageError("Test codes and test factors come together; one of them is missing.")
    first = np.asarray(codes)
    if codes_test is None or factors_test is None:
        return first, factors, np.zeros(len(first), dtype=bool)
    second = np.asarray(codes_test)
    if first.shape[1:] != second.shape[1:] or np.shape(factors)[1:] != np.shape(factors_test)[1:]:
        raise UsageError(
            f"Test rows have {second.shape[1:]} latents and {np.shape(factors_test)[1:]} factors, training rows "
            f"{first.shape[1:]} and {np.shape(factors)[1:]}; give the same columns."
        )
    labels = pd.concat([pd.DataFrame(factors), pd.DataFrame(factors_test)], ignore_index=True)
    return np.concatenate([first, second]), labels, np.arange(len(first) + len(second)) >= len(first)


def _with_test_rows(groups: Shaped[np.ndarray, " subjects"], test: np.ndarray) -> np.ndarray:
    """The subject of every row; test rows without a group are subjects of their own."""
    index = pd.factorize(np.asarray(groups))[0]
    if len(index) == (~test).sum():
        index = np.concatenate([index, index.max() + 1 + np.arange(int(test.sum()))])
    return index


def block_family(blocks: Mapping[str, Sequence[int]]) -> Family:
    """The metrics with these blocks in the place of latents."""
    columns = tuple(tuple(int(column) for column in block) for block in blocks.values())
    names = ("block_dci_disentanglement", "block_dci_completeness", "block_infom", "block_infoc", "block_mig")
    return Family(
        names,
        lambda data, rng: block_scores(data, columns, rng),
        halves=40,
        shuffles=1,
        halved=lambda data, rng, halves: halved_block_scores(data, columns, rng, halves),
    )


HONEST: tuple[Family, ...] = (
    Family(("infom", "infoc", "mig", "modularity"), information_scores, halves=40, shuffles=5),
    Family(("infoe", "explicitness"), linear_scores, halves=16, shuffles=2),
    Family(("dci_disentanglement", "dci_completeness", "dci_informativeness"), dci_scores, halves=8, shuffles=1),
    Family(("mcc", "sap_r2"), correlation_scores, halves=40, shuffles=5),
    Family(("sap_svm",), sap_svm_score, halves=8, shuffles=1),
    Family(("irs",), irs_score, halves=40, shuffles=3),
    Family(("gaussian_tc",), gaussian_tc_score, halves=40, shuffles=5, floor="codes", better="less"),
)
"""Held out wherever a predictor or a histogram is fitted. A new metric is a function and its row here."""

COMPATIBLE: tuple[Family, ...] = (
    Family(("infom", "infoc"), compatible.infomec_scores, halves=6, shuffles=1),
    Family(("infoe",), compatible.infoe_score, halves=6, shuffles=1),
    Family(
        ("dci_disentanglement", "dci_completeness", "dci_informativeness"),
        compatible.dci_scores,
        halves=0,
        shuffles=1,
        most_rows=1000,
    ),
    Family(("mcc",), compatible.mcc_score, halves=20, shuffles=3),
    Family(("sap_r2",), compatible.sap_r2_score, halves=20, shuffles=3),
    Family(("sap_svm",), compatible.sap_svm_score, halves=8, shuffles=1),
    Family(("mig", "modularity"), compatible.information_scores, halves=10, shuffles=2),
    Family(("explicitness",), compatible.explicitness_score, halves=8, shuffles=1),
    Family(("irs",), compatible.irs_score, halves=20, shuffles=3),
    Family(("gaussian_tc",), compatible.gaussian_tc_score, halves=20, shuffles=3, floor="codes", better="less"),
)
"""As the libraries compute them, with their pitfalls."""
