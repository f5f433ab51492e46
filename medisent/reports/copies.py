"""Volumes inside a page: 8-bit copies of a scan, its edits and its maps, as fine as a page of limited size can hold."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import nibabel
import numpy as np
from isal import igzip
from jaxtyping import Float, Int8, Num, UInt8

from medisent.volumes import Volume
from medisent.volumes.pictures import Window

NOTHING = 127  # where a map changes nothing; 0 and 254 are the ends of its scale
STEP = 4  # grey levels; an edit's copy is off by half of it at most, less than one level in a hundred
_TISSUE = 26  # grey levels; slices at the border that hold almost nothing brighter are no loss
_FEWEST = 4096  # voxels; coarser than that no copy tells anything
_MANY = 1_000_000  # voxels; of finer copies the maps, which are smooth, get blocks twice as long
_PIECE = 1 << 20  # voxels worked on at once
_SHARE = 0.7  # of the room; where the scan alone takes more, its edits and maps are not tried

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class EditCopy:
    """How the grey of a scan's copy becomes that of an edit's: a table of greys, and what is left in steps of 4.

    Attributes:
        table: Base64 of the grey that each of 256 greys becomes.
        rest: Base64 of the gzipped remainder: one signed byte a voxel, in the order of the NIfTI's.
    """

    table: str = field(repr=False)
    rest: str = field(repr=False)


@dataclass(frozen=True)
class Sampling:
    """Which voxels of a scan a copy is made of: a box of blocks, whose voxels are averaged.

    Attributes:
        starts: The first voxel along each axis.
        blocks: Voxels of a block along each axis.
        shape: Blocks along each axis.
    """

    starts: tuple[int, int, int]
    blocks: tuple[int, int, int]
    shape: tuple[int, int, int]

    @classmethod
    def over(cls, box: Box, blocks: tuple[int, int, int], shape: tuple[int, int, int]) -> Sampling:
        """Whole blocks over a box of a scan of this shape; a part of a block at the scan's far border is left out."""
        counts, starts = [], []
        for side, block, n in zip(box, blocks, shape, strict=True):
            count = max(1, min(math.ceil((side.stop - side.start) / block), n // block))
            counts.append(count)
            starts.append(min(side.start, n - count * block))
        return cls((starts[0], starts[1], starts[2]), blocks, (counts[0], counts[1], counts[2]))

    @property
    def box(self) -> Box:
        """The voxels that are copied."""
        x, y, z = (slice(s, s + b * n) for s, b, n in zip(self.starts, self.blocks, self.shape, strict=True))
        return x, y, z

    def coarser(self, spacing: tuple[float, float, float], ratio: float) -> tuple[int, int, int]:
        """Blocks of at least so many times the voxels, as near to cubes as whole voxels allow."""
        blocks = list(self.blocks)
        while math.prod(blocks) < ratio * math.prod(self.blocks):
            blocks[int(np.argmin([b * mm for b, mm in zip(blocks, spacing, strict=True)]))] += 1
        return blocks[0], blocks[1], blocks[2]

    def spacing(self, spacing: tuple[float, float, float]) -> tuple[float, float, float]:
        """Distance between blocks in mm, for voxels so far apart."""
        x, y, z = (b * mm for b, mm in zip(self.blocks, spacing, strict=True))
        return x, y, z

    def affine(self, affine: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
        """Block index to world millimetres."""
        step = np.diag([*map(float, self.blocks), 1.0])
        step[:3, 3] = np.array(self.starts) + (np.array(self.blocks) - 1) / 2
        placed: np.ndarray = affine @ step
        return placed

    def layers(self, voxels: Num[np.ndarray, "x y z"]) -> Iterator[tuple[Box, Num[np.ndarray, "_ _ _"]]]:
        """A few layers of blocks at a time: where they lie among the blocks, and their voxels.

        Layers follow each other as voxels do in memory; along another axis it takes four times as long.
        """
        axis = int(np.argmax(np.abs(voxels.strides)))
        depth, count = self.blocks[axis], self.shape[axis]
        area = math.prod(side.stop - side.start for side in self.box) // (depth * count)
        several = max(1, _PIECE // (depth * area))
        for first in range(0, count, several):
            last = min(first + several, count)
            at, source = [slice(None)] * 3, list(self.box)
            at[axis] = slice(first, last)
            source[axis] = slice(self.starts[axis] + first * depth, self.starts[axis] + last * depth)
            yield (at[0], at[1], at[2]), voxels[tuple(source)]

    def means(self, voxels: Num[np.ndarray, "_ _ _"]) -> Float[np.ndarray, "_ _ _"]:
        """Means over the blocks, of voxels that fill whole blocks; float32."""
        if self.blocks == (1, 1, 1):
            return np.asarray(voxels, dtype=np.float32)
        i, j, k = self.blocks
        means = voxels[::i, ::j, ::k].astype(np.float32)
        for x, y, z in list(np.ndindex(i, j, k))[1:]:
            means += voxels[x::i, y::j, z::k]
        means /= np.float32(i * j * k)
        return means


@dataclass(frozen=True)
class Copies:
    """What a page holds of volumes.

    Attributes:
        scan: Base64 of a gzipped NIfTI: the scan's grey in its window, one byte a voxel, with the true affine.
        edits: One for each edit, on the same voxels.
        maps: Base64 of gzipped NIfTI, one byte a voxel (see ``NOTHING``).
        sampling: Which of the scan's voxels they are made of.
        spacing: Of the copies' voxels, in mm.
        cropped: Whether slices at the border were left out.
    """

    scan: str = field(repr=False)
    edits: tuple[EditCopy, ...]
    maps: tuple[str, ...] = field(repr=False)
    sampling: Sampling
    spacing: tuple[float, float, float]
    cropped: bool

    @property
    def size(self) -> int:
        """Characters on the page."""
        return len(self.scan) + sum(len(e.table) + len(e.rest) for e in self.edits) + sum(map(len, self.maps))


def copies(
    scan: Volume,
    window: Window,
    edits: Sequence[Num[np.ndarray, "x y z"]],
    maps: Sequence[tuple[Num[np.ndarray, "x y z"], float]],
    limit: int,
) -> Copies:
    """Copies of a scan, its edits and its maps that together take at most so many characters of a page.

    Slices at the border that hold no tissue are left out first, then neighbouring voxels are averaged.

    Arguments:
        scan: The scan.
        window: What is black and what is white, for the scan and every edit.
        edits: Its counterfactuals, on its voxels.
        maps: Signed change on its voxels, and the change at the end of its scale.
        limit: Characters.
    """
    shape = scan.geometry.shape
    box: Box = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
    sampling, cropped = Sampling.over(box, (1, 1, 1), shape), False
    while True:
        grey = _grey(scan.voxels, window, sampling)
        found = Copies(
            _nifti(grey, sampling.affine(scan.affine)), (), (), sampling, sampling.spacing(scan.spacing), cropped
        )
        few = math.prod(sampling.shape) <= _FEWEST
        tried = few or found.size <= (_SHARE if edits or maps else 1) * limit
        if tried:
            changed = tuple(_edit(voxels, grey, window, sampling) for voxels in edits)
            placed = tuple(_map(change, end, scan, sampling) for change, end in maps)
            found = replace(found, edits=changed, maps=placed)
        if few or (tried and found.size <= limit):
            return found
        if not cropped:
            box, cropped = _tissue(grey), True
            kept = math.prod(side.stop - side.start for side in box) / math.prod(shape)
            if kept * found.size <= _SHARE * limit:
                sampling = Sampling.over(box, (1, 1, 1), shape)
                continue
        sampling = Sampling.over(box, sampling.coarser(scan.spacing, max(1.2, found.size / (_SHARE * limit))), shape)


def _grey(voxels: Num[np.ndarray, "x y z"], window: Window, sampling: Sampling) -> UInt8[np.ndarray, "_ _ _"]:
    """The means of a volume's blocks as grey, in the memory order of NIfTI's voxels."""
    grey = np.empty(sampling.shape, np.uint8, order="F")
    for at, layers in sampling.layers(voxels):
        grey[at] = window.grey(sampling.means(layers))
    return grey


def _edit(
    voxels: Num[np.ndarray, "x y z"], before: UInt8[np.ndarray, "_ _ _"], window: Window, sampling: Sampling
) -> EditCopy:
    """How the scan's grey becomes that of an edit."""
    table, rest = steps_between(before, _grey(voxels, window, sampling))
    return EditCopy(text_of(table.tobytes()), packed(rest.tobytes("F")))


def steps_between(
    before: UInt8[np.ndarray, "x y z"], after: UInt8[np.ndarray, "x y z"]
) -> tuple[UInt8[np.ndarray, "256"], Int8[np.ndarray, "x y z"]]:
    """How one grey becomes another: the grey that each grey becomes, and in steps of 4 what is then left.

    The table changes nothing where less than half of the voxels change; so those that do not stay what they are.
    """
    same = np.arange(256)
    thin = (slice(None, None, max(1, before.shape[0] // 64)),) * 3
    one, other = before[thin].ravel(), after[thin].ravel()
    table = same
    if np.count_nonzero(one != other) > one.size / 2:
        counts = np.bincount(one, minlength=256)
        sums = np.bincount(one, weights=other, minlength=256)
        table = np.rint(np.interp(same, same[counts > 0], sums[counts > 0] / counts[counts > 0]))
    table = table.astype(np.int16)
    rest = np.empty(before.shape, np.int8, order="F")
    for i in range(before.shape[2]):
        left = after[:, :, i].astype(np.float32) - table[before[:, :, i]]
        rest[:, :, i] = np.rint(left / STEP)
    return table.astype(np.uint8), rest


def _map(change: Num[np.ndarray, "x y z"], end: float, scan: Volume, sampling: Sampling) -> str:
    """A map as NIfTI, in steps, with blocks twice as long where there are many voxels."""
    if math.prod(sampling.shape) > _MANY:
        i, j, k = sampling.blocks
        sampling = Sampling.over(sampling.box, (2 * i, 2 * j, 2 * k), scan.geometry.shape)
    steps = np.empty(sampling.shape, np.uint8, order="F")
    for at, layers in sampling.layers(change):
        share = np.clip(np.nan_to_num(sampling.means(layers)) / (end or 1.0), -1, 1)
        steps[at] = NOTHING + STEP * np.rint((NOTHING / STEP) * share).clip(-(NOTHING // STEP), NOTHING // STEP)
    return _nifti(steps, sampling.affine(scan.affine))


def _tissue(grey: UInt8[np.ndarray, "x y z"]) -> Box:
    """The slices between the first and the last that hold some tissue, along each axis."""
    bright = grey > _TISSUE
    sides = []
    for axis in range(3):
        others = tuple(i for i in range(3) if i != axis)
        found = np.nonzero(bright.mean(axis=others) > 0.002)[0]
        sides.append(slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, grey.shape[axis]))
    return sides[0], sides[1], sides[2]


def _nifti(voxels: UInt8[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]) -> str:
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.header["cal_max"] = 255
    image.header["descrip"] = b"display copy, 8 bit"
    return packed(image.to_bytes())


def packed(data: bytes) -> str:
    """Base64 of the gzipped bytes."""
    return text_of(igzip.compress(data, 3, mtime=0))


def text_of(data: bytes) -> str:
    """Base64 of the bytes."""
    return base64.b64encode(data).decode()
