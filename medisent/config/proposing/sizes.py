"""How large: the grid over the anatomy, the networks in this machine's memory, and how long training takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from medisent.config.proposing.survey import Survey
from medisent.grids import Grid
from medisent.volumes import Geometry

_FEWEST_CELLS, _MULTIPLE = 8, 4
_ROOM = 1.05  # around the anatomy
_MARGIN = 2  # cells more along each axis, since scans are shifted in training and edits fade at the border
_CELLS = ((0.0, 32), (7.0, 64), (20.0, 96), (60.0, 128))  # along the longest axis, from so many GB of a GPU on
# Measured on a processor: float32, one step of all terms that are on by default; see docs/init.md.
_BYTES_A_CELL = 640.0  # of each scan of a batch, at 16 channels
_BASE_GB = 1.5  # libraries, weights and the optimiser
_SECONDS_A_CELL = 1.4e-6  # of each scan, at 16 channels, on one core
_GPU_FASTER = 20.0  # a guess on the safe side
_PASSES, _FEWEST_VIEWS = 40, 6000  # over the training scans; scans that a training sees at least
_MINUTES = (5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 360, 480, 720, 960, 1440, 2160, 2880)


@dataclass(frozen=True)
class Machine:
    """What training may use.

    Attributes:
        memory_gb: Free memory; None where the system does not tell.
        gpu_gb: Free memory of the GPU; 0 without one.
    """

    memory_gb: float | None = None
    gpu_gb: float = 0.0


@dataclass(frozen=True)
class Sizes:
    """What a study file says about sizes.

    Attributes:
        grid: Over the anatomy.
        outside: The share of all fields of view that lies beyond the grid.
        cut: The share of tissue, in the scan of which most is lost, that lies beyond the grid.
        width: Channels.
        rest: Anatomy latents without a name.
        batch: Scans a step.
        minutes: Of training.
        step_gb: Memory that a step takes, about.
    """

    grid: Grid
    outside: float
    cut: float
    width: int
    rest: int
    batch: int
    minutes: int
    step_gb: float


def propose_sizes(survey: Survey, training: int, machine: Machine) -> Sizes:
    """The sizes for a cohort.

    Arguments:
        survey: Of its scans.
        training: How many scans it has for training.
        machine: What it is trained on.
    """
    room = machine.gpu_gb or (machine.memory_gb if machine.memory_gb is not None else 8.0)
    across = next(cells for gb, cells in reversed(_CELLS) if machine.gpu_gb >= gb)
    width, batch = 16, min(4, max(1, training))
    while True:
        grid = _grid(survey, across)
        cells = math.prod(grid.shape)
        need = _BASE_GB + _BYTES_A_CELL * cells * batch * width / 16 / 2**30
        if need <= 0.7 * room or (batch, across, width) == (1, 16, 8):
            break
        if batch > 2:
            batch = 2
        elif across > 16:
            across = across * 3 // 4 if across > 22 else 16
        else:
            batch, width = 1, 8
    passes = max(_PASSES * training, _FEWEST_VIEWS)
    seconds = passes * cells * _SECONDS_A_CELL * width / 16 / (_GPU_FASTER if machine.gpu_gb else 1)
    minutes = next((m for m in _MINUTES if m >= seconds / 60 * 0.9), _MINUTES[-1])
    rest = int(np.clip(training // 4 // 4 * 4, 4, 16))
    return Sizes(grid, _outside(survey.geometries, grid), _cut(survey, grid), width, rest, batch, minutes, need)


def _grid(survey: Survey, across: int) -> Grid:
    """Cubic cells, no finer than most scans' voxels, and so many of them as hold the anatomy of every scan."""
    needed = _needed_mm(survey)
    own = float(np.median([np.prod(g.spacing) ** (1 / 3) for g in survey.geometries]))
    spacing = _two_digits(max(own * 0.99, float(needed.max()) / across * 0.9))
    fields = _fields_mm(survey)
    cells = np.minimum(np.ceil(fields / spacing - 1e-6), np.ceil(needed / spacing) + _MARGIN)
    x, y, z = (max(_FEWEST_CELLS, _MULTIPLE * math.ceil(n / _MULTIPLE)) for n in cells)
    return Grid(spacing, (x, y, z))


def _two_digits(length: float) -> float:
    """A length rounded up to two digits."""
    unit = 10.0 ** (math.floor(math.log10(length)) - 1)
    return float(f"{math.ceil(length / unit - 1e-6) * unit:.2g}")


def _needed_mm(survey: Survey) -> Float[np.ndarray, "3"]:
    """Edges of the box, centred on the fields of view, that holds the tissue of every scan; never beyond all fields."""
    reached = [2 * np.percentile(look.tissue_mm, 99.5, axis=0) for look in survey.looks.values() if len(look.tissue_mm)]
    fields = _fields_mm(survey)
    return np.minimum(fields, _ROOM * np.max(reached, axis=0)) if reached else fields


def _fields_mm(survey: Survey) -> Float[np.ndarray, "3"]:
    """Edges of the box that holds every field of view, were they laid over one another."""
    edges: np.ndarray = np.max([extent_mm(geometry) for geometry in survey.geometries], axis=0)
    return edges


def extent_mm(geometry: Geometry) -> Float[np.ndarray, "3"]:
    """Edges of the box along the body's axes that holds the field of view, in mm."""
    edges: np.ndarray = np.abs(geometry.affine[:3, :3]) @ np.array(geometry.shape)
    return edges


def _outside(geometries: Sequence[Geometry], grid: Grid) -> float:
    edges = np.array(grid.shape) * grid.spacing_mm
    shares = [1 - np.minimum(1, edges / extent_mm(geometry)).prod() for geometry in geometries]
    return float(np.median(shares))


def _cut(survey: Survey, grid: Grid) -> float:
    half = np.array(grid.shape) * grid.spacing_mm / 2
    beyond = [float((look.tissue_mm > half).any(1).mean()) for look in survey.looks.values() if len(look.tissue_mm)]
    return max(beyond, default=0.0)
