"""Where images lie: whether they make one evenly spaced box, its affine, and the name of the fault if they do not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer

from medisent.formats.dicom.faults import Fault, Verdict, refused
from medisent.formats.dicom.frames import Frame

_PARALLEL = 1e-3  # directions may differ by this
_NEARLY = 1e-4  # from here on it is remarked
_SAME_SPACING = 1e-3
_SAME_PLACE = 0.01  # of the usual distance of slices
_UNEVEN = 0.05  # slices may lie off their place by this part of their distance
_REMARKED = 0.01  # from here on it is remarked
_MISSING = 1.5  # times the usual distance: there is room for another slice
_TILT = 0.01  # shift within the plane for each step along the normal: 0.6 degrees
_STEEPEST = 45.0  # degrees; gantries tilt by 30 at most
_CONTENT = {
    Fault.RGB: "holds colour images (RGB), but a scan has one value in each voxel. Give the original series.",
    Fault.NO_PIXELS: "has an image without pixels. Export it from the scanner again.",
    Fault.BITS: (
        "stores values in a number of bits that is not read, as segmentations do, or does not say whether they have a "
        "sign. Give the scan itself."
    ),
    Fault.MODALITY_LUT: "maps its values through a table, which is not read. Convert it to NIfTI first.",
    Fault.FRAMES: "holds several frames in one file without the place of each. Convert it to NIfTI first.",
    Fault.MOSAIC: (
        "holds mosaics, many slices tiled into one image, without the private header that tells their order. "
        "Convert the original files with dcm2niix first."
    ),
}


def judge(frames: Sequence[Frame]) -> Verdict:
    """Whether images make one volume, or several of the same places.

    The affine maps a slice's number to its place exactly, whatever the gantry's tilt: a step from one slice to the
    next need not be perpendicular to them.
    """
    alone = _each_alone(frames)
    if alone is not None:
        return alone
    first = frames[0]
    positions, axes, spacing = (
        np.array([getattr(f, name) for f in frames]) for name in ("position", "axes", "spacing")
    )
    unlike = _unlike(frames, axes, spacing)
    if unlike is not None:
        return unlike
    row, column = axes[0, :3] / np.linalg.norm(axes[0, :3]), axes[0, 3:] / np.linalg.norm(axes[0, 3:])
    normal = np.cross(row, column)
    order = _places(positions, normal / np.linalg.norm(normal))
    if isinstance(order, Verdict):
        return order
    stepped = _step(positions[order[0]], normal / np.linalg.norm(normal))
    if stepped.refused or stepped.affine is None:
        return stepped
    beside = np.linalg.norm(positions[order] - positions[order[0]], axis=2).max()
    if beside > _UNEVEN * np.linalg.norm(stepped.affine[:3, 2]):
        return refused(
            Fault.DUPLICATE,
            f"has slices of one height that lie up to {beside:.2f} mm beside each other. Give one of them.",
        )
    remarks = (*stepped.remarks, *_told_otherwise(first, float(stepped.affine[:3, 2] @ normal)))
    if 0 < sum(frame.rescale == (1.0, 0.0) for frame in frames) < len(frames):
        remarks = (*remarks, "Some of the images are rescaled, and some are not.")
    if np.abs(axes - axes[0]).max() > _NEARLY:
        remarks = (*remarks, "The slices' directions differ a little; those of the first are used.")
    lps = stepped.affine
    lps[:3, 0], lps[:3, 1], lps[:3, 3] = row * first.spacing_mm[1], column * first.spacing_mm[0], positions[order[0, 0]]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    return Verdict("warned" if remarks else "ok", stepped.fault, "", remarks, order, affine)


def _told_otherwise(frame: Frame, distance: float) -> tuple[str, ...]:
    """A sentence where there is room for slices between the slices by what the header tells of their distance."""
    if frame.apart is None or not 0 < abs(frame.apart) * _MISSING < distance:
        return ()
    return (
        f"The header tells of {abs(frame.apart):.2f} mm from slice to slice, their places of {distance:.2f} mm, which "
        "are used; slices may be missing.",
    )


def _each_alone(frames: Sequence[Frame]) -> Verdict | None:
    """The first fault that an image has by itself."""
    for frame in frames:
        if frame.image.fault is not None:
            return refused(frame.image.fault, _CONTENT[frame.image.fault])
    for name, fault, words, count in (
        ("position", Fault.NO_POSITION, "position", 3),
        ("axes", Fault.NO_ORIENTATION, "orientation", 6),
        ("spacing", Fault.NO_SPACING, "pixel spacing", 2),
    ):
        for frame in frames:
            found = getattr(frame, name)
            if found is None or len(found) != count:
                return refused(
                    fault,
                    f"has an image without {words}, so its place is unknown. Export it from the scanner again.",
                )
            if not np.isfinite(found).all():
                return refused(fault, f"has an image whose {words} is not a number. Export it from the scanner again.")
    axes = np.array([frame.axes for frame in frames])
    lengths = np.linalg.norm(axes.reshape(-1, 2, 3), axis=2)
    square = np.abs(lengths - 1).max() < 1e-2 and np.abs((axes[:, :3] * axes[:, 3:]).sum(axis=1)).max() < 1e-2
    if not square or min(min(frame.spacing_mm) for frame in frames) <= 0:
        return refused(
            Fault.AXES, "has an image whose axes or spacing are impossible. Export it from the scanner again."
        )
    if not all(np.isfinite(frame.rescale).all() and frame.rescale[0] for frame in frames):
        return refused(Fault.DAMAGED, "rescales its values by what is no number, or by 0. Export it again.")
    return None


def _unlike(
    frames: Sequence[Frame], axes: Float[np.ndarray, "n 6"], spacing: Float[np.ndarray, "n 2"]
) -> Verdict | None:
    """Why images are not of one kind; the last is that there is but one."""
    if len({(frame.rows, frame.columns) for frame in frames}) > 1:
        return refused(Fault.SIZE, "mixes images of different size. Give a folder with one series of equal images.")
    if np.abs(axes - axes[0]).max() > _PARALLEL:
        return refused(
            Fault.ORIENTATION,
            "mixes images of different orientation. Give a folder with one series of parallel slices.",
        )
    if not np.allclose(spacing, spacing[0], rtol=_SAME_SPACING, atol=0):
        return refused(
            Fault.SPACING, "mixes images of different pixel spacing. Give a folder with one series of equal images."
        )
    if len({frame.stack for frame in frames}) > 1:
        return refused(
            Fault.FRAME_OF_REFERENCE,
            "mixes images whose places are told in different frames of reference or stacks. Give a folder with one.",
        )
    if len(frames) == 1:
        return refused(
            Fault.SINGLE_SLICE, "has one slice, but a scan has three dimensions. Give the folder of its series."
        )
    return None


def _places(
    positions: Float[np.ndarray, "n 3"], normal: Float[np.ndarray, "3"]
) -> Integer[np.ndarray, "volumes places"] | Verdict:
    """The images in their order along the normal; one row where each has a place of its own, else several."""
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    gaps = np.diff(heights[order])
    apart = gaps[gaps > 1e-3]
    if not len(apart):
        return refused(
            Fault.SINGLE_SLICE,
            f"has {len(positions)} images of one slice: copies, echoes or time points. Give the folder of its series.",
        )
    new = np.concatenate([[True], gaps > _SAME_PLACE * np.median(apart)])
    counts = np.diff(np.flatnonzero(np.append(new, True)))
    if (counts == 1).all():
        return order[None]
    if (counts != counts[0]).any():
        twice = int(len(positions) - new.sum())
        return refused(
            Fault.DUPLICATE,
            f"has {twice} of {len(positions)} slices at the place of another: duplicate slices, or echoes or time "
            "points of which some are missing. Give a folder with one image of each place.",
        )
    return order.reshape(-1, counts[0]).T


def _step(positions: Float[np.ndarray, "n 3"], normal: Float[np.ndarray, "3"]) -> Verdict:
    """The step from one slice to the next as the third column of an affine in LPS+, if all steps are equal."""
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    if (fault := _uneven(gaps, usual, len(positions))) is not None:
        return fault
    off = positions - positions[0] - np.arange(len(positions))[:, None] * step
    worst = float(np.linalg.norm(off, axis=1).max())
    if worst > _UNEVEN * usual:
        if np.abs(off @ normal).max() > _UNEVEN * usual:
            return refused(
                Fault.UNEVEN, f"has uneven slices, up to {worst:.2f} mm off their places. Give the original."
            )
        return refused(
            Fault.CROOKED,
            f"has slices that do not lie on a straight line, but up to {worst:.2f} mm beside it. "
            "Export the series from the scanner again.",
        )
    angle = float(np.degrees(np.arctan2(np.linalg.norm(step - normal * (step @ normal)), step @ normal)))
    if angle > _STEEPEST:
        return refused(
            Fault.TILT,
            f"has slices tilted by {angle:.1f} degrees against their row, as no scanner can. Export it again.",
        )
    remarks, tilted = [], angle > np.degrees(np.arctan(_TILT))
    if tilted:
        remarks.append(
            f"The gantry was tilted by {angle:.1f} degrees; the affine is sheared accordingly, and every voxel keeps "
            "its value and its place."
        )
    if worst > _REMARKED * usual:
        remarks.append(
            f"The slices are slightly uneven, up to {worst:.3f} mm off their places; "
            f"{np.linalg.norm(step):.3f} mm from one to the next is used."
        )
    affine = np.eye(4)
    affine[:3, 2] = step
    first = Fault.TILT if tilted else Fault.UNEVEN if remarks else None
    return Verdict("warned" if remarks else "ok", first, "", tuple(remarks), None, affine)


def _uneven(gaps: Float[np.ndarray, " n"], usual: float, count: int) -> Verdict | None:
    """Missing slices, or uneven ones."""
    if float(np.abs(gaps / usual - 1).max()) <= 2 * _UNEVEN:
        return None
    times = gaps / gaps.min()
    whole = np.abs(times - np.round(times)) <= 2 * _UNEVEN * np.round(times)
    found = f"has slices {gaps.min():.2f} to {gaps.max():.2f} mm apart"
    if whole.all() and times.max() > _MISSING:
        missing = int((np.round(times) - 1).sum())
        return refused(Fault.GAP, f"{found}: {missing} of {count + missing} are missing. Give the whole series.")
    if gaps.max() > _MISSING * usual:
        return refused(
            Fault.GAP, f"{found}: there is a gap, and some are missing, or they are uneven. Give the whole series."
        )
    return refused(Fault.UNEVEN, f"{found}: they are uneven. Give a series with even distances.")
