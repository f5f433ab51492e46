"""The scan as it would be with other values of its factors, in the scan's own space."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from medisent.checkpoints import FactorCard, Trained
from medisent.errors import InterventionError, UsageError
from medisent.factors import Factor
from medisent.grids import restore, unit_coordinates
from medisent.mechanisms import Scene, mechanism_of
from medisent.readings import Reading, read_factors
from medisent.scanners import Scanner, bias_basis
from medisent.volumes import Geometry, Volume

_REFERENCE = {"brightness": 1.0, "contrast": 1.0, "bias_field": 0.0}
_SLAB = 1 << 21  # voxels worked on at once


@dataclass(frozen=True)
class Wish:
    """A factor's new value, absolute or relative to what the scan shows now.

    Attributes:
        name: Of the factor.
        operation: ``=``, ``*=`` or ``+=``.
        value: As written.
    """

    name: str
    operation: str
    value: str

    def __str__(self) -> str:
        return f"{self.name}{self.operation}{self.value}"


def parse_wish(text: str) -> Wish:
    """The wish that a text such as ``tumour_volume*=1.5`` states.

    Raises:
        UsageError: It states none.

    Example:
        >>> parse_wish("tumour_volume+=10")
        Wish(name='tumour_volume', operation='+=', value='10')
    """
    found = re.fullmatch(r"\s*([^=*+\s]+)\s*(\*=|\+=|=)\s*(\S.*?)\s*", text)
    if not found:
        raise UsageError(f"{text!r} is not an edit. Write NAME=VALUE, NAME*=FACTOR or NAME+=STEP.")
    return Wish(found[1], found[2], found[3])


def wanted_value(trained: Trained, reading: Reading, wish: Wish, *, extrapolate: bool = False) -> float:
    """The value that a wish amounts to for a scan, in the factor's unit.

    Raises:
        InterventionError: The model has no such factor, the value is none of its values, or training saw none like it.
    """
    factor = _factor(trained, wish.name)
    if wish.operation == "=":
        value = factor.parse(wish.value)
    else:
        value = _relative(factor, reading.readouts[wish.name].estimate, wish)
    entry = trained.card.factors[wish.name]
    low, high = _bounds(factor, entry)
    if not extrapolate and not low <= value <= high:
        raise InterventionError(
            f"{wish} asks for {factor.show(value)}, but training saw {factor.show(entry.low)} to "
            f"{factor.show(entry.high)}. Choose a value in between, or add --extrapolate."
        )
    return value


def counterfactual(trained: Trained, scan: Volume, wishes: Sequence[Wish], *, extrapolate: bool = False) -> Volume:
    """The scan with the wished factors changed, one after the other, and nothing else.

    Only the change passes through the model's grid; where nothing changes, and for no wish at all, the scan's own
    values stay.

    Raises:
        InterventionError: A wish cannot be granted.
        MedisentError: The scan is refused.
    """
    for wish in wishes:
        _factor(trained, wish.name)
    if not wishes:
        return scan
    reading = read_factors(trained, scan)
    return edited(trained, reading, wishes, extrapolate=extrapolate)


def edited(trained: Trained, reading: Reading, wishes: Sequence[Wish], *, extrapolate: bool = False) -> Volume:
    """The scan of a reading with the wished factors changed; see ``counterfactual``."""
    values = [(wish.name, wanted_value(trained, reading, wish, extrapolate=extrapolate)) for wish in wishes]
    return with_values(trained, reading, values)


def with_values(trained: Trained, reading: Reading, values: Sequence[tuple[str, float]]) -> Volume:
    """The scan of a reading with factors at these values, in their units, whatever training saw."""
    scene = reading.scene
    present = {name: readout.estimate for name, readout in reading.readouts.items()}
    with torch.no_grad():
        for name, value in values:
            scene = mechanism_of(trained.network, name).intervene(trained.network, scene, name, present[name], value)
            present[name] = value
    return shown(reading, scene, trained.study.scanner.air)


def harmonized(trained: Trained, reading: Reading, to: Reading | None = None) -> Volume:
    """The scan of a reading as the scanner of another one, or the reference scanner, would have shown it.

    Gain, contrast and bias field go to those read from the other scan, or to gain and exponent 1 without a bias field;
    anatomy stays.
    """
    scene = reading.scene
    if to is not None:
        # The whole bias field is taken over, not its strength alone.
        log_gain = to.scene.scanner.log_gain + to.log_scale - reading.log_scale
        return shown(
            reading, replace(scene, scanner=replace(to.scene.scanner, log_gain=log_gain)), trained.study.scanner.air
        )
    names = trained.network.scanner_names
    present = {name: reading.readouts[name].estimate for name in names}
    wanted = [(name, _REFERENCE[name]) for name in names if name != "bias_field" or present[name] > 1e-6]
    return with_values(trained, reading, wanted)


def shown(reading: Reading, scene: Scene, air: float = 0.0) -> Volume:
    """The scan of a reading as it would be if its scene were another, in its own space; all else keeps its values."""
    scan = reading.scan
    change = (scene.canonical - reading.scene.canonical).numpy()
    native = restore(change, reading.placed, scan.geometry) if change.any() else None
    before, after = (_native(s.scanner, reading.log_scale) for s in (reading.scene, scene))
    same = bool((before.stacked() == after.stacked()).all())
    if native is None and same:
        return scan
    exact = np.result_type(scan.voxels.dtype, np.float32).type  # float64 for int32: float32 loses its last digits
    voxels: Float[np.ndarray, "x y z"] = scan.voxels.astype(exact)
    depth = max(1, _SLAB // int(np.prod(voxels.shape[1:])))
    for start in range(0, voxels.shape[0], depth):
        slab = slice(start, min(start + depth, voxels.shape[0]))
        step = None if native is None else native[slab]
        if same and (step is None or not step.any()):
            continue
        # Where only the canonical scan changes, there is nothing to compute elsewhere.
        chosen = np.ones(voxels[slab].shape, dtype=bool) if step is None or not same else step != 0
        part = voxels[slab]
        gained = _difference(
            part[chosen] - exact(air),
            None if step is None else step[chosen],
            before,
            after,
            _coordinates(reading, slab)[:, chosen],
        )
        part[chosen] = part[chosen] + gained
    return replace(scan, voxels=voxels)


def _difference(
    scan: Float[np.ndarray, " voxels"],
    step: Float[np.ndarray, " voxels"] | None,
    before: Scanner,
    after: Scanner,
    coordinates: Float[np.ndarray, "3 voxels"],
) -> Float[np.ndarray, " voxels"]:
    """What a scan (air at zero) gains when its canonical scan gains ``step`` and its scanner changes."""
    basis = bias_basis(torch.from_numpy(coordinates))
    image = torch.from_numpy(np.ascontiguousarray(scan, dtype=np.float32))[None, None]
    canonical = before.remove(image, basis)
    moved = canonical if step is None else (canonical + torch.from_numpy(step)[None, None]).clamp(min=0)
    gained = after.apply(moved, basis) - before.apply(canonical, basis)
    result: np.ndarray = gained[0, 0].numpy()
    return result


def _native(scanner: Scanner, log_scale: float) -> Scanner:
    """The scanner's settings for the scan in its own unit."""
    return replace(scanner, log_gain=scanner.log_gain + log_scale)


