"""The partitioned VAE: a scan becomes scanner settings, a canonical scan, masks and latents in named blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import least_squares, lsq_linear
from torch import Tensor, nn
from torch.distributions import Distribution, Normal
from torch.nn.functional import softplus

from medisent.batches import Batch
from medisent.counts import Counter
from medisent.factors import SCANNER_FACTORS, Factor, Partition, Role
from medisent.manner import Manner, as_written
from medisent.networks import (
    Decoder,
    Encoder,
    Family,
    MaskDecoder,
    Perceptron,
    ScannerEncoder,
    Standardised,
    with_local_contrast,
)
from medisent.posterior import PartitionedNormal
from medisent.processes import ALONE, Crew
from medisent.remainders import Remainder, Turn
from medisent.scanners import BIAS_TERMS, Scanner, bias_basis, bias_strength
from medisent.supervision import Tie

# See ``with_local_contrast``.
_CHANNELS = 19
_SCANNER_SIZES = {"brightness": 1, "contrast": 1, "bias_field": BIAS_TERMS}
# Below this share of canonical white lie air and its noise, which taking an exponent off lifts more than all else.
_AIR = 0.12
# A readout is bent at so many places, by this factor up or down at most, once so many values are known.
_KNOTS, _FLATTEST, _BENDABLE = 3, 0.25, 60
# How far settings stray from what the scan's measured scale alone suggests, before anything is learned.
_SCANNER_SPREAD = torch.tensor([0.25, 0.1, *[0.1] * BIAS_TERMS])


@dataclass(frozen=True, eq=False)
class Sight:
    """What a scan's intensities say about the scanner.

    Attributes:
        batch: The scans.
        scanner: Estimated settings, for scans of scale one.
        scale: Standard deviations of these estimates, side by side.
    """

    batch: Batch
    scanner: Scanner
    scale: Float[Tensor, "batch settings"]


@dataclass(frozen=True, eq=False)
class Change:
    """A known change of the scanner, and the batch before and after it.

    Attributes:
        plain: The scans as they are.
        changed: The scans after the change, divided by their new scale.
        scanner: What was applied to the plain scans.
        log_rescale: Logarithm of the scale that was divided out afterwards.
        crew: Who takes the step; these are the scans of this process.
    """

    plain: Batch
    changed: Batch
    scanner: Scanner
    log_rescale: Float[Tensor, " batch"]
    crew: Crew = ALONE


@dataclass(frozen=True, eq=False)
class Together:
    """What terms read that judge all scans of a step together, whichever process has them.

    Attributes:
        z: One sample of the posterior.
        q: The posterior.
        values: What is known of the factors; NaN where nothing is.
    """

    z: Float[Tensor, "step latents"]
    q: PartitionedNormal
    values: Float[Tensor, "step factors"]


@dataclass(frozen=True, eq=False)
class Draw:
    """All that a term of the objective may read: one pass of the model over scans whose scanner was changed.

    Attributes:
        change: What went in; anatomy is encoded from the changed scans.
        before: The scanner as seen in the scans as they are.
        after: The scanner as seen in the changed scans.
        canonical: The changed scans with the scanner removed.
        encoded: The posterior over all latents, each scan by itself.
        q: The posterior of scans that share what the tie says.
        prior: Their prior, given what is known of each scan.
        z: One sample of the posterior.
        readouts: For each factor, the distribution of its (standardised) embedding.
        likelihood: The distribution of the canonical scan that the latents describe.
        mask_logits: Soft masks, before the sigmoid; one channel a factor with a mask.
        tie: What the scans have in common, if anything.
    """

    change: Change
    before: Sight
    after: Sight
    canonical: Float[Tensor, "batch 1 x y z"]
    encoded: PartitionedNormal
    q: PartitionedNormal
    prior: PartitionedNormal
    z: Float[Tensor, "batch latents"]
    readouts: dict[str, Distribution]
    likelihood: Normal
    mask_logits: Float[Tensor, "batch shapes x y z"]
    tie: Tie | None = None

    @property
    def batch(self) -> Batch:
        """The scans from which anatomy was encoded."""
        return self.change.changed

    @cached_property
    def together(self) -> Together:
        """What all scans of the step tell, of all processes; gradients find their way back to each."""
        parts = (self.z, self.q.loc, self.q.scale, self.change.plain.values)
        if self.change.crew.size > 1:
            parts = self.change.crew.whole(torch.cat(parts, 1)).split([part.shape[1] for part in parts], 1)
        z, loc, scale, values = parts
        return Together(z, PartitionedNormal(loc, scale, self.q.partition), values)


@dataclass(frozen=True, eq=False)
class Abduction:
    """What the model infers from scans when it is not learning: means instead of samples.

    Attributes:
        sight: The scanner.
        canonical: The scans with the scanner removed.
        masks: Soft masks, one channel a factor with a mask.
        q: The posterior over all latents.
    """

    sight: Sight
    canonical: Float[Tensor, "batch 1 x y z"]
    masks: Float[Tensor, "batch shapes x y z"]
    q: PartitionedNormal


class Head(nn.Module):
    """From a block to its factor and back: one linear map each way serves every factor type.

    Embeddings are centred and scaled by the training cohort where the type wants it. Then the first latent stands for
    the embedding itself while training: maps that are learned along can lose each other before the encoder has
    anything to say, and a block that no readout follows never hears of its factor again.
    """

    centre: Tensor
    spread: Tensor
    knots: Tensor
    slopes: Tensor
    start: Tensor

    def __init__(self, factor: Factor) -> None:
        super().__init__()
        self.factor = factor
        self.readout = nn.Linear(factor.size, factor.parameter_size)
        self.place = nn.Linear(factor.embedding_size, factor.size)
        self.place_scale = nn.Parameter(torch.full((factor.size,), -0.5))
        self.register_buffer("centre", torch.zeros(factor.embedding_size))
        self.register_buffer("spread", torch.ones(factor.embedding_size))
        self.register_buffer("knots", torch.zeros(_KNOTS))
        self.register_buffer("slopes", torch.ones(_KNOTS + 1))
        self.register_buffer("start", torch.zeros(()))
        with torch.no_grad():
            nn.init.eye_(self.place.weight)
            nn.init.zeros_(self.place.bias)
            nn.init.eye_(self.readout.weight)
            nn.init.zeros_(self.readout.bias)
        self.place.requires_grad_(not factor.standardised)

    def fit(self, values: Float[Tensor, " scans"]) -> None:
        """Centre and scale embeddings by these values; unknown ones do not count."""
        known = values[values.isfinite()]
        if self.factor.standardised and len(known) > 1:
            embedding = self.factor.embed(known)
            self.centre.copy_(embedding.mean(0))
            self.spread.copy_(embedding.std(0).clamp(min=1e-6))

    @torch.no_grad()
    def refit(self, block: Float[Tensor, "scans latents"], values: Float[Tensor, " scans"]) -> None:
        """Fit the readout at given latents, robustly; only for types whose likelihood is normal.

        Training reads samples, which shrinks a readout towards the mean; a scan is read at the posterior's mean. A
        few structures that were missed altogether, whose logarithm is far off, must not bend the line for the others.
        """
        known = values.isfinite()
        if not self.factor.standardised or int(known.sum()) < 4 * (self.factor.size + 1):
            return
        wanted = self.embed(values[known])[:, 0]
        inputs = torch.cat([block[known], torch.ones(len(wanted), 1)], 1)
        rows, goal = inputs.double().numpy(), wanted.double().numpy()
        start = np.linalg.lstsq(rows, goal, rcond=None)[0]

        def misses(line: Float[np.ndarray, " terms"]) -> Float[np.ndarray, " known"]:
            missed: np.ndarray = rows @ line - goal
            return missed

        fitted = least_squares(misses, start, loss="soft_l1", f_scale=0.1)
        found = torch.from_numpy(fitted.x).float()
        self.readout.weight[0], self.readout.bias[0] = found[:-1], found[-1]
        self.readout.weight[1] = 0.0
        line = inputs @ found
        self._bend(line, wanted)
        self._spread((wanted - self._bent(line)).std())

    @torch.no_grad()
    def trust(self, guesses: Float[Tensor, " scans"], values: Float[Tensor, " scans"]) -> None:
        """Read a block that a guess has placed as that guess, as far off as guesses are from known values."""
        guessed = guesses.isfinite()
        self.refit(self.located(guesses[guessed]), guesses[guessed])
        known = guessed & values.isfinite()
        self._spread((self.embed(values[known]) - self.embed(guesses[known])).square().mean().sqrt())

    def _bend(self, line: Float[Tensor, " known"], wanted: Float[Tensor, " known"]) -> None:
        """Bend the readout's line at the quartiles of what it reads, rising everywhere.

        Masks of small structures run over and those of large ones fall short, so that a straight line reads the
        largest too small by a fifth.
        """
        if len(line) < _BENDABLE:
            return
        self.knots.copy_(torch.quantile(line, torch.arange(1, _KNOTS + 1) / (_KNOTS + 1)))
        rows = torch.cat([torch.ones(len(line), 1), self._pieces(line)], 1)
        low, high = [-np.inf] + [_FLATTEST] * (_KNOTS + 1), [np.inf] + [1 / _FLATTEST] * (_KNOTS + 1)
        found = torch.from_numpy(lsq_linear(rows.double().numpy(), wanted.double().numpy(), (low, high)).x).float()
        self.start.copy_(found[0])
        self.slopes.copy_(found[1:])

    def _pieces(self, line: Float[Tensor, " batch"]) -> Float[Tensor, "batch pieces"]:
        """How far each value reaches into each piece between the knots; together they are the value."""
        knots = self.knots
        inner = [line.clamp(low, high) - low for low, high in pairwise(knots)]
        return torch.stack([line.clamp(max=knots[0]), *inner, (line - knots[-1]).clamp(min=0)], 1)

    def _bent(self, line: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        return self.start + self._pieces(line) @ self.slopes

    def described(self, block: Float[Tensor, "batch latents"]) -> Float[Tensor, "batch parameters"]:
        """The parameters of the distribution of the factor's embedding."""
        parameters: Tensor = self.readout(block)
        if self.factor.standardised:
            parameters = torch.cat([self._bent(parameters[:, 0])[:, None], parameters[:, 1:]], 1)
        return parameters

    def slope(self, block: Float[Tensor, "batch latents"]) -> Float[Tensor, "batch latents"]:
        """How much the readout rises with each latent, at given latents."""
        line = self.readout(block)[:, 0]
        piece = torch.searchsorted(self.knots, line.contiguous())
        return self.slopes[piece][:, None] * self.readout.weight[0]

    def _spread(self, deviation: Float[Tensor, ""]) -> None:
        """Let the readout stray by a standard deviation everywhere, two hundredths at least (see ``likelihood``)."""
        self.readout.bias[1] = (deviation.clamp(min=0.02) - 1e-2).expm1().log()

    def embed(self, value: Float[Tensor, " batch"]) -> Float[Tensor, "batch embedding"]:
        """Standardised embeddings of values; NaN where a value is unknown."""
        return (self.factor.embed(value) - self.centre) / self.spread

    def value(self, embedding: Float[Tensor, "batch embedding"]) -> Float[Tensor, " batch"]:
        """The values that standardised embeddings stand for."""
        return self.factor.value(embedding * self.spread + self.centre)

    def located(self, value: Float[Tensor, " batch"]) -> Float[Tensor, "batch latents"]:
        """Where the block lies, on average, at these values."""
        located: Tensor = self.place(self.embed(value))
        return located

    def forward(self, block: Float[Tensor, "batch latents"]) -> Distribution:
        parameters = self.described(block)
        if self.training and self.factor.standardised:
            parameters = torch.cat([block[:, :1], parameters[:, 1:]], 1)
        return self.factor.likelihood(parameters)


