"""Commands about scans: ``explain``, ``counterfactual``, ``harmonize``, ``encode``."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medisent.cli.batches import PACKAGED, Asked, Doing, each, end, told_of
from medisent.cli.options import (
    Dask,
    Debug,
    Device,
    Dicom,
    Folder,
    Fresh,
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
from medisent.cli.output import Output, printable, table
from medisent.errors import MachineError, UsageError
from medisent.words import ordinal, percent, readout

if TYPE_CHECKING:
    import pandas as pd

    from medisent.models import Model
    from medisent.volumes import Volume

_LONGEST_NAME = 255  # bytes


def explain(
    scans: Annotated[
        list[Path] | None, typer.Argument(metavar="SCAN...", help="One scan or many; else --cohort or --folder.")
    ] = None,
    model: ModelName = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="OUT", help="Folder for the explanation; else named by the one scan."),
    ] = None,
    cohort: Annotated[
        Path | None, typer.Option("--cohort", metavar="COHORT.tsv", help="A table whose column scan names them.")
    ] = None,
    folder: Folder = None,
    names: Names = False,
    fresh: Fresh = False,
    dask: Dask = None,
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
    """Explain scans by their factors.

    Reads the factors with intervals, maps where each acts, and writes counterfactual scans and a report. Several scans
    have a folder each, and one table of all factors; scans that are explained already are passed over.
    """
    output = Output(as_json, quiet)
    asked = Asked(scans or [], cohort, folder, volume, series, max_voxels, names)
    asked.refuse_unclear()
    if asked.alone:
        _explain_one(asked, model, out, output, seed=seed, device=device, dicom=dicom)
        return
    from medisent.cli.explaining import explain_many

    if out is None:
        raise UsageError("There are several scans, each of which gets a folder. Name one for all of them: -o OUT.")
    doing = Doing(model, device, seed, dask, fresh, output)
    explain_many(asked, doing, out, dicom=dicom)


def _explain_one(
    asked: Asked, model: str | None, out: Path | None, output: Output, *, seed: int, device: str, dicom: bool
) -> None:
    from medisent.many import stem

    scan = asked.scans[0]
    folder = out or Path(f"{stem(scan)}_medisent")
    _refuse_long(folder)
    with output.progress() as progress:
        progress.stage("reading")
        loaded = _model(model, device, seed, output)
        image = _read(scan, output, asked.volume, asked.series, asked.max_voxels)
        progress.stage("explaining")
        explanation = loaded.explain(image)
        progress.stage("writing")
        explanation.save(folder, dicom=dicom)
    output.warn(explanation.warnings)
    readouts = explanation.factors
    level = percent(loaded.card.level)
    output.result(
        {
            **{"schema": 1, "out": folder, "report": folder / "report.html", "factors": readouts.to_dict("records")},
            **({"dicom": folder / "dicom"} if dicom else {}),
        },
        [*_readouts(readouts, level), f"Report: {folder / 'report.html'}"],
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
    if out is not None and not out.name.endswith((".nii", ".nii.gz")):
        raise UsageError(f"-o is {out}, but a counterfactual is written as .nii or .nii.gz. Choose such a name.")
    Asked([scan], None, None, volume, series, max_voxels, names=False).refuse_unclear()
    from medisent.many import stem

    target = out or Path(f"{stem(scan)}_counterfactual.nii.gz")
    _refuse_long(target)
    from medisent.counterfactuals import edited, parse_wish, read_for
    from medisent.explanations import deriving
    from medisent.exports import Making, sidecar_name, write_synthetic
    from medisent.mechanisms import cautions

    objects = target.with_name(sidecar_name(target).removesuffix(".json") + "_dicom")
    wanted = [parse_wish(text) for text in wishes or []]
    output = Output(as_json, quiet)
    with output.progress() as progress:
        progress.stage("reading")
        loaded = _model(model, device, seed, output)
        image = _read(scan, output, volume, series, max_voxels)
        derive = deriving(image, loaded.trained.digest) if dicom else None
        progress.stage("editing")
        reading = read_for(loaded.trained, image, wanted) if wanted else None
        changed = edited(loaded.trained, reading, wanted, extrapolate=extrapolate) if reading else image
        progress.stage("writing")
        making = Making(image, loaded.trained.digest, tuple(wishes or ()))

        def beside(place: Path) -> None:
            if derive is not None:
                derive(place).add_series(changed, objects.name, making.asked)

        write_synthetic(changed, target, making, beside)
    if reading:
        network = loaded.trained.network
        output.warn([*reading.warnings, *cautions(network, dict.fromkeys(wish.name for wish in wanted))])
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
    folder: Folder = None,
    names: Names = False,
    fresh: Fresh = False,
    dask: Dask = None,
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
    named = bool(scans) or folder is not None
    asked = Asked(scans or [], None if named else cohort, folder, volume, series, max_voxels, names)
    if dask is None:  # else the model is loaded elsewhere
        asked.refuse_unclear()
    for path in to or []:
        Asked([path], None, None, None, None, max_voxels, names=False).refuse_unclear()
    from medisent.cli.harmonizing import Harmonizing
    from medisent.harmonisation import visits_of
    from medisent.many import unique_names

    sources = asked.sources()
    visits = visits_of(cohort, [source.path for source in sources] if named else [], site, subject)
    single = out.name.endswith((".nii", ".nii.gz"))
    if single and len(sources) > 1:
        raise UsageError(f"-o is the file {out}, but there are {len(sources)} scans. Name a folder.")
    files = [out.name] if single else [f"{name}_harmonized.nii.gz" for name in unique_names(sources)]
    _refuse_long(*map(Path, files))
    doing = Doing(model, device, seed, dask, fresh, Output(as_json, quiet))
    with doing.output.progress() as progress:
        progress.stage("loading the model")
        goals = [_read(path, doing.output, max_voxels=max_voxels) for path in to or []]
        found = doing.model_file()
        labelled = [replace(visit, label=source.label) for visit, source in zip(visits, sources, strict=True)]
        with doing.engine() as engine:
            harmonizing = Harmonizing(
                found, doing.reached(sources), labelled, files, goals, engine, seed, progress, doing.output
            )
            told, lines, failed = harmonizing.into_file(out) if single else harmonizing.into(out, always, fresh)
    doing.output.result({"schema": 1, "out": out, **told, "failed": told_of(failed)}, lines)
    end(failed, len(sources))


def encode(
    scans: Annotated[
        list[Path] | None, typer.Argument(metavar="SCAN...", help="One scan or many; else --cohort or --folder.")
    ] = None,
    model: ModelName = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="codes.tsv", help="The table; else it is printed.")
    ] = None,
    cohort: Annotated[
        Path | None, typer.Option("--cohort", metavar="COHORT.tsv", help="A table whose column scan names them.")
    ] = None,
    folder: Folder = None,
    names: Names = False,
    fresh: Fresh = False,
    dask: Dask = None,
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
    asked = Asked(scans or [], cohort, folder, volume, series, max_voxels, names)
    if dask is None:  # else the model is loaded elsewhere
        asked.refuse_unclear()
    import pandas as pd

    from medisent.files import write_text
    from medisent.many import Encoding, Journal

    sources = asked.sources()
    doing = Doing(model, device, seed, dask, fresh, Output(as_json, quiet))
    journal = Journal() if out is None or len(sources) == 1 else Journal.beside(out.absolute())
    if fresh:
        journal.close()
    with doing.output.progress() as progress:
        progress.stage("loading the model")
        found = doing.model_file()
        with doing.engine() as engine:
            progress.stage("encoding", len(sources))
            work = Encoding(found, journal)
            done, failed = each(work, doing.reached(sources), [""] * len(sources), engine, seed, progress, doing.output)
    columns = list(found.trained.network.partition.columns)
    codes = pd.DataFrame(list(done.values()), columns=columns, dtype="float64")
    codes.insert(0, "scan", [sources[number].label for number in done])
    text = printable(codes.to_csv(sep="\t", index=False, lineterminator="\n"))
    if out is not None:
        write_text(out, text)
        journal.close()
    if out is None and not as_json:
        print(text, end="")  # the table is what was asked for, however quietly
    else:
        told = {"schema": 1, "out": out, "codes": codes.to_dict("records"), "failed": told_of(failed)}
        doing.output.result(told, [f"Codes: {out}"])
    end(failed, len(sources))


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
        output.say(PACKAGED)
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


def _readouts(factors: pd.DataFrame, level: str) -> list[str]:
    """What was read, a line a factor, in the digits that the intervals deserve; names as ``--set`` takes them."""
    rows = [("factor", "estimate", "", f"{level} interval", "percentile", "role")]
    for row in factors.to_dict("records"):
        estimate, interval = readout(row["estimate"], row["low"], row["high"])
        rows.append((row["name"], estimate, row["unit"], interval, ordinal(row["percentile"]), row["role"]))
    return table(rows)
