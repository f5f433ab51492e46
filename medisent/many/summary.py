"""The table of a batch of explanations: a row a scan, with its factors, their intervals and what to doubt."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medisent.files import whole_folder, write_text
from medisent.many.works import Explained

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Line:
    """A scan of the table.

    Attributes:
        scan: What outputs call it.
        explained: What came out; None where it was refused.
        fault: The name of the fault, for a scan that was refused.
    """

    scan: str
    explained: Explained | None
    fault: str = ""


def write_summary(lines: Sequence[Line], folder: Path) -> None:
    """Write ``summary.tsv`` and ``summary.json``: every scan, also those that were refused.

    Raises:
        MachineError: They cannot be written.
    """
    rows = pd.DataFrame([_row(line) for line in lines])
    text = rows.to_csv(sep="\t", index=False, lineterminator="\n")
    said = {"schema": 1, "command": "explain several", "scans": [_told(line) for line in lines]}
    with whole_folder(folder, record=SUMMARY) as place:
        write_text(place / "summary.tsv", text.encode("utf-8", "backslashreplace").decode())
        write_text(place / SUMMARY, json.dumps(said, indent=2, allow_nan=False) + "\n")


def _row(line: Line) -> dict[str, object]:
    row: dict[str, object] = {"scan": line.scan, "folder": "", "fault": line.fault, "doubts": ""}
    if line.explained is None:
        return row
    said = line.explained.said
    row["folder"] = line.explained.folder
    row["doubts"] = ", ".join(name for name, check in said["quality"].items() if not check["ok"])
    for factor in said["factors"]:
        name = factor["name"]
        row[name] = _number(factor["estimate"])
        row |= {f"{name}_{part}": _number(factor[part]) for part in ("low", "high", "percentile")}
    return row


def _number(value: object) -> object:
    return math.nan if value is None else value


def _told(line: Line) -> Mapping[str, Any]:
    if line.explained is None:
        return {"scan": line.scan, "folder": None, "fault": line.fault, "factors": None, "quality": None}
    said = line.explained.said
    kept = {part: said[part] for part in ("factors", "quality")}
    return {"scan": line.scan, "folder": line.explained.folder, "fault": None, **kept}
