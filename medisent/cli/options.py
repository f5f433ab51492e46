"""The options that commands have in common, each described once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from medisent.errors import MachineError, UsageError
from medisent.plurals import several

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print neither progress nor messages.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback where something fails.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything that is drawn.")]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="M",
        help="A run folder, a model file or rendered-heads. "
        "Without it: MEDISENT_MODEL, else the newest run in ./runs, else rendered-heads.",
    ),
]
VolumeNumber = Annotated[
    int | None, typer.Option("--volume", min=0, metavar="N", help="Which volume of a 4D file, counted from 0.")
]
SeriesNumber = Annotated[
    int | None, typer.Option("--series", min=0, metavar="N", help="Which series of a DICOM folder, as listed.")
]
Names = Annotated[bool, typer.Option("--names", help="Call each scan by its path, as typed; else by its number.")]
Folder = Annotated[
    Path | None,
    typer.Option("--folder", metavar="DIR", help="Every scan below a folder, each DICOM series one."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do again what an earlier run of this command has done.")]
Dask = Annotated[
    str | None,
    typer.Option(
        "--dask", metavar="WHERE", help="local:N for N processes here, or a scheduler's address, tcp://HOST:PORT."
    ),
]
MaxVoxels = Annotated[
    int | None,
    typer.Option(
        "--max-voxels", min=1, metavar="N", help="Refuse a scan that claims more, before memory is asked for."
    ),
]
Dicom = Annotated[
    bool,
    typer.Option(
        "--dicom",
        help="Also write DICOM objects for a PACS, if the scan is DICOM. They hold no name, ID or date of the patient: "
        "UIDs of study, frame of reference and images link them to the scan, by which a site finds whose they are.",
    ),
]
Scan = Annotated[
    Path, typer.Argument(metavar="SCAN", help="A NIfTI file, a DICOM file or folder, or what SimpleITK reads.")
]


def chosen_device(name: str) -> str:
    """The device that ``--device`` means on this machine: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UsageError: The name is none of a device.
        MachineError: The machine has no such device.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device is {name!r}, but has to be auto, cpu, cuda or cuda:N.")
    if name == "cpu":
        return name
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    wanted = int(name.partition(":")[2] or 0)
    if wanted >= count:
        found = several(count, "CUDA device") if count else "no CUDA device"
        raise MachineError(f"--device is {name}, but this machine has {found}. Use --device auto or cpu.")
    return name
