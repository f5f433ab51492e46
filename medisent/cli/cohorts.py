"""Commands that make a cohort or look at one: ``phantom`` and ``init``; and ``schema``, what its study may say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medisent.cli.options import Debug, Json, MaxVoxels, Quiet, Seed
from medisent.cli.output import Output
from medisent.errors import UsageError

if TYPE_CHECKING:
    from medisent.config.proposing import Proposal

_FAULTS_TOLD = 3


def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the cohort.")],
    subjects: Annotated[int, typer.Option("--subjects", min=1, help="How many heads.")] = 240,
    seed: Seed = 0,
    spacing: Annotated[float, typer.Option("--spacing", metavar="MM", help="Edge of a voxel, in mm.")] = 6.0,
    shape: Annotated[tuple[int, int, int], typer.Option("--shape", metavar="X Y Z", help="Voxels along each axis.")] = (
        32,
        32,
        32,
    ),
    confound: Annotated[
        float,
        typer.Option(
            "--confound", min=-1, max=1, metavar="R", help="Correlation of the tumour's volume with the gain."
        ),
    ] = 0.0,
    dicom: Annotated[bool, typer.Option("--dicom", help="Write DICOM series instead of NIfTI.")] = False,
    counterfactuals: Annotated[
        bool, typer.Option("--counterfactuals", help="Write the true counterfactual of every edit, too.")
    ] = False,
    missing: Annotated[
        float, typer.Option("--missing", min=0, max=1, metavar="SHARE", help="Share of labels left out.")
    ] = 0.0,
    travelling: Annotated[
        int, typer.Option("--travelling", min=0, metavar="N", help="Subjects scanned at every site.")
    ] = 0,
    longitudinal: Annotated[
        int, typer.Option("--longitudinal", min=0, metavar="N", help="Subjects scanned twice, months apart.")
    ] = 0,
    foreign: Annotated[
        bool, typer.Option("--foreign", help="Use a scanner that the model's scanner cannot express.")
    ] = False,
    clamped: Annotated[
        int,
        typer.Option(
            "--clamped", min=0, metavar="N", help="Groups of heads in which one factor varies, of each of five."
        ),
    ] = 0,
    clamped_size: Annotated[
        int, typer.Option("--clamped-size", min=2, metavar="N", help="Heads of each clamped group.")
    ] = 8,
    pairs: Annotated[
        int, typer.Option("--pairs", min=0, metavar="N", help="Pairs of heads that differ in one or two factors.")
    ] = 0,
    alike: Annotated[
        int,
        typer.Option("--alike", min=0, metavar="N", help="Groups of different heads that agree in all five factors."),
    ] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Render a cohort with known factors.

    Writes the table, scans and masks and, if asked, the true counterfactual of every edit.
    """
    from medisent.phantoms import write_cohort

    if not spacing > 0 or min(shape) < 1:
        raise UsageError(f"--spacing is {spacing} and --shape {shape}, but both have to be positive.")
    output = Output(as_json, quiet)
    with output.progress() as progress:
        table = write_cohort(
            out,
            subjects=subjects,
            seed=seed,
            spacing_mm=spacing,
            shape=shape,
            confound=confound,
            dicom=dicom,
            counterfactuals=counterfactuals,
            missing=missing,
            travelling=travelling,
            longitudinal=longitudinal,
            foreign=foreign,
            clamped=clamped,
            clamped_size=clamped_size,
            pairs=pairs,
            alike=alike,
            progress=progress,
        )
    output.result(
        {"schema": 1, "cohort": table, "subjects": subjects},
        [f"Cohort: {table}", f"Next: medisent train {out / 'study.toml'}"],
    )


def init(
    cohort: Annotated[
        Path, typer.Argument(metavar="COHORT", help="The cohort table, one row a scan, or a folder with scans.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="study.toml", help="The study file to write.")] = Path(
        "study.toml"
    ),
    completion: Annotated[
        bool,
        typer.Option("--schema", help="Also write a schema beside the study file, by which editors complete it."),
    ] = False,
    max_voxels: MaxVoxels = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a study file for a cohort.

    Reads the table, the headers of all scans and the voxels of some; the file is commented and warns of what can
    mislead. For a folder without a table it writes that, too, beside the study file.
    """
    from medisent.cli.machine import gpu_gb, memory_gb
    from medisent.config import schema_text
    from medisent.config.proposing import Machine, propose_study
    from medisent.files import write_text
    from medisent.formats import reading_at_most

    if out.exists():
        raise UsageError(f"{out} is there already and is not written over. Choose another name with -o.")
    output = Output(as_json, quiet)
    beside = out.with_name(f"{out.stem}.schema.json") if completion else None
    editors = f"./{beside.name}" if beside else None
    with reading_at_most(max_voxels), output.progress() as progress:
        proposal = propose_study(cohort, out, progress, Machine(memory_gb(), gpu_gb()), schema=editors)
    if beside is not None:
        write_text(beside, schema_text())
    if proposal.rows is not None:
        write_text(proposal.table, proposal.rows)
    write_text(out, proposal.text)
    _tell(output, proposal)
    output.result(
        {
            "schema": 1,
            "study": out,
            "cohort": proposal.table,
            "scans": proposal.scans,
            "subjects": proposal.subjects,
            "factors": proposal.factors,
            "warnings": proposal.warnings,
            "confounding": [vars(pair) for pair in proposal.confounding],
            "unreadable": [{**vars(fault), "row": fault.row + 2} for fault in proposal.unreadable],
        },
        [f"Study: {out}", f"Next: medisent train {out}"],
    )


def schema(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to write it; else it is printed.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Print the JSON schema of study files.

    Editors that know TOML complete and check a study by it, where its first line is #:schema FILE.
    """
    from medisent.config import schema as schema_of_studies
    from medisent.config import schema_text
    from medisent.files import write_text

    output = Output(as_json, quiet)
    if out is None:
        print(schema_text(), end="")
        return
    write_text(out, schema_text())
    output.result({"schema": 1, "out": out, "sections": list(schema_of_studies()["properties"])}, [f"Schema: {out}"])


def _tell(output: Output, proposal: Proposal) -> None:
    """The warnings, and the first of the scans that cannot be read."""
    output.warn(proposal.warnings)
    for fault in proposal.unreadable[:_FAULTS_TOLD]:
        output.say(f"row {fault.row + 2}: {fault.message}" if proposal.rows is None else fault.message)
    if len(proposal.unreadable) > _FAULTS_TOLD:
        output.say(f"... and {len(proposal.unreadable) - _FAULTS_TOLD} more; --json lists all of them.")
