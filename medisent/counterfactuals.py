"""The scan as it would be with other values of its factors, in the scan's own space."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medisent.checkpoints import FactorCard, Trained
from medisent.errors import InterventionError, UsageError
from medisent.factors import Factor
from medisent.grids import closeness, finer, restore
from medisent.loading import above_air
from medisent.mechanisms import CloseUp, Scene, mechanism_of
from medisent.readings import Reading, log_bias, read_factors
from medisent.scanners import Scanner, developed, exposed
from medisent.volumes import Volume

_REFERENCE = {"brightness": 1.0, "contrast": 1.0, "bias_field": 0.0}
_SLAB = 1 << 18  # voxels worked on at once
# Standard deviations of the noise up to which an intensity counts as noise alone; seven eighths of air's are below.
_NOISY = 2.0


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
    if not wishes:
        return scan
    return edited(trained, read_for(trained, scan, wishes), wishes, extrapolate=extrapolate)


def read_for(trained: Trained, scan: Volume, wishes: Sequence[Wish]) -> Reading:
    """The reading of a scan that wishes go by; what the model has no factor for is refused before the scan is read.

    Raises:
        InterventionError: The model has no such factor.
        MedisentError: The scan is refused.
    """
    for wish in wishes:
        _factor(trained, wish.name)
    return read_factors(trained, scan)


def edited(trained: Trained, reading: Reading, wishes: Sequence[Wish], *, extrapolate: bool = False) -> Volume:
    """The scan of a reading with the wished factors changed; see ``counterfactual``."""
    values = [(wish.name, wanted_value(trained, reading, wish, extrapolate=extrapolate)) for wish in wishes]
    return with_values(trained, reading, values)


def with_values(trained: Trained, reading: Reading, values: Sequence[tuple[str, float]]) -> Volume:
    """The scan of a reading with factors at these values, in their units, whatever training saw."""
    return shown(reading, scene_with(trained, reading, values), trained.study.scanner.air)


def scene_with(trained: Trained, reading: Reading, values: Sequence[tuple[str, float]]) -> Scene:
    """The scene of a reading with factors at these values, in their units, whatever training saw.

    Raises:
        InterventionError: There is nothing in the scan that could take a value.
    """
    shaped = any(name in trained.network.shaped for name, _ in values)
    scene = _close(reading, trained.study.scanner.air) if shaped else reading.scene
    present = {name: readout.estimate for name, readout in reading.readouts.items()}
    with torch.no_grad():
        for name, value in values:
            scene = mechanism_of(trained.network, name).intervene(trained.network, scene, name, present[name], value)
            present[name] = value
    return scene


@lru_cache(maxsize=2)  # a scan is edited more than once
def _close(reading: Reading, air: float) -> Scene:
    """The scene of a reading with a close-up of the scan, where that is finer than the grid."""
    geometry, placed = reading.scan.geometry, reading.placed
    times = closeness(geometry, placed)
    if times == 1:
        return reading.scene
    cells = finer(placed, times)
    above, _ = above_air(reading.scan, cells, air)
    image, scanner = torch.from_numpy(np.ascontiguousarray(above)).clamp(min=0), reading.scene.scanner
    field = log_bias(scanner.bias[0], cells, placed) + np.float32(float(scanner.log_gain[0]) + reading.log_scale)
    canonical, _ = _without(image, reading, torch.from_numpy(field))
    return replace(reading.scene, close=CloseUp(canonical.clamp(max=3).numpy(), times))


def factor_map(trained: Trained, reading: Reading, name: str) -> Volume:
    """What a scan gains per unit of one factor when that rises by what is typical, signed, in the scan's own space.

    Typical is half the distance between the cohort's 16th and 84th percentile: one standard deviation, where values
    are normal. Where that would leave what training saw, the factor falls instead.

    Raises:
        InterventionError: The factor cannot be moved in this scan.
    """
    present, entry = reading.readouts[name].estimate, trained.card.factors[name]
    step = max((entry.quantiles[84] - entry.quantiles[16]) / 2, 1e-6)
    if present + step > entry.high and present - step >= entry.low:
        step = -step
    moved = with_values(trained, reading, [(name, present + step)]).voxels.astype(np.float32, copy=False)
    change = moved - reading.scan.voxels.astype(np.float32, copy=False)
    return reading.scan.with_voxels(change / np.float32(step))


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
    step = _step(reading, scene)
    before, after = reading.scene.scanner, scene.scanner
    same = bool((before.stacked() == after.stacked()).all())
    if step is None and same:
        return scan
    exact = np.float64 if scan.voxels.dtype.itemsize > 4 or scan.voxels.dtype == np.int32 else np.float32
    voxels: Float[np.ndarray, "x y z"] = scan.voxels.astype(exact, order="F")
    # As they lie in memory, and so few at a time that they stay in the cache.
    stored, field, other = voxels.T, reading.log_bias.T, _log_bias(reading, after).T
    depth = max(1, _SLAB // int(np.prod(stored.shape[1:])))
    for start in range(0, stored.shape[0], depth):
        slab = slice(start, start + depth)
        part, moved = stored[slab], None if step is None else step.T[slab]
        if same and (moved is None or not moved.any()):
            continue
        if same and moved is not None and np.count_nonzero(moved) < moved.size / 4:
            # Where only the canonical scan changes, there is nothing to compute elsewhere.
            at = np.nonzero(moved)
            part[at] += _gained(part[at] - exact(air), moved[at], reading, after, field[slab][at], other[slab][at])
            continue
        gained = _gained(part - exact(air), moved, reading, after, field[slab], other[slab])
        part += gained if moved is None or not same else np.where(moved == 0, 0, gained)
    return replace(scan, voxels=voxels)


def _step(reading: Reading, scene: Scene) -> Float[np.ndarray, "x y z"] | None:
    """What the canonical scan gains where a scene is another than the reading's, at the scan's voxels; None is nothing.

    Structures have changed in the close-up, if there is one, and all else on the grid.
    """
    change = (scene.canonical - reading.scene.canonical).numpy()
    steps = [restore(change, reading.placed, reading.scan.geometry)] if change.any() else []
    if scene.close is not None and scene.close.gained is not None:
        cells = finer(reading.placed, scene.close.times)
        steps.append(restore(scene.close.gained, cells, reading.scan.geometry))
    return np.add.reduce(steps) if steps else None


def _without(
    image: Float[Tensor, "*voxels"], reading: Reading, log_gain: Float[Tensor, "*voxels"]
) -> tuple[Float[Tensor, "*voxels"], Float[Tensor, "*voxels"]]:
    """Canonical intensities behind a scan's, and what of the scan's is noise.

    By factors: squares leave the range of float32 where a scan's unit is extreme.
    """
    noise = image.clamp(max=_NOISY * reading.noise)
    gamma = float(reading.scene.scanner.log_gamma[0].exp())
    return developed((image - noise).sqrt() * (image + noise).sqrt(), 1 / gamma, log_gain), noise


def _gained(
    scan: Float[np.ndarray, "..."],
    step: Float[np.ndarray, "..."] | None,
    reading: Reading,
    after: Scanner,
    field: Float[np.ndarray, "..."],
    other: Float[np.ndarray, "..."],
) -> Float[np.ndarray, "..."]:
    """What a scan (air at zero) gains when its canonical scan gains ``step`` and its scanner is another one.

    Noise is no signal: neither exponent nor bias field act on it. Powers add, so what an intensity's square has of
    noise, at most the square of two standard deviations, is put aside and comes back as it was, times what the gain has
    changed by. All of it undone is the scan as it was.

    References:
        The Rician Distribution of Noisy MRI Data (Gudbjartsson, Patz, 1995)

    Arguments:
        scan: Intensities; below zero they count as zero and gain nothing.
        step: What the canonical scan gains, if anything.
        reading: Whose scanner showed the scan.
        after: The other scanner.
        field: The log bias field of the first scanner.
        other: The log bias field of the other one.
    """
    before = reading.scene.scanner
    gain, new_gain = (float(s.log_gain[0]) + reading.log_scale for s in (before, after))
    gamma, new_gamma = (float(s.log_gamma[0].exp()) for s in (before, after))
    image = torch.from_numpy(np.ascontiguousarray(scan, dtype=np.float32)).clamp(min=0)
    old, new = torch.from_numpy(field), torch.from_numpy(other)
    rise, even = new_gain - gain, bool((before.bias == after.bias).all())
    if step is None and gamma == new_gamma and (even or not reading.noise):
        result = image * (math.expm1(rise) if even else torch.expm1(new - old + rise))
    else:
        canonical, noise = _without(image, reading, old + gain)
        moved = canonical if step is None else canonical + torch.from_numpy(step)
        result = torch.hypot(exposed(moved, new_gamma, new + new_gain), noise * math.exp(rise)) - image
    gained: np.ndarray = result.numpy()
    return gained


def _log_bias(reading: Reading, scanner: Scanner) -> Float[np.ndarray, "x y z"]:
    """The log bias field of a scanner at the scan's voxels; for a multiple of the scan's own field, that multiple."""
    own, wanted = reading.scene.scanner.bias[0], scanner.bias[0]
    if bool((own == wanted).all()):
        return reading.log_bias
    strongest = int(own.abs().argmax())
    ratio = float(wanted[strongest] / own[strongest]) if float(own[strongest]) else 0.0
    if torch.allclose(wanted, own * ratio, rtol=1e-4, atol=1e-7):
        return reading.log_bias * np.float32(ratio)
    return log_bias(wanted, reading.scan.geometry, reading.placed)


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
