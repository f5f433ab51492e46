"""Commands about scans: ``explain``, ``counterfactual``, ``harmonize``, ``encode``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from medisent.cli.options import (
    Debug,
    Device,
    Dicom,
    Json,
    MaxVoxels,
    ModelName,
    Names,
    Quiet,
    Scan,
    Seed,
    SeriesNumber,
    VolumeNumber,
    chosen_device,
)
from medisent.cli.output import Output, end_after_result, printable, table
from medisent.errors import MachineError, MedisentError, UsageError

if TYPE_CHECKING:
    from medisent.models import Model
    from medisent.progress import Progress
    from medisent.volumes import Volume

_SUFFIXES = (".nii", ".gz", ".dcm", ".nrrd", ".nhdr", ".mha", ".mhd", ".img", ".hdr")
_LONGEST_NAME = 255  # bytes
_TOLD = 4  # refusals that are told one by one when many scans are

Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """A scan out of several for which nothing was done.

    Attributes:
        scan: Its path.
        error: Why.
    """

    scan: Path
    error: MedisentError


def explain(
    scan: Scan,
    model: ModelName = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="OUT", help="Folder for the explanation; else named by the scan."),
    ] = None,
    dicom: Dicom = False,
    volume: VolumeNumber = None,
    series: SeriesNumber = None,
    max_voxels: MaxVoxels = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Explain a scan by its factors.

    Reads the factors with intervals, maps where each acts, and writes counterfactual scans and a report.
    """
    folder = out or Path(f"{stem(scan)}_medisent")
    _refuse_long(folder)
    output = Output(as_json, quiet)
    with output.progress() as progress:
        progress.stage("reading")
        loaded = _model(model, device, seed, output)
        image = _read(scan, output, volume, series, max_voxels)
        progress.stage("explaining")
        explanation = loaded.explain(image)
        progress.stage("writing")
        explanation.save(folder, dicom=dicom)
    readouts = explanation.factors
    columns = [c for c in ("name", "estimate", "low", "high", "unit", "role") if c in readouts.columns]
    rows = [tuple(_cell(row[c]) for c in columns) for row in readouts.to_dict("records")]
    output.result(
        {
            **{"schema": 1, "out": folder, "report": folder / "report.html", "factors": readouts.to_dict("records")},
            **({"dicom": folder / "dicom"} if dicom else {}),
        },
        [*table([tuple(columns), *rows]), f"Report: {folder / 'report.html'}"],
    )


