"""What the figures of an evaluation are called, and in how many digits they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from medisent.words import MISSING, fixed, known, measured, number, percent, small

FURTHER = {
    "off_target_ml": "What an edit does to other structures",
    "commutativity": "Two edits in either order",
    "maps": "Maps against what truly changes",
    "robustness": "Robustness of the anatomy readouts",
    "leakage_floor": "Leakage by chance",
    "leakage_by_labels": "Leakage that the labels alone explain",
}
COLUMNS = {
    "r2": "R²",
    "mae": "Mean absolute error",
    "coverage90": "Truth inside the 90 % interval",
    "rce": "RCE",
    "effect_error": "Effect error",
    "off_target": "Off target",
    "rce_inside": "RCE inside",
    "rce_outside": "RCE outside",
    "effect": "Effect",
    "asked": "Asked",
    "missed": "Missed",
    "unit": "Unit",
    "cld": "CLD",
    "ncc": "Factor map",
    "ncc_edit": "The whole edit",
    "integrated_gradients": "Integrated gradients",
    "occlusion": "Occlusion",
    "ml": "mL, median",
    "most_ml": "mL, most",
    "composition": "Composition",
    "reversibility": "Reversibility",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "noop": "An empty map",
    "n": "Scans",
    "n_beside": "With gradients",
    "failed": "Not possible",
}
METRICS = {
    "infom": "modularity: each latent carries one factor",
    "infoc": "compactness: each factor sits in one latent",
    "infoe": "explicitness: a simple readout finds the factor",
    "dci_disentanglement": "each latent matters for one factor",
    "dci_completeness": "each factor needs one latent",
    "dci_informativeness": "the factors can be read from the code",
    "mcc": "latents and factors correlate one to one",
    "sap_r2": "gap between a factor's best and second latent, by R²",
    "sap_svm": "gap between a factor's best and second latent, by classifier",
    "mig": "gap between a factor's best and second latent, by information",
    "modularity": "each latent informs about one factor",
    "explicitness": "a linear classifier finds the factor",
    "irs": "a latent stays put when other factors move",
    "gaussian_tc": "dependence between latents, in nats; lower is better",
    "beta_vae": "which factor alone varies can be told from pairs of codes",
    "factor_vae": "the factor that alone varies is the latent that moves most",
    "unfairness": "predictions differ between groups; lower is better",
}

_WITH_UNIT = ("mae", "asked", "missed")
_AT_LEAST = {
    "composition": 3,
    "reversibility": 3,
    "off_target": 3,
    "rce_inside": 3,
    "rce_outside": 3,
    "ml": 2,
    "most_ml": 2,
}
"""Decimals of columns in which small figures are said to be small."""

_DECIMALS = {
    **{"r2": 3, "rce": 2, "ssim": 3, "psnr": 1, "effect": 2, "cld": 2},
    **dict.fromkeys(("ncc", "ncc_edit", "integrated_gradients", "occlusion", "noop"), 2),
}
_SECTION_DECIMALS = {"leakage_floor": 2, "leakage_by_labels": 2, "commutativity": 3}
_SHARES = ("robustness",)


def figure(key: str, value: object, unit: object = "") -> str:
    """The figure in the digits that columns of this name are given."""
    if isinstance(value, Mapping) and known(value.get("low")) is not None and not _is_share(key):
        return measured(value, _DECIMALS.get(key, 0))
    if isinstance(value, Mapping):
        value = value.get("value")
    found = known(value)
    if found is None:
        return number(value)
    if _is_share(key):
        return percent(found, 0 if key.startswith("coverage") else 1)
    if key in _WITH_UNIT:
        return f"{number(found, 2)} {unit or ''}".rstrip()
    if key in _AT_LEAST:
        return small(found, _AT_LEAST[key])
    return fixed(found, _DECIMALS[key]) if key in _DECIMALS else number(found)


def _is_share(key: str) -> bool:
    return key.startswith("coverage") or key == "effect_error"


def way(section: str) -> Callable[[object], str] | None:
    """How the figures of a section are written, where they are all of one kind."""
    if section in _SHARES:
        return lambda value: percent(value, 1)
    if section in _SECTION_DECIMALS:
        decimals = _SECTION_DECIMALS[section]
        return lambda value: MISSING if (found := known(value)) is None else fixed(found, decimals)
    return None
