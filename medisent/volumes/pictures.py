"""Pictures of a scan: three planes as a radiologist hangs them, and change in colour. Knows no page."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Num, UInt8
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from PIL import Image, ImageDraw, ImageFont

from medisent.errors import GeometryError
from medisent.volumes.volume import Geometry, Volume

PLANES = ("axial", "coronal", "sagittal")
COLD = ((0.0, 12, 22, 44), (0.35, 28, 94, 190), (0.7, 74, 164, 240), (1.0, 190, 232, 255))
HOT = ((0.0, 44, 18, 8), (0.35, 190, 68, 18), (0.7, 246, 146, 52), (1.0, 255, 232, 160))
LETTERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}  # viewer's left, right, top, bottom

Plane: TypeAlias = Float[np.ndarray, "_ _"]
Profile: TypeAlias = tuple[Float[np.ndarray, " right"], Float[np.ndarray, " anterior"], Float[np.ndarray, " superior"]]


@dataclass(frozen=True)
class Window:
    """The intensities that are shown as black and as white, in the scan's own units."""

    low: float
    high: float

    def grey(self, plane: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
        """A plane, or a volume, as 8-bit grey."""
        share = plane - self.low if np.isfinite(plane).all() else np.nan_to_num(plane) - self.low
        share /= self.high - self.low
        np.clip(share, 0, 1, out=share)
        share *= 255
        return np.rint(share, out=share).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Upright:
    """A scan whose axes are turned, by flips and swaps alone, to the nearest right, anterior and superior.

    Attributes:
        volume: The scan as it is stored.
    """

    volume: Volume

    @cached_property
    def orientation(self) -> Float[np.ndarray, "3 2"]:
        """For each stored axis, the patient's axis it is nearest to and its sign, as nibabel writes them."""
        return np.array(io_orientation(self.volume.affine), dtype=np.float64)

    @cached_property
    def affine(self) -> Float[np.ndarray, "4 4"]:
        """Upright voxel index to world millimetres."""
        turned: np.ndarray = self.volume.affine @ inv_ornt_aff(self.orientation, self.volume.geometry.shape)
        return turned

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxels to the right, to the front and upwards, in mm."""
        right, anterior, superior = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(right), float(anterior), float(superior)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels to the right, to the front and upwards."""
        right, anterior, superior = (self.volume.geometry.shape[int(i)] for i in np.argsort(self.orientation[:, 0]))
        return right, anterior, superior

    @property
    def tilt(self) -> float:
        """The largest angle between a voxel axis and the patient's axis it is named after, in degrees."""
        cosine = np.diag(self.affine)[:3] / np.array(self.spacing)
        return float(np.degrees(np.arccos(np.clip(cosine.min(), -1, 1))))

    def turned(self, stored: Num[np.ndarray, "_ _ _"]) -> Num[np.ndarray, "right anterior superior"]:
        """A view of voxels of the same grid, turned upright.

        Raises:
            GeometryError: The voxels are not of this scan's grid.
        """
        if stored.shape != self.volume.voxels.shape:
            asked, has = (" x ".join(map(str, shape)) for shape in (stored.shape, self.volume.voxels.shape))
            raise GeometryError(
                f"Voxels of {asked} cannot lie over a scan of {has}. Bring them to the scan's grid first."
            )
        view: np.ndarray = apply_orientation(stored, self.orientation)
        return view

    def cut(self, stored: Num[np.ndarray, "x y z"], at: tuple[int, int, int]) -> tuple[Plane, Plane, Plane]:
        """The axial, coronal and sagittal planes through upright index ``at``, first row on top, first column left.

        Radiological convention: the patient's right on the viewer's left; sagittal planes look to the left.
        """
        view = self.turned(stored)
        right, anterior, superior = at
        axial = view[::-1, ::-1, superior].T
        coronal = view[::-1, anterior, ::-1].T
        sagittal = view[right, ::-1, ::-1].T
        return axial.astype(np.float32), coronal.astype(np.float32), sagittal.astype(np.float32)

    def slabs(self, at: tuple[int, int, int]) -> tuple[Volume, Volume, Volume]:
        """The parts of the scan, one voxel thick, that the planes through upright index ``at`` show."""
        axial, coronal, sagittal = (self._slab(axis, at[axis]) for axis in (2, 1, 0))
        return axial, coronal, sagittal

    def _slab(self, axis: int, index: int) -> Volume:
        """The voxels, as they are stored, of one slice across an upright axis."""
        scan = self.volume
        along = int(np.flatnonzero(self.orientation[:, 0] == axis)[0])
        start = index if self.orientation[along, 1] > 0 else scan.geometry.shape[along] - 1 - index
        x, y, z = (slice(start, start + 1) if i == along else slice(None) for i in range(3))
        affine = scan.affine.copy()
        affine[:3, 3] += start * affine[:3, along]
        voxels = scan.voxels[x, y, z]
        i, j, k = voxels.shape
        return Volume(voxels, Geometry(affine, (i, j, k)))

    @property
    def sizes(self) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
        """Width and height of the axial, coronal and sagittal planes, in mm."""
        right, anterior, superior = (n * mm for n, mm in zip(self.shape, self.spacing, strict=True))
        return (right, anterior), (right, superior), (anterior, superior)

    def places(self, at: tuple[int, int, int]) -> tuple[str, str, str]:
        """Where the axial, coronal and sagittal planes lie, such as ``S 12 mm``."""
        middle = (np.array(self.shape) - 1) / 2
        places = []
        for axis, (plus, minus) in ((2, "SI"), (1, "AP"), (0, "RL")):
            index = middle.copy()
            index[axis] = at[axis]
            mm = round(float(self.affine[axis, :3] @ index + self.affine[axis, 3]))
            places.append(f"{plus if mm >= 0 else minus} {abs(mm)} mm")
        return places[0], places[1], places[2]


def robust_window(voxels: Num[np.ndarray, "x y z"]) -> Window:
    """From the 0.5th percentile to a fifth above the 98th, of at most about a million voxels, in the scan's own units.

    The room above is for lesions: small ones are brighter than the tissue and rarer than any percentile.
    """
    step = max(1, int(np.ceil((voxels.size / 1e6) ** (1 / 3))))
    sample = np.asarray(voxels[::step, ::step, ::step], dtype=np.float64)
    sample = sample[np.isfinite(sample)]
    low, high = np.percentile(sample, (0.5, 98)) if sample.size else (0.0, 1.0)
    if high <= low:  # almost everything is background
        low, high = (sample.min(), sample.max()) if sample.size else (0.0, 1.0)
    return Window(float(low), float(low + 1.2 * (high - low) if high > low else low + 1))


def profile(change: Num[np.ndarray, "right anterior superior"]) -> Profile:
    """How much changes in every slice of each axis: sums of squares, as shares of the whole; zeros without change."""
    parts = [np.einsum(f"xyz,xyz->{axis}", change, change).astype(np.float64) for axis in "xyz"]
    total = parts[0].sum()
    right, anterior, superior = (part / total if 0 < total < np.inf else np.zeros(part.shape) for part in parts)
    return right, anterior, superior


def busiest(profiles: list[Profile]) -> tuple[int, int, int] | None:
    """The upright index of the slices with the most change, every change weighing the same; None without change."""
    right, anterior, superior = (np.sum(parts, axis=0) for parts in zip(*profiles, strict=True))
    if right.max() == 0:
        return None
    return int(np.argmax(right)), int(np.argmax(anterior)), int(np.argmax(superior))


def robust_limit(planes: list[Plane]) -> float:
    """The end of a symmetric colour scale: the 99.5th percentile of the change, rounded up to two digits; or 0."""
    sizes = np.concatenate([np.abs(np.nan_to_num(plane)).ravel() for plane in planes])
    largest = float(sizes.max(initial=0.0))
    if largest == 0:
        return 0.0
    end = float(np.percentile(sizes[sizes > 0.01 * largest], 99.5))
    unit = 10.0 ** (np.floor(np.log10(end)) - 1)
    return float(np.ceil(round(end / unit, 6)) * unit)


def shade(share: float) -> tuple[int, int, int, int]:
    """Red, green, blue, opacity (0 to 255) of a signed share of the scale: blue below, clear at, orange above zero."""
    size = min(abs(share), 1.0)
    stops = np.array(HOT if share >= 0 else COLD)
    red, green, blue = (round(float(np.interp(size, stops[:, 0], stops[:, i]))) for i in (1, 2, 3))
    ramp = min(max((size - 0.03) / 0.3, 0.0), 1.0)
    return red, green, blue, round(235 * ramp * ramp * (3 - 2 * ramp))


PALETTE = np.array([shade((i - 127) / 127) for i in range(255)], dtype=np.uint8)


def at_most(plane: Plane, pixels: int) -> Plane:
    """The plane averaged down until neither side has more than so many pixels."""
    rows, columns = plane.shape
    if max(rows, columns) <= pixels:
        return plane
    size = (min(columns, pixels), min(rows, pixels))
    image = Image.fromarray(np.nan_to_num(plane).astype(np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BOX), dtype=np.float32)


def grey_png(plane: Plane, window: Window) -> bytes:
    """A plane in grey, as PNG without any metadata."""
    return _png(Image.fromarray(window.grey(plane)))


def change_png(plane: Plane, limit: float) -> bytes:
    """A plane of signed change in colour, clear where nothing changes, as PNG without any metadata."""
    image = Image.fromarray(_steps(plane, limit), mode="P")
    image.putpalette(PALETTE[:, :3].tobytes())
    return _png(image, transparency=PALETTE[:, 3].tobytes())


def planes(
    volume: Volume,
    *,
    at: tuple[int, int, int] | None = None,
    window: Window | None = None,
    change: Float[np.ndarray, "x y z"] | None = None,
    limit: float | None = None,
    height: int = 300,
) -> bytes:
    """Axial, coronal and sagittal planes side by side, as PNG: radiological convention, true proportions, letters, bar.

    Args:
        volume: The scan; its planes are hung by the nearest anatomical axes.
        at: Stored voxel index the planes go through; by default where ``change`` is largest, else the middle.
        window: What is black and what is white; by default robust percentiles of the scan.
        change: Signed change to lay over the scan in colour, on the same grid.
        limit: Change at the end of the colours; by default robust.
        height: Height of the picture, in pixels.

    Raises:
        GeometryError: The change is not on the scan's grid, or ``at`` lies outside it.
    """
    scan = Upright(volume)
    index = slices_through(scan, at, change)
    shades = window or robust_window(volume.voxels)
    greys = scan.cut(volume.voxels, index)
    colours = None if change is None else scan.cut(change, index)
    end = limit if limit is not None else robust_limit(list(colours)) if colours else 0.0
    scale = height / max(h for _, h in scan.sizes)
    gap = max(2, height // 100)
    widths = [max(1, round(w * scale)) for w, _ in scan.sizes]
    sheet = Image.new("RGB", (sum(widths) + 2 * gap, height))
    left = 0
    for i, name in enumerate(PLANES):
        size = (widths[i], max(1, round(scan.sizes[i][1] * scale)))
        top = (height - size[1]) // 2
        grey = shades.grey(_resized(greys[i], size))
        picture = Image.fromarray(grey if colours is None else grey // 4 * 3).convert("RGBA")
        if colours is not None and end > 0:
            picture.alpha_composite(Image.fromarray(PALETTE[_steps(_resized(colours[i], size), end)]))
        sheet.paste(picture.convert("RGB"), (left, top))
        _write_letters(sheet, name, (left, 0, left + widths[i], height), scale if i == 0 else None)
        left += widths[i] + gap
    return _png(sheet)


def nice_length(mm: float) -> float:
    """The largest of 1, 2, 5, 10, ... that is not above so many mm."""
    power = 10.0 ** np.floor(np.log10(mm))
    return float(max(step * power for step in (1, 2, 5) if step * power <= mm * (1 + 1e-9)))


def slices_through(
    scan: Upright, at: tuple[int, int, int] | None, change: Float[np.ndarray, "x y z"] | None
) -> tuple[int, int, int]:
    """The upright index of the planes through stored index ``at``; without it where most changes, else the middle.

    Raises:
        GeometryError: It lies outside of the scan.
    """
    if at is None:
        found = busiest([profile(scan.turned(change))]) if change is not None else None
        right, anterior, superior = found or tuple(n // 2 for n in scan.shape)
        return right, anterior, superior
    if not all(0 <= i < n for i, n in zip(at, scan.volume.geometry.shape, strict=True)):
        raise GeometryError(f"Planes through voxel {at} were asked for, but the scan has {scan.volume.geometry.shape}.")
    world = scan.volume.affine @ np.array([*at, 1.0])
    right, anterior, superior = (int(i) for i in np.rint(np.linalg.solve(scan.affine, world)[:3]))
    return right, anterior, superior


def _steps(plane: Plane, limit: float) -> UInt8[np.ndarray, "_ _"]:
    steps: np.ndarray = np.rint(127 + 127 * np.clip(np.nan_to_num(plane) / limit, -1, 1))
    return steps.astype(np.uint8)


def _resized(plane: Plane, size: tuple[int, int]) -> Plane:
    image = Image.fromarray(np.nan_to_num(plane).astype(np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR), dtype=np.float32)


def _write_letters(sheet: Image.Image, plane: str, box: tuple[int, int, int, int], scale: float | None) -> None:
    left, top, right, bottom = box
    size = max(9, (bottom - top) // 22)
    pen, font, pad = ImageDraw.Draw(sheet), ImageFont.load_default(size), max(3, size // 3)
    middle, centre = (top + bottom) // 2, (left + right) // 2

    def letter(text: str, x: int, y: int, anchor: str) -> None:
        pen.text((x, y), text, fill=(255, 255, 255), font=font, anchor=anchor, stroke_width=1, stroke_fill=(0, 0, 0))

    letter(LETTERS[plane][0], left + pad, middle, "lm")
    letter(LETTERS[plane][1], right - pad, middle, "rm")
    letter(LETTERS[plane][2], centre, top + pad, "mt")
    letter(LETTERS[plane][3], centre, bottom - pad, "mb")
    if scale is None:
        return
    length = nice_length((right - left) / scale / 3)
    y, x = bottom - pad - 1, left + pad
    pen.line((x, y, x + round(length * scale), y), fill=(255, 255, 255), width=max(1, size // 7))
    letter(f"{length:g} mm", x, y - pad, "lb")


def _png(image: Image.Image, transparency: bytes | None = None) -> bytes:
    stream = io.BytesIO()
    if transparency is None:
        image.save(stream, "PNG", compress_level=6)  # 9 takes four times as long for a hundredth of the size
    else:
        image.save(stream, "PNG", compress_level=6, transparency=transparency)
    return stream.getvalue()
