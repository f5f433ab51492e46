"""The work behind ``explain`` for many scans: a folder for each, and one table of all."""

from __future__ import annotations

from pathlib import Path

from medisent.cli.batches import Asked, Doing, each, end, told_of
from medisent.cli.output import table
from medisent.many import Explained, Explaining, Line, unique_names, write_summary
from medisent.words import readout

_SHOWN = 20  # rows that are printed


def explain_many(asked: Asked, doing: Doing, out: Path, *, dicom: bool) -> None:
    """Explain scans into folders below ``out`` and write the table of all factors.

    Raises:
        MedisentError: All of them are refused, or something that is needed is not there.
    """
    sources = asked.sources()
    names = unique_names(sources) if asked.names else [f"{number:04}" for number in range(1, len(sources) + 1)]
    with doing.output.progress() as progress:
        progress.stage("loading the model")
        work = Explaining(doing.model_file(), out.absolute(), dicom, doing.fresh)
        with doing.engine() as engine:
            progress.stage("explaining", len(sources))
            done, failed = each(work, doing.reached(sources), names, engine, doing.seed, progress, doing.output)
        faults = {failure.number: failure.error.code for failure in failed}
        lines = [Line(source.label, done.get(number), faults.get(number, "")) for number, source in enumerate(sources)]
        write_summary(lines, out)
    found = sum(explained.found for explained in done.values())
    doing.output.result(
        {
            "schema": 1,
            "out": out,
            "summary": out / "summary.tsv",
            "scans": [_told(out, line) for line in lines],
            "found": found,
            "failed": told_of(failed),
        },
        [
            *_table(lines),
            *([f"{found} of {len(sources)} had been explained before; --fresh explains them again."] if found else []),
            f"Summary: {out / 'summary.tsv'}",
        ],
    )
    end(failed, len(sources))


def _told(out: Path, line: Line) -> dict[str, object]:
    said = line.explained
    if said is None:
        return {"scan": line.scan, "out": None, "fault": line.fault, "factors": None}
    return {"scan": line.scan, "out": out / said.folder, "fault": None, "factors": said.said["factors"]}


def _table(lines: list[Line]) -> list[str]:
    """The estimates of the first scans, a row a scan."""
    heads = next(([f["name"] for f in line.explained.said["factors"]] for line in lines if line.explained), [])
    rows = [("scan", *heads)]
    for line in lines[:_SHOWN]:
        rows.append((line.scan, *_cells(line.explained, len(heads), line.fault)))
    more = [f"... and {len(lines) - _SHOWN} more."] if len(lines) > _SHOWN else []
    return [*table(rows), *more]


def _cells(explained: Explained | None, count: int, fault: str) -> list[str]:
    if explained is None:
        return [fault, *[""] * (count - 1)]
    return [readout(factor["estimate"], factor["low"], factor["high"])[0] for factor in explained.said["factors"]]