class PartitionedVAE(nn.Module):
    """A VAE whose latent has a block for each named factor, over scans from which the scanner was removed.

    The scanner's settings are latents too (the nuisance blocks ``brightness``, ``contrast``, ``bias_field``), but
    reach the scan through the scanner layer, not through the decoder. Anatomy is encoded from the canonical
    scan alone, so what the layer takes away cannot reach it.

    Arguments:
        factors: All factors; those named as scanner settings are served by the scanner layer.
        scanner: Which settings of the scanner vary.
        shape: Of the grid.
        voxel_ml: Volume of a grid voxel in mL.
        family: Of the networks that see and draw anatomy.
        width: Channels at half resolution.
        rest: Latents of the anatomy that no factor names.
        nuisance_rest: Latents of the nuisance that no factor names.
        mirror: Whether masks are the mean over a scan and its mirror image; for networks that were shown both.
        counts: Whether volumes without masks are counted once the network is trained.
        remainders: Whether what named blocks tell is taken out of all else, and the rest is turned, once the network is
            trained.
    """

    pivot: Tensor
    reference: Tensor
    basis: Tensor
    active: Tensor

    def __init__(
        self,
        factors: Sequence[Factor],
        scanner: Sequence[str],
        shape: tuple[int, int, int],
        voxel_ml: float,
        *,
        family: Family = "fine",
        width: int = 16,
        rest: int = 16,
        nuisance_rest: int = 4,
        mirror: bool = False,
        counts: bool = True,
        remainders: bool = True,
    ) -> None:
        super().__init__()
        self.factors = {factor.name: factor for factor in factors}
        self.scanner_names = tuple(scanner)
        self.voxel_ml = voxel_ml
        self.mirror = mirror
        self.manner = Manner()
        self.shape = shape
        self.learned = [f for f in factors if f.name not in self.scanner_names]
        self.shaped = [f.name for f in self.learned if f.mask]
        countable = [f.name for f in self.learned if f.role == "anatomy" and f.is_volume and not f.mask]
        self.counted = countable if counts else []
        self.partition = self._partition(rest, nuisance_rest)
        self.code_size = self.partition.size - sum(_SCANNER_SIZES[n] for n in self.scanner_names)
        self.heads = nn.ModuleDict({f.name: Head(f) for f in self.learned})
        self.setting_noise = nn.ParameterDict({n: nn.Parameter(torch.tensor(-2.0)) for n in self.scanner_names})
        self.bias_offset = nn.Parameter(torch.zeros(()))
        self.scanner_encoder = ScannerEncoder(shape, max(8, width // 2), 2 + BIAS_TERMS)
        self.encoder = Encoder(shape, _CHANNELS, width, family=family)
        self.posterior = Perceptron(self.encoder.bottom_size, 128, 2 * self.code_size, standardised=True)
        self.mask_decoder = MaskDecoder(self.encoder, max(1, len(self.shaped)))
        self.counter = Counter(len(self.counted)) if self.counted else None
        self.decoder = Decoder(self.encoder, self.code_size)
        self.log_sigma = nn.Parameter(torch.tensor(-2.3))
        # Which latents tell, and what is told: the rest of the code, and settings that no label holds.
        self.separating = remainders
        self.telling = self._columns(self.heads) if remainders else []
        self.anatomy = self._columns(f.name for f in self.learned if f.role == "anatomy") if remainders else []
        self.resting = self._columns(("anatomy_rest", "nuisance_rest"))
        loose = [n for n in self.scanner_names if n not in self.factors or self.factors[n].column is None]
        self.loose = self._columns(loose)
        self.labelled = self._columns(n for n in self.scanner_names if n not in loose)
        self.taught = self._columns(n for n, f in self.factors.items() if n in self.heads and (f.column or f.mask))
        self.turn = Turn(len(self.resting))
        self.rest_remainder = Remainder(len(self.telling), len(self.resting))
        self.setting_remainder = Remainder(len(self.anatomy), len(self.loose))
        self.register_buffer("pivot", torch.zeros(()))
        self.register_buffer("reference", torch.zeros(()))
        self.register_buffer("basis", bias_basis(_unit_grid(shape)), persistent=False)
        self.register_buffer(
            "active",
            torch.cat([torch.full((_SCANNER_SIZES[n],), float(n in scanner)) for n in SCANNER_FACTORS]),
            persistent=False,
        )

    def _partition(self, rest: int, nuisance_rest: int) -> Partition:
        named: dict[Role, list[tuple[str, Role, int]]] = {"anatomy": [], "nuisance": []}
        for factor in self.learned:
            named[factor.role].append((factor.name, factor.role, factor.size))
        return Partition(
            [
                *named["anatomy"],
                ("anatomy_rest", "anatomy", rest),
                *named["nuisance"],
                ("nuisance_rest", "nuisance", nuisance_rest),
                *((n, "nuisance", _SCANNER_SIZES[n]) for n in self.scanner_names),
            ]
        )

    def _columns(self, names: Iterable[str]) -> list[int]:
        """The latents of these blocks."""
        blocks = [self.partition[name] for name in names]
        return [column for block in blocks for column in range(block.start, block.start + block.size)]

    # ---- the scanner -------------------------------------------------------------------------------------

    def see(self, batch: Batch) -> Sight:
        """The scanner's settings behind scans of scale one, and the standard deviations of these estimates.

        Where no setting varies there is no scanner layer: scans keep the scale that was divided out of them, in the
        cohort's unit, so that their gain can be learned like anything else.
        """
        loc, raw = as_written(self.scanner_encoder, batch.scan * batch.coverage, batch.coverage).chunk(2, 1)
        scanner = Scanner.unstacked(loc * self.active)
        own = 0.0 if self.scanner_names else batch.log_scale - self.reference - self.pivot
        scanner = Scanner(scanner.log_gain - self.pivot - own, scanner.log_gamma, scanner.bias)
        return Sight(batch, scanner, (0.01 + 0.2 * softplus(raw - 1)) * self.active + 1e-6)

    def log_brightness(self, scanner: Scanner, log_scale: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The brightness factor's logarithm: gain times what was divided out, relative to the cohort's reference."""
        return scanner.log_gain + log_scale - self.reference

    def fit(self, batch: Batch) -> None:
        """Fix the units: centre and scale of the factors, and what counts as one in brightness and in canonical scans.

        With gains at hand that are the scans' own (the typical tissue then comes out between 0.3 and 1.05), these
        say what a canonical 1 is. Otherwise the brightest tissue is 1, the mean 99.5th percentile of the scans,
        and without any gains the cohort's geometric mean has brightness 1.
        """
        offsets = batch.log_scale
        for column, name in enumerate(self.factors):
            if name in self.heads:
                self.head(name).fit(batch.values[:, column])
            elif name == "brightness" and bool((batch.values[:, column] > 0).any()):
                offsets = (batch.log_scale - batch.values[:, column].log())[batch.values[:, column] > 0]
        offset = offsets.mean()
        brightest = torch.stack([torch.quantile(s[s > 0.2][:: max(1, s.numel() // 65536)], 0.995) for s in batch.scan])
        own = "brightness" in self.factors and len(offsets) > 0 and 0.3 < float(offset.exp()) < 1.05
        self.pivot.copy_(offset if own and offsets is not batch.log_scale else -brightest.log().mean())
        self.reference.copy_(offset - self.pivot)

    def head(self, name: str) -> Head:
        """The head of a factor that is not a scanner setting."""
        head = self.heads[name]
        assert isinstance(head, Head)
        return head

    # ---- anatomy -----------------------------------------------------------------------------------------

    def canonical(
        self, scan: Float[Tensor, "batch 1 x y z"], scanner: Scanner, coverage: Float[Tensor, "batch 1 x y z"]
    ) -> Float[Tensor, "batch 1 x y z"]:
        """Scans of scale one with the scanner removed; zero outside the field of view, never above three."""
        return scanner.remove(scan, self.basis).clamp(max=3) * coverage

    def volumes(self, masks: Float[Tensor, "batch shapes x y z"]) -> Float[Tensor, "batch shapes"]:
        """Volumes of soft masks in mL."""
        return masks.sum((2, 3, 4)) * self.voxel_ml

    def _posterior(
        self, features: list[Tensor], volumes: Float[Tensor, "batch shapes"], sight: Sight
    ) -> PartitionedNormal:
        """The blocks side by side. A factor with a mask has its block placed by the mask's volume and nothing else.

        Masks learn from masks alone: a wrong volume would push all voxels one way, wherever the structure is. Where
        there are masks, the encoder's features learn from them and from labels, and not from the picture: its thousands
        of nats held masks up.
        """
        bottom = features[-1].flatten(1).float()
        parameters = self.posterior(bottom)
        if self.shaped and bottom.requires_grad:  # else one pass says it all
            taught = self._index([*self.taught, *(self.code_size + column for column in self.taught)])
            parameters = self.posterior(bottom.detach()).index_copy(1, taught, parameters[:, taught])
        loc, raw = parameters.chunk(2, 1)
        scale = softplus(raw - 1) + 1e-3
        for index, name in enumerate(self.shaped):
            where = self.partition[name].where
            placed = self.head(name).located(volumes[:, index].detach())
            loc = torch.cat([loc[:, : where.start], placed, loc[:, where.stop :]], 1)
        settings = self.settings(sight)
        wanted = self.active > 0
        return PartitionedNormal(
            torch.cat([loc, settings[:, wanted]], 1), torch.cat([scale, sight.scale[:, wanted]], 1), self.partition
        )

    def settings(self, sight: Sight) -> Float[Tensor, "batch settings"]:
        """The scanner's latents: log brightness, log exponent, bias coefficients."""
        brightness = self.log_brightness(sight.scanner, sight.batch.log_scale)
        return torch.cat([brightness[:, None], sight.scanner.stacked()[:, 1:]], 1)

    def prior(self, batch: Batch) -> PartitionedNormal:
        """The prior over all latents, given the factors that are known of each scan; standard normal elsewhere.

        References:
            DIVA: Domain Invariant Variational Autoencoders (Ilse, Tomczak, Louizos, Welling, 2020)
        """
        loc = torch.zeros(len(batch), self.partition.size, device=batch.scan.device)
        scale = torch.ones_like(loc)
        for column, (name, _) in enumerate(self.factors.items()):
            if name not in self.heads:
                continue
            head, where = self.head(name), self.partition[name].where
            known = batch.values[:, column].isfinite()
            if known.any():
                loc[known, where] = head.located(batch.values[known, column])
                scale[known, where] = softplus(head.place_scale).expand(int(known.sum()), -1)
        settings = self.scanner_prior(len(batch))
        wanted = self.active > 0
        loc[:, self.code_size :] = settings.loc[:, wanted]
        scale[:, self.code_size :] = settings.scale[:, wanted]
        if "brightness" in self.scanner_names:
            loc[:, self.partition["brightness"].start] += batch.log_scale - self.reference
        return PartitionedNormal(loc, scale, self.partition)

    def scanner_prior(self, batch: int) -> Normal:
        """The prior over the settings of scanners, for scans of scale one."""
        loc = torch.zeros(batch, 2 + BIAS_TERMS, device=self.pivot.device)
        loc[:, 0] = -self.pivot
        return Normal(loc, _SCANNER_SPREAD.to(loc.device).expand_as(loc))

    def readouts(self, z: Float[Tensor, "batch latents"]) -> dict[str, Distribution]:
        """For each factor, the distribution of its (standardised) embedding that these latents describe."""
        found: dict[str, Distribution] = {
            name: self.head(name)(z[:, self.partition[name].where]) for name in self.heads
        }
        for name in self.scanner_names:
            block = z[:, self.partition[name].where]
            loc = block[:, 0] if name != "bias_field" else (bias_strength(block) + 1e-6).log() + self.bias_offset
            found[name] = Normal(loc, softplus(self.setting_noise[name]).expand_as(loc) + 1e-3)
        return found

    def embed(self, name: str, value: Float[Tensor, " batch"]) -> Float[Tensor, "batch embedding"]:
        """Values in the coordinates of the factor's readout; logarithms for the settings of the scanner."""
        return self.head(name).embed(value) if name in self.heads else value.clamp(min=1e-30).log()[:, None]

    def value(self, name: str, embedding: Float[Tensor, "batch embedding"]) -> Float[Tensor, " batch"]:
        """The inverse of ``embed``."""
        return self.head(name).value(embedding) if name in self.heads else embedding[:, 0].exp()

    def decode(self, z: Float[Tensor, "batch latents"]) -> Normal:
        """The distribution of canonical scans that these latents describe; settings of the scanner play no part."""
        rest = z[:, self.resting] + self.rest_remainder(z[:, self.telling])
        code = z[:, : self.code_size].index_copy(1, self._index(self.resting), self.turn.back(rest))
        mean = self.manner.run(self.decoder, code).float()
        return Normal(mean, self.log_sigma.exp().expand_as(mean))

    def named(self, names: Sequence[str]) -> frozenset[str]:
        """The blocks that a list of factors and roles stands for."""
        return frozenset(name for name, block in self.partition.items() if name in names or block.role in names)

    def chosen(self, names: frozenset[str]) -> Bool[Tensor, " settings"]:
        """Which settings of the scanner these factors are."""
        return torch.tensor([n in names for n in SCANNER_FACTORS for _ in range(_SCANNER_SIZES[n])])

    def forward(self, change: Change, tie: Tie | None = None) -> Draw:
        before, after = self.see(change.plain), self.see(change.changed)
        canonical, features, mask_logits = self._anatomy(after)
        encoded = self._posterior(features, self.volumes(mask_logits.sigmoid()), after)
        q = agreed(encoded, tie, change.crew)
        z = q.loc + q.scale * self._chance(q, tie, change.crew)
        # Labels of the scanner's factors belong to the scans as they are.
        seen = self.settings(before) + before.scale * change.crew.noise(before.scale)
        readouts = self.readouts(torch.cat([z[:, : self.code_size], seen[:, self.active > 0]], 1))
        prior = self.prior(change.changed)
        clamped = tie is not None and tie.entry.kind == "clamp"  # there the picture does say which block varies
        likelihood = self.decode(z if clamped else self._untaught(z))
        return Draw(change, before, after, canonical, encoded, q, prior, z, readouts, likelihood, mask_logits, tie)

    def _chance(self, q: PartitionedNormal, tie: Tie | None, crew: Crew) -> Float[Tensor, "batch latents"]:
        """Normal numbers to draw latents with; what is clamped is drawn once for all scans of a group."""
        found = crew.noise(q.scale)
        if tie is None or tie.entry.kind != "clamp":
            return found
        shared = crew.own(crew.whole(found)[tie.leader])
        return torch.where(q.latents(tie.entry.blocks), shared, found)

    def settle(self, crew: Crew = ALONE) -> None:
        """Let running moments take in the scans of the last pass, of all processes, once its step is taken."""
        for layer in self.posterior.modules():
            if isinstance(layer, Standardised):
                layer.learn(crew)

    def _untaught(self, z: Float[Tensor, "batch latents"]) -> Float[Tensor, "batch latents"]:
        """The latents, such that a picture says nothing to blocks that have labels: these learn from labels alone.

        A picture has thousands of nats where a label has one. A block that served both held the head's pose, in place
        of its size, for the first thousand steps and more.
        """
        taught = self._index(self.taught)
        return z.index_copy(1, taught, z[:, taught].detach())

    def abduct(self, batch: Batch) -> Abduction:
        """What the model infers from scans.

        Masks are the mean over two positions of the scan, a voxel apart: networks that begin with a space-to-depth
        step see the two differently. On held-out heads the tumour's R2 rose from 0.90 to 0.93 (with mirror images).
        """
        sight = self.see(batch)
        canonical, features, mask_logits = self._anatomy(sight)
        views = [mask_logits.sigmoid()]
        for step, flipped in ((1, False), (0, True), (1, True)):
            if self.shaped and (self.mirror or not flipped):
                views.append(self._viewed(canonical, batch.coverage, step, flipped))
        masks = torch.stack(views).mean(0)
        q = self._posterior(features, self.volumes(masks), sight)
        if self.counter is not None:
            q = self.placed(q, self.counter(canonical))
        return self.apart(Abduction(sight, canonical, masks, q))

    def fit_remainders(self, q: PartitionedNormal) -> None:
        """Learn what named blocks tell of all else, from scans as they were inferred before anything is taken out."""
        beside = q.loc[:, self.labelled]
        self.rest_remainder.fit(q.loc[:, self.telling], self.turn(q.loc[:, self.resting]), beside)
        self.setting_remainder.fit(q.loc[:, self.anatomy], q.loc[:, self.loose], beside)

    def answers(self, found: Abduction, chance: torch.Generator) -> Float[Tensor, "batch resting"]:
        """By how much the rest changes when the scanner is taken out a little wrong, as wrong as its estimates are."""
        sight = found.sight
        noise = torch.randn(sight.scale.shape, generator=chance).to(sight.scale) * self.active
        wrong = Scanner.unstacked(sight.scanner.stacked() + sight.scale * noise)
        off = self.canonical(sight.batch.scan, wrong, sight.batch.coverage)
        return self._rest(off, sight.batch.coverage) - self._rest(found.canonical, sight.batch.coverage)

    def _rest(
        self, canonical: Float[Tensor, "batch 1 x y z"], coverage: Float[Tensor, "batch 1 x y z"]
    ) -> Float[Tensor, "batch resting"]:
        """The means of the rest's latents, before anything is done to them."""
        parameters: Tensor = self.posterior(self._features(canonical, coverage)[-1].flatten(1).float())
        return parameters[:, self.resting]

    def apart(self, found: Abduction) -> Abduction:
        """What was inferred, less what named blocks tell already: of the rest, and of settings that have no labels.

        A rest that repeats what a named block says would stay behind when that block is moved; the decoder gets back
        what is taken out here (see ``decode``), from the block's new value. The estimate of a setting without labels
        has an offset of each scan's own, since known changes say nothing of it; what named anatomy tells of the offset
        is no scanner's doing, as long as scanners and anatomy are independent.
        """
        sight, canonical = found.sight, found.canonical
        if self.setting_remainder.weight.any():
            settings = sight.scanner.stacked()
            settings[:, self.active > 0] -= self._offset(found.q.loc)[:, self.code_size :]
            sight = replace(sight, scanner=Scanner.unstacked(settings))
            canonical = self.canonical(sight.batch.scan, sight.scanner, sight.batch.coverage)
        return replace(found, sight=sight, canonical=canonical, q=self.parted(found.q))

    def parted(self, q: PartitionedNormal) -> PartitionedNormal:
        """The posterior of what was inferred, less what named blocks tell already."""
        loc, scale = q.loc.clone(), q.scale.clone()
        loc[:, self.resting] = self.turn(loc[:, self.resting]) - self.rest_remainder(loc[:, self.telling])
        scale[:, self.resting] = self.turn.deviations(scale[:, self.resting])
        return PartitionedNormal(loc - self._offset(loc), scale, q.partition)

    def _offset(self, loc: Float[Tensor, "batch latents"]) -> Float[Tensor, "batch latents"]:
        """What named anatomy tells of settings that have no labels."""
        offset = torch.zeros_like(loc)
        offset[:, self.loose] = self.setting_remainder(loc[:, self.anatomy])
        return offset

    def _index(self, columns: list[int]) -> Int[Tensor, " columns"]:
        return torch.tensor(columns, dtype=torch.long, device=self.pivot.device)

    def placed(self, q: PartitionedNormal, volumes: Float[Tensor, "batch counted"]) -> PartitionedNormal:
        """The posterior with the blocks of volumes without masks where counting has them; NaN leaves a block alone."""
        loc = q.loc.clone()
        for name, volume in zip(self.counted, volumes.T, strict=True):
            known = volume.isfinite()
            loc[known, self.partition[name].where] = self.head(name).located(volume[known])
        return PartitionedNormal(loc, q.scale, q.partition)

    def encode(self, canonical: Float[Tensor, "batch 1 x y z"], sight: Sight) -> PartitionedNormal:
        """The posterior behind canonical scans, with the scanner as seen."""
        features, mask_logits = self._masks(canonical, sight.batch.coverage)
        return self._posterior(features, self.volumes(mask_logits.sigmoid()), sight)

    def _viewed(
        self,
        canonical: Float[Tensor, "batch 1 x y z"],
        coverage: Float[Tensor, "batch 1 x y z"],
        step: int,
        flipped: bool,
    ) -> Float[Tensor, "batch shapes x y z"]:
        """The masks of scans that lie a voxel further along each axis, or are mirror images, brought back."""
        axes, along = (2,) if flipped else (), (2, 3, 4)
        there = [image.roll((step,) * 3, along).flip(axes) for image in (canonical, coverage)]
        return self._masks(*there)[1].sigmoid().flip(axes).roll((-step,) * 3, along)

    def _anatomy(self, sight: Sight) -> tuple[Tensor, list[Tensor], Tensor]:
        """The canonical scans, the encoder's features and the mask logits."""
        # Anatomy must not steer the scanner's estimate: what anatomy would like to see is not what the scanner did.
        still = Scanner.unstacked(sight.scanner.stacked().detach())
        canonical = self.canonical(sight.batch.scan, still, sight.batch.coverage)
        return canonical, *self._masks(canonical, sight.batch.coverage)

    def _masks(
        self, canonical: Float[Tensor, "batch 1 x y z"], coverage: Float[Tensor, "batch 1 x y z"]
    ) -> tuple[list[Tensor], Tensor]:
        """The encoder's features and the mask logits of canonical scans."""
        features = self._features(canonical, coverage)
        return features, self.manner.run(self.mask_decoder, features, canonical).float()

    def _features(
        self, canonical: Float[Tensor, "batch 1 x y z"], coverage: Float[Tensor, "batch 1 x y z"]
    ) -> list[Tensor]:
        """The encoder's features of canonical scans; behind a scanner layer, of what is no noise of air in them.

        Noise comes after a scanner's exponent and is lifted when that is taken off, by which anatomy would know it.
        """
        seen = canonical.clamp(min=_AIR) if self.scanner_names else canonical
        features: list[Tensor] = self.manner.run(self.encoder, with_local_contrast(seen, coverage, self.encoder.padded))
        return features


def agreed(encoded: PartitionedNormal, tie: Tie | None, crew: Crew) -> PartitionedNormal:
    """The posterior of scans that agree on what the tie says, whichever process has the others.

    Without a tie, or with one of named factors alone, they agree on the nuisance's rest. Only what scans are known to
    share can say what the scanner layer misses; else it would say whose scan it is.
    """
    loc, scale = crew.whole(torch.cat([encoded.loc, encoded.scale], 1)).chunk(2, 1)
    step = PartitionedNormal(loc, scale, encoded.partition)
    everyone = torch.zeros(len(loc), dtype=torch.long, device=loc.device)
    q = tie.applied(step) if tie else step
    if tie is None or not tie.entry.about_rests:
        q = q.shared(everyone, frozenset(["nuisance_rest"]))
    return PartitionedNormal(crew.own(q.loc), crew.own(q.scale), q.partition)


def _unit_grid(shape: tuple[int, int, int]) -> Float[Tensor, "3 x y z"]:
    """Coordinates of voxel centres, from -1 to 1 between the grid's outer edges."""
    axes = [(torch.arange(side) + 0.5) * 2 / side - 1 for side in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))
