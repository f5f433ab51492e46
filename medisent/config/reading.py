"""From text to settings and back, and what to say about a line that cannot be meant."""

from __future__ import annotations

import json
import keyword
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

import tomli_w
from pydantic import ConfigDict, TypeAdapter, ValidationError

from medisent.config.lines import Where, lines_of
from medisent.config.settings import (
    CohortSettings,
    Gate,
    NetworkSettings,
    ObjectiveSettings,
    ScannerSettings,
    Study,
    Supervision,
    TrainingSettings,
    Weights,
)
from medisent.errors import StudyError
from medisent.factors import FACTOR_TYPES, SCANNER_FACTORS, Factor
from medisent.grids import Grid

_MOST_CELLS = 1 << 27
# What would steer a terminal, or turn the order of letters about.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_LONGEST_NAME = 100  # it becomes part of the names of files
RESERVED_NAMES = ("scan", "anatomy", "nuisance", "anatomy_rest", "nuisance_rest", "extrapolate")


@runtime_checkable
class Adapter(Protocol):
    """What is used of pydantic's ``TypeAdapter``."""

    def validate_json(self, data: str, /) -> Any: ...  # noqa: ANN401
    def json_schema(self) -> dict[str, Any]: ...


_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
# Lists of one: settings given to a list's adapter hold for the plain dataclasses inside it.
TABLES: dict[str, Adapter] = {
    "cohort": TypeAdapter(list[CohortSettings], config=_STRICT),
    "grid": TypeAdapter(list[Grid], config=_STRICT),
    "scanner": TypeAdapter(list[ScannerSettings], config=_STRICT),
    "training": TypeAdapter(list[TrainingSettings], config=_STRICT),
    "network": TypeAdapter(list[NetworkSettings], config=_STRICT),
    "weights": TypeAdapter(list[Weights], config=_STRICT),
    "objective": TypeAdapter(list[ObjectiveSettings], config=_STRICT),
    "gate": TypeAdapter(list[Gate], config=_STRICT),
}
FACTORS: dict[str, Adapter] = {
    kind: TypeAdapter(list[factor], config=_STRICT)  # type: ignore[valid-type]
    for kind, factor in FACTOR_TYPES.items()
}
SUPERVISION: Adapter = TypeAdapter(list[Supervision], config=_STRICT)
SECTIONS = (
    "cohort",
    "grid",
    "scanner",
    "factors",
    "supervision",
    "training",
    "network",
    "weights",
    "objective",
    "gate",
)


def load_study(path: Path) -> Study:
    """The study that a file describes, its table found relative to the file.

    Raises:
        StudyError: The file is missing, is not TOML, or says something that cannot be meant.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StudyError(f"There is no study file {path}. Write one with: medisent init COHORT.tsv -o {path}") from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise StudyError(f"{path} is not a study file, which is text in TOML. Name the file itself.") from None
    study = parse_study(text, path.name)
    return replace(study, cohort=replace(study.cohort, table=(path.parent / study.cohort.table).resolve()))


def parse_study(text: str, origin: str) -> Study:
    """The study that a text in TOML describes.

    Args:
        text: The study.
        origin: What to call it in messages.

    Raises:
        StudyError: The text is not TOML, or says something that cannot be meant; names the line.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyError(_syntax_fault(text, origin, error)) from None
    except RecursionError:
        raise StudyError(f"{origin} nests brackets too deeply for a study.") from None
    if (odd := next((word for word in _words(data) if _CONTROL.search(word)), None)) is not None:
        raise StudyError(f"{origin} has control characters in {odd[:60]!a}. Leave them out.")
    reader = _Reader(origin, lines_of(text))
    reader.check_sections(data)
    tables = {name: reader.table(name, data[name]) for name in TABLES if name in data}
    for needed in ("cohort", "grid"):
        if needed not in tables:
            raise StudyError(f"{origin} has no section [{needed}], which a study needs.")
    factors = tuple(reader.factor(i, item) for i, item in enumerate(data.get("factors", [])))
    supervision = tuple(reader.supervision(i, item) for i, item in enumerate(data.get("supervision", [])))
    study = Study(factors=factors, supervision=supervision, **tables)
    reader.check_factors(study)
    reader.check_shares(study)
    reader.check_rates(study)
    return study


def dump_study(study: Study) -> str:
    """The study as TOML, every default written out; reads back equal."""
    data: dict[str, Any] = {}
    for name in SECTIONS:
        part = getattr(study, name)
        if name == "factors":
            data[name] = [{"name": f.name, "role": f.role, "kind": f.kind, **_plain(f)} for f in part]
        elif name == "supervision":
            data[name] = [_plain(s) for s in part]
        elif part is not None:
            data[name] = _plain(part)
    return tomli_w.dumps({name: part for name, part in data.items() if part})


