"""The page that says what is known of a model: scores with interval, floor and ceiling, edits beside doing nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medisent.reports.figures import Bar, bar, share_of
from medisent.reports.pages import data_uri, rendered
from medisent.reports.words import MISSING, decimals_for, fixed, known, measured, number, percent, sentence, words

SECTIONS = ("readout", "counterfactual", "leakage", "disentanglement", "reconstruction")
DETAILS = ("rce_inside", "rce_outside", "effect", "asked", "missed", "unit", "n", "failed")
"""Columns of edits that stand in a table of their own."""

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
    "beta_vae": "the factor that two scans share can be told from their codes",
    "factor_vae": "the factor that scans share is their steadiest latent",
    "unfairness": "predictions differ between groups; lower is better",
}


@dataclass(frozen=True)
class Table:
    """Figures under heads, one row a name."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Edit:
    """What an edit scores, and what doing nothing scores in its place; ``shares`` are bars from 0 to 1."""

    name: str
    figures: tuple[str, ...]
    nothing: tuple[str, ...]
    shares: tuple[float | None, float]
    better: bool | None


@dataclass(frozen=True)
class Edits:
    """The table of counterfactuals."""

    heads: tuple[str, ...]
    rows: tuple[Edit, ...]


@dataclass(frozen=True)
class Heat:
    """How well each block tells each factor; cells are text, shade from 0 to 1, and whether the two belong together."""

    factors: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, float, bool], ...]], ...]


@dataclass(frozen=True)
class ScoreRow:
    """A score in words and as a bar."""

    name: str
    meaning: str
    value: str
    interval: str
    floor: str
    ceiling: str
    bar: Bar


@dataclass(frozen=True)
class Headline:
    """One of the few figures that matter most: the figure, what it is, and what to hold it against."""

    figure: str
    what: str
    against: str


@dataclass(frozen=True)
class EvaluationPage:
    """Everything the template shows."""

    title: str
    n: str
    headlines: tuple[Headline, ...]
    notes: tuple[str, ...]
    definitions: tuple[str, ...]
    readout: Table | None
    edits: Edits | None
    details: Table | None
    leakage: Heat | None
    scores: tuple[ScoreRow, ...]
    reconstruction: Table | None
    further: tuple[tuple[str, Table], ...]
    pictures: tuple[tuple[str, str], ...]


def evaluation_page(
    evaluation: Mapping[str, Any],
    *,
    title: str,
    notes: Sequence[str],
    definitions: Sequence[str] = (),
    pictures: Sequence[tuple[str, bytes]] = (),
) -> str:
    """One HTML page about one model.

    Args:
        evaluation: What evaluation.json holds. Effect errors and coverages are shares. A figure may be a number or a
            mapping with value, low and high. Sections that are not known here are shown as plain tables.
        title: What was measured.
        notes: What a reader must know first.
        definitions: How the figures were measured.
        pictures: Captions and PNG files.
    """
    readout, edits, leakage, scores, reconstruction = (_section(evaluation, name) for name in SECTIONS)
    facts = EvaluationPage(
        title=title,
        n=number(evaluation.get("n")),
        headlines=tuple(_headlines(readout, edits, leakage, _section(evaluation, "maps"))),
        notes=tuple(notes),
        definitions=tuple(definitions),
        readout=_table(readout) if readout else None,
        edits=_edits(edits) if edits else None,
        details=_details(edits),
        leakage=_heat(leakage) if leakage else None,
        scores=tuple(_score(name, score) for name, score in scores.items()),
        reconstruction=_table({"all scans": reconstruction}) if reconstruction else None,
        further=tuple(_further(evaluation)),
        pictures=tuple((caption, data_uri(png)) for caption, png in pictures),
    )
    return rendered("evaluation", (), facts)


def _headlines(
    readout: Mapping[str, Any], edits: Mapping[str, Any], leakage: Mapping[str, Any], maps: Mapping[str, Any]
) -> Iterator[Headline]:
    """How well factors are read, how near edits come to the truth, what leaks most, and how good the maps are."""
    r2 = {name: found for name, row in readout.items() if (found := _part(row, "r2")) is not None}
    if r2:
        worst = min(r2, key=lambda name: r2[name])
        yield Headline(fixed(r2[worst], 2), "R² of the least well read factor", words(worst))
    rce = {edit: found for edit, row in edits.items() if (found := _part(row, "rce")) is not None}
    if rce:
        worst = max(rce, key=lambda edit: rce[edit])
        yield Headline(fixed(rce[worst], 2), "RCE of the worst edit; doing nothing scores 1", words(worst))
    leaks = {
        (block, name): found
        for block, row in leakage.items()
        if isinstance(row, Mapping)
        for name in row
        if name != block and (found := _part(row, name)) is not None
    }
    if leaks:
        block, name = max(leaks, key=lambda pair: leaks[pair])
        yield Headline(fixed(leaks[block, name], 2), "R² of the largest leak", f"{words(name)} from {words(block)}")
    ncc = {name: found for name, row in maps.items() if (found := _part(row, "ncc")) is not None}
    if ncc:
        worst = min(ncc, key=lambda name: ncc[name])
        against = _part(maps[worst], "integrated_gradients")
        beside = "" if against is None else f"; integrated gradients {fixed(against, 2)}"
        yield Headline(fixed(ncc[worst], 2), "correlation of the worst map with the true change", words(worst) + beside)


def _part(row: object, key: str) -> float | None:
    """A figure of a row, where there is one."""
    return _middle(row.get(key)) if isinstance(row, Mapping) else None


