"""Films: three planes of one scan side by side, on one scale and in one window, every picture kept once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Num

from medisent.reports.pages import data_uri
from medisent.volumes import Volume, pictures
from medisent.volumes.pictures import Plane, Profile, Upright, Window
from medisent.words import number

GREY_PIXELS = 288  # more do not fit beside each other on a page
COLOUR_PIXELS = 160


@dataclass(frozen=True)
class Picture:
    """A picture that the page holds once and shows wherever it is named; width and height in mm."""

    name: str
    source: str = field(repr=False)
    width: float
    height: float


@dataclass(frozen=True)
class Cell:
    """One plane: its pictures from the bottom up, its letters (left, right, top, bottom), its place; lengths in mm."""

    plane: str
    place: str
    letters: str
    width: float
    offset: float
    layers: tuple[Picture, ...]


@dataclass(frozen=True)
class Film:
    """Three planes side by side on one scale in mm; ``bar`` is the length of the scale's bar."""

    cells: tuple[Cell, ...]
    height: float
    bar: float

    @property
    def columns(self) -> str:
        """The widths of the planes, as CSS grid tracks."""
        return " ".join(f"{cell.width:.6g}fr" for cell in self.cells)

    @property
    def ratio(self) -> float:
        """Width over height."""
        return round(sum(cell.width for cell in self.cells) / self.height, 4)


@dataclass(frozen=True)
class Scale:
    """A symmetric colour bar: its end, and what is counted."""

    end: str
    label: str
    gradient: str


class LightTable:
    """Hangs planes of one scan, all on one scale and in one window, and keeps each picture once.

    Args:
        scan: The scan.
    """

    def __init__(self, scan: Volume) -> None:
        self.upright = Upright(scan)
        self.window: Window = pictures.robust_window(scan.voxels)
        self.album: dict[bytes, Picture] = {}
        self._scan_films: dict[tuple[int, int, int], Film] = {}
        right, anterior, superior = self.upright.shape
        self.middle = (right // 2, anterior // 2, superior // 2)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to know about the pictures."""
        low, high = number(self.window.low), number(self.window.high)
        spacing = " × ".join(number(mm) for mm in self.upright.volume.spacing)
        codes = self.upright.volume.geometry.axis_codes
        remarks = [
            "Radiological convention: the patient's right is on your left.",
            f"Black is {low}, white is {high}, in the scan's own units, for the scan and every edit alike.",
            f"Voxels {spacing} mm, stored {codes}.",
        ]
        if self.upright.tilt > 1:
            tilt = round(self.upright.tilt)
            remarks.append(f"The planes follow the voxels, which are tilted by up to {tilt}° from the patient's axes.")
        return tuple(remarks)

    def millimetres(self, at: tuple[int, int, int]) -> tuple[float, float, float]:
        """Where an upright index lies, in mm RAS+."""
        x, y, z, _ = self.upright.affine @ np.array([*at, 1.0])
        return float(x), float(y), float(z)

    def scan_film(self, at: tuple[int, int, int]) -> Film:
        """The scan's own three planes in grey, made once for each place."""
        if at not in self._scan_films:
            self._scan_films[at] = self.film(self.upright.volume.voxels, at)
        return self._scan_films[at]

    def film(self, voxels: Num[np.ndarray, "x y z"], at: tuple[int, int, int]) -> Film:
        """The voxels' three planes in grey."""
        planes = self.upright.cut(voxels, at)
        greys = [pictures.grey_png(pictures.at_most(plane, GREY_PIXELS), self.window) for plane in planes]
        return self._film([(self._kept(png, size),) for png, size in zip(greys, self.upright.sizes, strict=True)], at)

    def profile(self, voxels: Num[np.ndarray, "_ _ _"], less: Num[np.ndarray, "_ _ _"] | None) -> Profile:
        """How much every slice holds of the voxels, or of their difference from others."""
        view = self.upright.turned(voxels)
        if less is not None:
            view = np.subtract(view, self.upright.turned(less), dtype=np.float32)
        return pictures.profile(view)

    def change_planes(
        self, voxels: Num[np.ndarray, "_ _ _"], less: Num[np.ndarray, "_ _ _"] | None, at: tuple[int, int, int]
    ) -> list[Plane]:
        """Three planes of the voxels, or of their difference from others, as large as they are shown."""
        planes = list(self.upright.cut(voxels, at))
        if less is not None:
            planes = [plane - other for plane, other in zip(planes, self.upright.cut(less, at), strict=True)]
        return [pictures.at_most(plane, COLOUR_PIXELS) for plane in planes]

    def change_film(self, planes: Sequence[Plane], limit: float, at: tuple[int, int, int], under: Film) -> Film:
        """Three planes of change in colour, over the planes of another film."""
        layers = []
        for i, (plane, size) in enumerate(zip(planes, self.upright.sizes, strict=True)):
            above = (self._kept(pictures.change_png(plane, limit), size),) if limit > 0 else ()
            layers.append((*under.cells[i].layers, *above))
        return self._film(layers, at)

    def _kept(self, png: bytes, size: tuple[float, float]) -> Picture:
        if png not in self.album:
            self.album[png] = Picture(f"p{len(self.album)}", data_uri(png), round(size[0], 3), round(size[1], 3))
        return self.album[png]

    def _film(self, layers: Sequence[tuple[Picture, ...]], at: tuple[int, int, int]) -> Film:
        height = max(h for _, h in self.upright.sizes)
        cells = [
            Cell(name, place, pictures.LETTERS[name], round(width, 3), round((height - tall) / 2, 3), stack)
            for name, place, (width, tall), stack in zip(
                pictures.PLANES, self.upright.places(at), self.upright.sizes, layers, strict=True
            )
        ]
        return Film(tuple(cells), round(height, 3), pictures.nice_length(cells[0].width / 3))


def colour_scale(limit: float, label: str) -> Scale | None:
    """The colour bar of changes up to ``limit``; None where nothing changes."""
    if limit <= 0:
        return None
    stops = []
    for i in range(21):
        red, green, blue, opacity = pictures.shade(i / 10 - 1)
        stops.append(f"rgba({red},{green},{blue},{opacity / 255:.3f}) {5 * i}%")
    return Scale(number(limit, 2), label, f"linear-gradient(90deg,{','.join(stops)})")