def _coordinates(reading: Reading, slab: slice) -> Float[np.ndarray, "3 x y z"]:
    """Where the voxels of a slab lie in the field of the bias polynomials, held at its edges."""
    geometry = reading.scan.geometry
    affine = geometry.affine.copy()
    affine[:3, 3] += affine[:3, 0] * slab.start
    part = Geometry(affine, (slab.stop - slab.start, *geometry.shape[1:]))
    found: np.ndarray = unit_coordinates(part, reading.placed).clip(-1, 1)
    return found


def _factor(trained: Trained, name: str) -> Factor:
    factors = trained.network.factors
    if name not in factors:
        raise InterventionError(f"This model has no factor {name!r}. It has {', '.join(factors)}.")
    return factors[name]


def _bounds(factor: Factor, entry: FactorCard) -> tuple[float, float]:
    """How far a factor may be moved: what training saw and a tenth more, on the factor's own scale.

    Steps a little beyond are safe, and rounding must not refuse an edge.
    """
    if factor.kind == "positive":
        return entry.low / 1.1, entry.high * 1.1
    slack = 0.1 * (entry.high - entry.low)
    return entry.low - slack, entry.high + slack


def _relative(factor: Factor, present: float, wish: Wish) -> float:
    try:
        number = float(wish.value)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise InterventionError(f"{wish} takes a number after {wish.operation}, but {wish.value!r} is not one.")
    if factor.kind in ("ordinal", "categorical"):
        raise InterventionError(
            f"{wish.name} has levels, which cannot be multiplied or added. Write {wish.name}=LEVEL."
        )
    value = present * number if wish.operation == "*=" else present + number
    if factor.kind == "circular":
        return value % factor.period  # type: ignore[attr-defined,no-any-return]
    if factor.kind == "positive" and value <= 0:
        raise InterventionError(f"{wish} asks for {factor.show(value)}, but {wish.name} is positive.")
    return value