def _section(evaluation: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = evaluation.get(name)
    return found if isinstance(found, Mapping) else {}


def _figure(key: str, value: object) -> str:
    """The figure in the digits that columns of this name are given."""
    if isinstance(value, Mapping) and known(value.get("low")) is not None and not _is_share(key):
        return measured(value)
    if isinstance(value, Mapping):
        value = value.get("value")
    found = known(value)
    if found is None:
        return number(value)
    if _is_share(key):
        return percent(found, 0 if key.startswith("coverage") else 1)
    decimals = {"r2": 3, "rce": 3, "ssim": 3, "psnr": 1}.get(key)
    return number(found) if decimals is None else fixed(found, decimals)


def _is_share(key: str) -> bool:
    return key.startswith("coverage") or key == "effect_error"


def _keys(rows: Mapping[str, Any]) -> list[str]:
    """Names of columns: those known here first and in their order, then others as they come."""
    present = dict.fromkeys(key for row in rows.values() if isinstance(row, Mapping) for key in row)
    return [key for key in COLUMNS if key in present] + [key for key in present if key not in COLUMNS]


def _head(key: str) -> str:
    return COLUMNS.get(key, sentence(key))


def _table(rows: Mapping[str, Any]) -> Table:
    keys = _keys(rows)
    if not keys:
        return Table(("Value",), tuple((words(name), (measured(value),)) for name, value in rows.items()))
    body = []
    for name, row in rows.items():
        figures = row if isinstance(row, Mapping) else {}
        body.append((words(name), tuple(_figure(key, figures.get(key)) for key in keys)))
    return Table(tuple(_head(key) for key in keys), tuple(body))


def _edits(rows: Mapping[str, Any]) -> Edits:
    """Every edit beside doing nothing, which scores an RCE of 1 by definition and is never left out."""
    known_keys = (key for key in _keys(rows) if key not in DETAILS and not key.endswith("_noop"))
    keys = ["rce", *(key for key in known_keys if key != "rce")]
    end = max([1.15, *(_middle(row.get("rce")) or 0 for row in rows.values() if isinstance(row, Mapping))])
    edits = []
    for name, row in rows.items():
        figures = row if isinstance(row, Mapping) else {}
        rce, nothing = _middle(figures.get("rce")), _middle(figures.get("rce_noop"))
        nothing = 1.0 if nothing is None else nothing
        still = {key: figures.get(f"{key}_noop") for key in keys} | {"rce": nothing}
        edits.append(
            Edit(
                name=words(name),
                figures=tuple(_figure(key, figures.get(key)) for key in keys),
                nothing=tuple(_figure(key, still[key]) for key in keys),
                shares=(share_of(rce, end), share_of(nothing, end) or 0.0),
                better=None if rce is None else rce < nothing,
            )
        )
    return Edits(tuple(_head(key) for key in keys), tuple(edits))


def _details(rows: Mapping[str, Any]) -> Table | None:
    """What else is known of edits: where the error lies, and the effect in the factor's unit."""
    kept = {
        name: {key: row[key] for key in DETAILS if key in row} for name, row in rows.items() if isinstance(row, Mapping)
    }
    return _table(kept) if any(kept.values()) else None


def _middle(value: object) -> float | None:
    return known(value.get("value") if isinstance(value, Mapping) else value)


def _heat(rows: Mapping[str, Any]) -> Heat:
    blocks = {block: row for block, row in rows.items() if isinstance(row, Mapping)}
    factors = list(dict.fromkeys(name for row in blocks.values() for name in row))
    body = []
    for block, row in blocks.items():
        cells = []
        for name in factors:
            value = _middle(row.get(name))
            text = MISSING if value is None else fixed(value, 2)
            cells.append((text, round(share_of(value, 1.0) or 0.0, 3), block == name))
        body.append((words(block), tuple(cells)))
    return Heat(tuple(words(name) for name in factors), tuple(body))


def _score(name: str, score: object) -> ScoreRow:
    figures = score if isinstance(score, Mapping) else {"value": score}
    low, high = known(figures.get("low")), known(figures.get("high"))
    decimals = min(3, max(2, decimals_for(low, high) or 0))

    def write(value: object) -> str:
        found = known(value)
        return MISSING if found is None else fixed(found, decimals)

    return ScoreRow(
        name=words(name),
        meaning=METRICS.get(name, ""),
        value=write(figures.get("value")),
        interval=f"{write(low)} to {write(high)}" if low is not None and high is not None else MISSING,
        floor=write(figures.get("floor")),
        ceiling=write(figures.get("ceiling")),
        bar=bar(figures),
    )


def _flat(rows: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rows, those inside of rows brought out: what an edit does to a structure is one row."""
    if not all(
        isinstance(row, Mapping) and row and all(isinstance(p, Mapping) for p in row.values()) for row in rows.values()
    ):
        return rows
    return {f"{name}: {words(inner)}": part for name, row in rows.items() for inner, part in row.items()}


def _further(evaluation: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """Tables of what the evaluation holds beyond the sections that are explained here."""
    tables, single = [], {}
    for name, value in evaluation.items():
        if name in (*SECTIONS, "schema", "n"):
            continue
        if isinstance(value, Mapping) and value:
            tables.append((FURTHER.get(name, sentence(name)), _table(_flat(value))))
        elif isinstance(value, (str, int, float)):
            single[name] = value
    return [*tables, *([("Other figures", _table(single))] if single else [])]