def counterfactual(
    scan: Scan,
    wishes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A factor's new value; also NAME*=FACTOR and NAME+=STEP."),
    ] = None,
    model: ModelName = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="OUT.nii.gz", help="The edited scan; else named by the scan.")
    ] = None,
    extrapolate: Annotated[bool, typer.Option("--extrapolate", help="Allow values outside what training saw.")] = False,
    dicom: Dicom = False,
    volume: VolumeNumber = None,
    series: SeriesNumber = None,
    max_voxels: MaxVoxels = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Edit a scan's factors.

    Writes the scan as it would be with other values of its factors, in its own space.
    """
    target = out or Path(f"{stem(scan)}_counterfactual.nii.gz")
    if not target.name.endswith((".nii", ".nii.gz")):
        raise UsageError(f"-o is {target}, but a counterfactual is written as .nii or .nii.gz. Choose such a name.")
    _refuse_long(target)
    from medisent.counterfactuals import counterfactual as edited_scan
    from medisent.counterfactuals import parse_wish
    from medisent.explanations import deriving
    from medisent.exports import Making, sidecar_name, write_synthetic

    objects = target.with_name(sidecar_name(target).removesuffix(".json") + "_dicom")
    wanted = [parse_wish(text) for text in wishes or []]
    output = Output(as_json, quiet)
    with output.progress() as progress:
        progress.stage("reading")
        loaded = _model(model, device, seed, output)
        image = _read(scan, output, volume, series, max_voxels)
        derive = deriving(image, loaded.trained.digest) if dicom else None
        progress.stage("editing")
        edited = edited_scan(loaded.trained, image, wanted, extrapolate=extrapolate)
        progress.stage("writing")
        making = Making(image, loaded.trained.digest, tuple(wishes or ()))

        def beside(place: Path) -> None:
            if derive is not None:
                derive(place).add_series(edited, objects.name, making.asked)

        write_synthetic(edited, target, making, beside)
    output.result(
        {"schema": 1, "out": target, **({"dicom": objects} if dicom else {}), "set": wishes or []},
        [f"Counterfactual: {target}", *([f"DICOM series: {objects}"] if dicom else [])],
    )


def harmonize(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="A folder; for one scan also a .nii or .nii.gz file.")
    ],
    scans: Annotated[
        list[Path] | None, typer.Argument(metavar="SCAN...", help="One scan or many; else all of --cohort.")
    ] = None,
    to: Annotated[
        list[Path] | None,
        typer.Option("--to", metavar="SCAN", help="The scan whose scanner to imitate, or several; else the reference."),
    ] = None,
    cohort: Annotated[
        Path | None, typer.Option("--cohort", metavar="COHORT.tsv", help="A table with the scans' sites and subjects.")
    ] = None,
    site: Annotated[str, typer.Option("--site", metavar="COLUMN", help="Its column with the sites.")] = "site",
    subject: Annotated[
        str, typer.Option("--subject", metavar="COLUMN", help="Its column with the people.")
    ] = "subject",
    always: Annotated[bool, typer.Option("--always", help="Harmonize even where sites do not differ.")] = False,
    names: Names = False,
    model: ModelName = None,
    volume: VolumeNumber = None,
    series: SeriesNumber = None,
    max_voxels: MaxVoxels = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Take the differences between scanners out of scans.

    Moves brightness, contrast and bias field to those of a scan, or to the reference; anatomy stays. A page
    says whether sites differed, and whether they still do; where they do not, scans are left as they are. Of
    several scans one that is refused does not stop the others; the command then ends with 3.
    """
    from medisent.cli.harmonizing import Harmonizing
    from medisent.harmonisation import visits_of

    if cohort is None and not scans:
        raise UsageError("No scan was named. Name scans, or a table of them with --cohort.")
    visits = visits_of(cohort, scans or [], site, subject, names=names)
    _refuse_series(series, len(visits))
    single = out.name.endswith((".nii", ".nii.gz"))
    if single and len(visits) > 1:
        raise UsageError(f"-o is the file {out}, but there are {len(visits)} scans. Name a folder.")
    files = [out.name if single else f"{stem(visit.scan)}_harmonized.nii.gz" for visit in visits]
    if len(set(files)) < len(files):
        raise UsageError("Two of the scans have the same name, so one result would replace the other. Rename one.")
    output = Output(as_json, quiet)
    with output.progress() as progress:
        progress.stage("loading the model")
        loaded = _model(model, device, seed, output)

        def read(path: Path) -> Volume:
            return _read(path, output, volume, series, max_voxels)

        goals = [_read(path, output, max_voxels=max_voxels) for path in to or []]
        harmonizing = Harmonizing(loaded.trained, visits, files, goals, read, progress)
        told, lines, failed = harmonizing.into(out.parent if single else out, seed, always=always, page=not single)
    output.result({"schema": 1, "out": out, **told, "failed": _told(failed)}, lines)
    _end(failed, len(visits))