@dataclass(frozen=True)
class _Reader:
    """Turns parts of a study file into settings and knows on which lines they stand."""

    origin: str
    lines: Mapping[Where, int]

    def check_sections(self, data: Mapping[str, Any]) -> None:
        for name, part in data.items():
            if name not in SECTIONS:
                self.refuse((name,), f"there is no section [{name}]. {_nearest(name, SECTIONS, '[{}]')}")
            if name in TABLES and not isinstance(part, dict):
                self.refuse((name,), f"[{name}] is one section with settings: write it once, in single brackets.")
            if name not in TABLES and not (isinstance(part, list) and all(isinstance(x, dict) for x in part)):
                self.refuse((name,), f"{name} is a list: write [[{name}]], in double brackets, before each.")

    def table(self, name: str, data: dict[str, Any]) -> Any:  # noqa: ANN401 - settings of any section
        settings = self._read(TABLES[name], data, (name,), f"[{name}]")
        if isinstance(settings, Grid):
            self._check_grid(settings)
        return settings

    def factor(self, index: int, data: dict[str, Any]) -> Factor:
        where, label = ("factors", index), f"[[factors]] {data.get('name', f'number {index + 1}')}"
        if "kind" not in data:
            self.refuse(where, f"{label} needs 'kind': {', '.join(FACTOR_TYPES)}.")
        kind = data["kind"]
        if not isinstance(kind, str) or kind not in FACTOR_TYPES:
            self.refuse((*where, "kind"), f"{label}: kind is {kind!r}. {_nearest(str(kind), list(FACTOR_TYPES))}")
        rest = {key: value for key, value in data.items() if key != "kind"}
        factor: Factor = self._read(FACTORS[kind], rest, where, label)
        return factor

    def supervision(self, index: int, data: dict[str, Any]) -> Supervision:
        where, label = ("supervision", index), f"[[supervision]] number {index + 1}"
        supervision: Supervision = self._read(SUPERVISION, data, where, label)
        return supervision

    def check_factors(self, study: Study) -> None:
        seen: set[str] = set()
        for i, factor in enumerate(study.factors):
            fault = _factor_fault(factor, study, seen)
            if fault:
                setting, reason = fault
                self.refuse(("factors", i, setting), f"[[factors]] {factor.name}: {reason}")
            seen.add(factor.name)

    def check_shares(self, study: Study) -> None:
        roles = ["anatomy", "nuisance", "anatomy_rest", "nuisance_rest"]
        names = list(dict.fromkeys([*(f.name for f in study.factors), *study.scanner.factors]))
        for i, supervision in enumerate(study.supervision):
            label, known = f"[[supervision]] number {i + 1}", [*roles, *names]
            if supervision.kind == "ranks":
                known = [*study.scanner.factors, *(f.name for f in study.factors if f.ordered)]
            for setting, named in (("share", supervision.share), ("vary", supervision.vary)):
                wrong = next((name for name in named or () if name not in known), None)
                if wrong is not None:
                    what = "a factor with an order" if supervision.kind == "ranks" else "a factor or a role"
                    fault = f"{setting} names {wrong!r}, which is not {what}. {_nearest(wrong, known)}"
                    self.refuse(("supervision", i, setting), f"{label}: {fault}")

    def check_rates(self, study: Study) -> None:
        """Refuse rates of blocks that there are not, or of which two things are said."""
        learned = {f.name: f.role for f in study.factors if f.name not in study.scanner.factors}
        blocks = {**learned, "anatomy_rest": "anatomy", "nuisance_rest": "nuisance"}
        bounded = ["anatomy", "nuisance", *blocks]
        settings = {"beta": [*bounded, *study.scanner.factors], "capacity": bounded, "free_nats": bounded}
        for setting, known in settings.items():
            said = getattr(study.objective, setting)
            wrong = next((name for name in said if name not in known), None) if isinstance(said, dict) else None
            if wrong is not None:
                what = "a setting of the scanner, whose rate has no bounds" if wrong in settings["beta"] else "no block"
                fault = f"[objective]: {setting} names {wrong!r}, which is {what}. {_nearest(wrong, known)}"
                self.refuse(("objective", setting, wrong), fault)
        for name, role in blocks.items():
            said = study.objective.rate_of(name, role)
            if said.capacity and said.free_nats:
                fault = f"[objective] gives {name} both capacity and free_nats, but a block has one or the other."
                self.refuse(("objective", "free_nats"), f"{fault} Keep one.")

    def _check_grid(self, grid: Grid) -> None:
        sizes = {"spacing_mm": grid.spacing_mm, **{f"shape[{i}]": n for i, n in enumerate(grid.shape)}}
        for name, size in sizes.items():
            if size <= 0:
                where = ("grid", name.partition("[")[0])
                self.refuse(where, f"[grid]: {name} is {size}, but has to be greater than 0.")
        if not 1e-3 <= grid.spacing_mm <= 1e3:
            self.refuse(
                ("grid", "spacing_mm"), f"[grid]: spacing_mm is {grid.spacing_mm}, which is no size of a voxel."
            )
        if math.prod(grid.shape) > _MOST_CELLS:
            fault = f"[grid]: shape has {math.prod(grid.shape):.2g} cells, but {_MOST_CELLS:,} are the most."
            self.refuse(("grid", "shape"), f"{fault} Choose coarser ones.")

    def _read(self, adapter: Adapter, data: dict[str, Any], where: Where, label: str) -> Any:  # noqa: ANN401
        # By way of JSON: there a list may become a tuple while a text never becomes a number.
        try:
            return adapter.validate_json(json.dumps([data], default=str))[0]
        except StudyError as error:
            self.refuse(where, str(error))
        except ValidationError as error:
            names = list(schema_of(adapter)["properties"])
            faults = [self._fault(dict(fault), where, label, names) for fault in error.errors(include_url=False)]
            more = [f"... and {len(faults) - 4} more."] if len(faults) > 5 else []
            raise StudyError("\n".join([*(faults[: 4 if more else 5]), *more])) from None

    def _fault(self, fault: dict[str, Any], where: Where, label: str, names: list[str]) -> str:
        place: Where = fault["loc"][1:]
        if len(place) > 1 and place[1] in ("number", "table"):  # which of the two it was read as
            place = (place[0], *place[2:])
        name = str(place[0]) if place else ""
        if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            return self.at((*where, name), f"{label} has no setting {name!r}. {_nearest(name, names)}")
        if fault["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
            return self.at(where, f"{label} needs {name!r}.")
        position = "".join(f"[{i}]" if isinstance(i, int) else f".{i}" for i in place[1:])
        found = json.dumps(fault["input"], ensure_ascii=False)
        allowed = re.sub(r"^(Input|\w+) should ", "", fault["msg"]).replace("be a valid", "be a")
        allowed = allowed.replace("a integer", "a whole number")
        return self.at((*where, name), f"{label}: {name}{position} is {found}, but has to {allowed}.")

    def at(self, where: Where, message: str) -> str:
        """The message with the nearest known line before it."""
        for end in range(len(where), 0, -1):
            known = [line for place, line in self.lines.items() if place[:end] == where[:end]]
            if known:
                return f"{self.origin} line {min(known)}: {message}"
        return f"{self.origin}: {message}"

    def refuse(self, where: Where, message: str) -> NoReturn:
        raise StudyError(self.at(where, message))


def _words(data: object) -> Iterator[str]:
    """Every text in a study."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield key
            yield from _words(value)
    elif isinstance(data, list):
        for value in data:
            yield from _words(value)


def _factor_fault(factor: Factor, study: Study, seen: set[str]) -> tuple[str, str] | None:
    """The setting with which a factor cannot be meant, and why, beyond the types of its settings."""
    built_in = factor.name in SCANNER_FACTORS
    shared = {name for entry in study.supervision for name in (*(entry.share or ()), *(entry.vary or ()))}
    if factor.name in seen:
        return "name", "there are two factors of that name. Rename one."
    if factor.name in RESERVED_NAMES:
        return "name", "that name is taken by medisent itself. Choose another."
    if len(factor.name.encode()) > _LONGEST_NAME:
        return "name", f"a name has at most {_LONGEST_NAME} bytes, since files are named by it. Choose a shorter one."
    if not factor.name.isidentifier() or keyword.iskeyword(factor.name):
        return "name", "a name is made of letters, digits and underscores, and begins with a letter: tumour_volume."
    if factor.mask is not None and factor.kind != "positive":
        return "mask", f"a mask measures a volume in mL, which is of kind 'positive', not {factor.kind!r}."
    if built_in and factor.role != "nuisance":
        return "role", f"the scanner's own factors have role 'nuisance', not {factor.role!r}."
    if built_in and factor.kind != "positive":
        return "kind", f"the scanner's own factors are of kind 'positive', not {factor.kind!r}."
    if not (built_in or factor.column or factor.mask or shared & {factor.name, factor.role}):
        return "name", "nothing tells its values: give it a column, a mask, or a [[supervision]] that names it."
    return None


def schema_of(adapter: Adapter) -> dict[str, Any]:
    """The JSON schema of one section, factor or entry."""
    whole = adapter.json_schema()
    (one,) = whole["$defs"].values()
    return dict(one)


def _nearest(name: str, known: Sequence[str], form: str = "{!r}") -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"Did you mean {form.format(near[0])}?"
    return f"Known: {', '.join(known)}."


def _plain(settings: Any) -> dict[str, Any]:  # noqa: ANN401 - any frozen dataclass
    """The fields as TOML knows them; what is None is left out."""
    values = {name: value for name, value in asdict(settings).items() if value is not None}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def _syntax_fault(text: str, origin: str, error: tomllib.TOMLDecodeError) -> str:
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error), re.DOTALL)
    reason, line = (match[1], match[2] or str(len(text.splitlines()))) if match else (str(error), "1")
    if twice := re.fullmatch(r"Cannot declare \((.*?),?\) twice", reason):
        name = ".".join(part.strip(" '") for part in twice[1].split(","))
        return f"{origin} line {line}: there is a section [{name}] already. Put its settings under one header."
    if reason == "Cannot overwrite a value":
        fault = "this key or section is there already"
        return f"{origin} line {line}: {fault}. Write it once; lists of sections stand in [[double brackets]]."
    return f"{origin} line {line}: this is not TOML: {reason[:1].lower()}{reason[1:]}."