def encode(
    scans: Annotated[list[Path], typer.Argument(metavar="SCAN...", help="One scan or many.")],
    model: ModelName = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="codes.tsv", help="The table; else it is printed.")
    ] = None,
    names: Names = False,
    volume: VolumeNumber = None,
    series: SeriesNumber = None,
    max_voxels: MaxVoxels = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the latents of scans as a table.

    One row a scan, in the order given; every latent is named by its block. A scan that is refused has no row and does
    not stop the others; the command then ends with 3.
    """
    import pandas as pd

    from medisent.files import write_text

    _refuse_series(series, len(scans))
    output = Output(as_json, quiet)
    with output.progress() as progress:
        progress.stage("loading the model")
        loaded = _model(model, device, seed, output)
        progress.stage("encoding", len(scans))
        done, failed = _each(
            scans,
            lambda number: loaded.encode([_read(scans[number], output, volume, series, max_voxels)]),
            progress,
        )
    codes = pd.concat(list(done.values()), ignore_index=True)
    codes.insert(0, "scan", [str(scans[number]) if names else str(number + 1) for number in done])
    text = printable(codes.to_csv(sep="\t", index=False, lineterminator="\n"))
    if out is not None:
        write_text(out, text)
    if out is None and not as_json:
        print(text, end="")  # the table is what was asked for, however quietly
    else:
        found = {"schema": 1, "out": out, "codes": codes.to_dict("records"), "failed": _told(failed)}
        output.result(found, [f"Codes: {out}"])
    _end(failed, len(scans))


def stem(scan: Path) -> str:
    """The name of a scan without its folder and its format's endings."""
    name = scan.resolve().name if scan.name in ("", "..") else scan.name
    while Path(name).suffix.lower() in _SUFFIXES:
        name = Path(name).stem
    return name


def _refuse_series(series: int | None, count: int) -> None:
    if series is not None and count > 1:
        raise UsageError(
            f"--series was given with {count} scans, but series are counted anew in each folder. Name one scan."
        )


def _refuse_long(*targets: Path) -> None:
    """Refuse names that no disk takes before anything is computed for them."""
    for target in targets:
        length = len(os.fsencode(target.name))
        if length > _LONGEST_NAME:
            raise MachineError(
                f"The result would have a name of {length} bytes, {target.name[:20]}..., but a name has "
                f"{_LONGEST_NAME} at most. Choose one: -o NAME."
            )


def _model(name: str | None, device: str, seed: int, output: Output) -> Model:
    import torch

    from medisent.checkpoints import PACKAGED_MODEL, find_model
    from medisent.models import load

    torch.manual_seed(seed)
    path = find_model(name)
    if path == PACKAGED_MODEL:
        output.say("This model learned from rendered heads: it shows what medisent does, but knows no real scan.")
    return load(path, device=chosen_device(device))


def _read(
    path: Path,
    output: Output,
    volume: int | None = None,
    series: int | None = None,
    max_voxels: int | None = None,
) -> Volume:
    from medisent.formats import read

    scan = read(path, volume=volume, series=series, max_voxels=max_voxels)
    for remark in scan.remarks:
        output.say(f"{path.name}: {remark}")
    return scan


def _each(
    scans: Sequence[Path], work: Callable[[int], Result], progress: Progress
) -> tuple[dict[int, Result], list[Failure]]:
    """What became of each scan, by its number, and which ones failed; a failure does not stop the others.

    Raises:
        MedisentError: Every scan failed.
    """
    done: dict[int, Result] = {}
    failed = []
    for number, scan in enumerate(scans):
        try:
            done[number] = work(number)
        except MedisentError as error:
            failed.append(Failure(scan, error))
        progress.advance(1)
    if not done:
        raise _failure(failed, len(scans))
    return done, failed


def _failure(failed: Sequence[Failure], count: int) -> MedisentError:
    """The one refusal that several amount to: that of the input, if there is one, goes before the machine's."""
    if len(failed) == count == 1:
        return failed[0].error
    lines = [f"{len(failed)} of {count} scans failed" + (":" if len(failed) == count else "; the others are done:")]
    lines += [str(failure.error).splitlines()[0] for failure in failed[:_TOLD]]
    if len(failed) > _TOLD:
        lines.append(f"... and {len(failed) - _TOLD} more.")
    foremost = min((failure.error for failure in failed), key=lambda error: error.exit_code)
    return type(foremost)("\n".join(lines), code=foremost.code)


def _told(failed: Sequence[Failure]) -> list[dict[str, object]]:
    return [{"scan": f.scan, "code": f.error.code, "message": str(f.error)} for f in failed]


def _end(failed: Sequence[Failure], count: int) -> None:
    """End with the failures' exit code after the result of the other scans is out, or not at all where none failed."""
    if failed:
        end_after_result(_failure(failed, count))


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
