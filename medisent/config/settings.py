"""What a study says: every setting, its default and its bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen, MultipleOf
from pydantic import BeforeValidator, Discriminator, Tag

from medisent.errors import StudyError
from medisent.factors import SCANNER_FACTORS, Factor
from medisent.grids import Grid

ScannerFactor = Literal["brightness", "contrast", "bias_field"]
Name = Annotated[str, MinLen(1)]
Weight = Annotated[float, Ge(0)]
ByBlock = Annotated[
    Annotated[Weight, Tag("number")] | Annotated[dict[Name, Weight], Tag("table")],
    Discriminator(lambda value: "table" if isinstance(value, dict) else "number"),
]
"""A number for every block, or a table with numbers by blocks and roles."""
Names = Annotated[
    tuple[Name, ...], BeforeValidator(lambda value: _one_or_more(value), str | tuple[str, ...]), MinLen(1)
]


@dataclass(frozen=True, kw_only=True)
class CohortSettings:
    """Where the cohort table is and what its columns are called.

    Attributes:
        table: The table, tab- or comma-separated.
        scan: Column with the scans.
        subject: Column with the subjects; scans of one subject never fall into different splits.
        split: Column with ``train``, ``validation`` or ``test``; None: subjects are dealt out by the seed.
        site: Column with the sites, for weak supervision and reports.
        about: What scans these are, in a sentence, for the model's card; nothing that tells who anybody is.
    """

    table: Path
    scan: Name = "scan"
    subject: Name = "subject"
    split: Name | None = None
    site: Name | None = None
    about: str = ""


@dataclass(frozen=True, kw_only=True)
class ScannerSettings:
    """The built-in scanner.

    Attributes:
        factors: What the scanner does to a scan, each a named nuisance factor that needs no labels.
        air: Intensity of air, in the scan's unit; it is what a scan holds outside its field of view.
    """

    factors: tuple[ScannerFactor, ...] = SCANNER_FACTORS  # type: ignore[assignment]
    air: float = 0.0

    def __post_init__(self) -> None:
        _refuse_twice("[scanner] factors", self.factors)


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """What rows of the table have in common although nobody measured it.

    Attributes:
        kind: Rows of ``groups`` agree on what they share; of ``pairs`` nobody knows on what of it; rows of ``clamp``
            differ in nothing else, so that they teach which latents that is; ``ranks`` orders rows by a factor.
        by: Column of the table in which such rows agree.
        share: Factors, or the roles ``anatomy`` and ``nuisance``; of ranks, the factors that are ordered.
        vary: Instead of ``share``: all but these are shared.
        pool: How posteriors are shared: their ``product`` (ML-VAE) or the ``mean`` (GVAE) of means and variances.
        order: Column with the numbers that order rows (ranks).
        batches: How many such batches follow each plain one.
    """

    kind: Literal["groups", "pairs", "clamp", "ranks"]
    by: Name
    share: Names | None = None
    vary: Names | None = None
    pool: Literal["product", "mean"] | None = None
    order: Name | None = None
    batches: Annotated[int, Gt(0)] = 1

    def __post_init__(self) -> None:
        if (self.share is None) == (self.vary is None):
            raise StudyError("[[supervision]] says either what its rows share ('share') or what varies ('vary').")
        if (self.order is None) == (self.kind == "ranks"):
            raise StudyError(
                "'order', the column with the numbers that order rows, belongs to kind 'ranks' and no other."
            )
        if self.kind == "ranks" and self.share is None:
            raise StudyError("Kind 'ranks' names the factors that are ordered with 'share', not with 'vary'.")
        if self.pool is not None and self.kind not in ("groups", "pairs"):
            raise StudyError(f"Kind {self.kind!r} pools no posteriors. Leave 'pool' out.")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How long and how to train. At most one of the three durations is given; without any it is five minutes.

    Attributes:
        minutes: Duration on the clock.
        epochs: Duration in passes over the training scans.
        steps: Duration in batches.
        seed: Of everything that is drawn.
        batch: Scans a step.
        learning_rate: Of the optimiser, at its highest.
        mirror: Whether half of the scans change left and right; only for factors that have no side.
        jitter: How far scans are shifted and turned while training; 0 for factors that are positions or directions.
        accumulate: Batches a step; as many scans a step as that many times the batch, in the memory of one batch.
        precision: Of the convolutional networks while training; all else is always ``float32``. ``auto`` is
            ``bfloat16`` on GPUs that have it and on CPUs with AMX, and ``float32`` elsewhere.
        recompute: Whether what the convolutional networks keep for the backward pass is computed again instead, which
            takes less memory and more time and learns the same. ``auto``: where memory would not suffice.
        compile: Whether the convolutional networks are compiled before the first step (``torch.compile``).
        ema: Decay of the running mean of the weights, of which the model is made; 0 makes it of the last weights.
        looks: How often the validation split is looked at, evenly over the training; more seldom in a training for a
            number of minutes, of which looks would else take more than a twentieth.
        patience: After how many looks in a row without a better one training ends; 0 is never.
        keep: Whether the model is made of the ``last`` weights or of those that did ``best`` at a look.
    """

    minutes: Annotated[float, Gt(0)] | None = None
    epochs: Annotated[int, Gt(0)] | None = None
    steps: Annotated[int, Gt(0)] | None = None
    seed: Annotated[int, Ge(0)] = 0
    batch: Annotated[int, Gt(0)] = 4
    learning_rate: Annotated[float, Gt(0)] = 3e-3
    mirror: bool = False
    jitter: Annotated[float, Ge(0), Le(3)] = 1.0
    accumulate: Annotated[int, Gt(0)] = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    recompute: Literal["auto", "always", "never"] = "auto"
    compile: bool = False
    ema: Annotated[float, Ge(0), Lt(1)] = 0.0
    looks: Annotated[int, Ge(0)] = 20
    patience: Annotated[int, Ge(0)] = 0
    keep: Literal["last", "best"] = "last"

    @property
    def scans_a_step(self) -> int:
        """Scans that one step learns from."""
        return self.batch * self.accumulate

    def __post_init__(self) -> None:
        if not self.looks and (self.patience or self.keep == "best"):
            raise StudyError('[training] has patience or keep = "best", which need looks, but looks is 0. Raise it.')
        given = [name for name in ("minutes", "epochs", "steps") if getattr(self, name) is not None]
        if len(given) > 1:
            raise StudyError(f"[training] gives {' and '.join(given)}, but the duration is one of them. Keep one.")
        if not given:
            object.__setattr__(self, "minutes", 5.0)


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """How large the networks are, and what stands beside them.

    Attributes:
        family: ``fine`` networks have features at half of the grid's resolution; ``lean`` ones compute at coarser ones,
            in less time a step. See ``docs/networks.md``.
        width: Channels at the finest level; a multiple of four, since features are normalised in four groups.
        rest: Anatomy latents that belong to no named factor.
        nuisance_rest: Nuisance latents that belong to no named factor: what scans of one person differ in, or else what
            of the rest answers most to a scanner that is taken out a little wrong.
        counts: Whether volumes without masks are counted: a regression on kinds of neighbourhoods, after training.
        remainders: Whether what named blocks tell is taken out of the rest, and out of scanner settings without labels,
            and what answers to the scanner is turned out of the anatomy's rest, after training.
    """

    family: Literal["fine", "lean"] = "fine"
    width: Annotated[int, Gt(0), Le(1024), MultipleOf(4)] = 16
    rest: Annotated[int, Ge(0), Le(4096)] = 16
    nuisance_rest: Annotated[int, Ge(0), Le(16)] = 4
    counts: bool = True
    remainders: bool = True


@dataclass(frozen=True, kw_only=True)
class Weights:
    """How much a nat of each term of the objective counts; zero leaves it out. See ``docs/objectives.md``.

    Attributes:
        distortion: How badly a draw redraws the canonical scan.
        rate: How much the posterior of each block says beyond what is known of it.
        readout: How badly a draw tells the known factors.
        mask: How badly predicted masks cover the known ones.
        scanner: How badly a known change of the scanner is estimated.
        invariance: How far latents that a group shares lie from the group's mean.
        differences: How badly a draw redraws what scans of a clamped group differ in, however little that is.
        ranks: How badly readouts keep the order that is known.
        total_correlation: Linear dependence of groups of blocks on each other, over recent codes.
        hsic: Any dependence of pairs of blocks on each other, over recent codes.
        adversary: What probes read of factors from blocks that must not tell them.
        stratified_tc: Total correlation of single latents, as beta-TCVAE estimates it from a batch.
        density_ratio: Total correlation of single latents, as FactorVAE's discriminator has it.
        dip_one: Distance of the covariance of the posterior's means from identity (DIP-VAE-I).
        dip_two: Distance of the covariance of codes from identity (DIP-VAE-II).
        guard: What each block lacks of the information it ought to carry.
        consistency: How badly edited scans, encoded again, show the edit and nothing else.
    """

    distortion: Weight = 0.05
    rate: Weight = 1.0
    readout: Weight = 10.0
    mask: Weight = 1.0
    scanner: Weight = 3.0
    invariance: Weight = 10.0
    differences: Weight = 0.0
    ranks: Weight = 10.0
    total_correlation: Weight = 0.0
    hsic: Weight = 0.0
    adversary: Weight = 0.0
    stratified_tc: Weight = 0.0
    density_ratio: Weight = 0.0
    dip_one: Weight = 0.0
    dip_two: Weight = 0.0
    guard: Weight = 0.0
    consistency: Weight = 0.0


@dataclass(frozen=True)
class RateSettings:
    """What the rate of one block costs.

    Attributes:
        beta: How many times it counts.
        capacity: Nats that the block is to carry.
        free_nats: Nats that it carries for nothing.
    """

    beta: float = 1.0
    capacity: float = 0.0
    free_nats: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """What the terms of the objective need to know besides their weights.

    Attributes:
        beta: How many times a block's rate counts, a number for every block or a table by blocks and roles; 1 where
            nothing is said.
        capacity: Nats that each block is to carry: the rate costs its distance from there; 0 for the rate itself. A
            number for every block or a table by blocks and roles.
        free_nats: Nats that each block carries for nothing. A number for every block or a table by blocks and roles.
        queue: Recent codes over which dependence is measured.
        between: What has to be independent: ``unlabelled`` blocks of each other and of all labelled ones together, one
            of the ``roles`` of the other, or all ``blocks`` of each other. Only the first leaves factors alone whose
            labels are correlated in the cohort.
        guarded_nats: What the guard wants each block to tell of its scan.
    """

    beta: ByBlock = 1.0
    capacity: ByBlock = 0.0
    free_nats: ByBlock = 0.0
    queue: Annotated[int, Ge(16), Le(4096)] = 256
    between: Literal["unlabelled", "roles", "blocks"] = "unlabelled"
    guarded_nats: Annotated[float, Ge(0)] = 0.5

    def __post_init__(self) -> None:
        both = (self.capacity, self.free_nats)
        if all(both) and not any(isinstance(said, dict) for said in both):
            raise StudyError("[objective] gives capacity and free_nats, but a block has one or the other. Keep one.")

    def rate_of(self, block: str, role: str) -> RateSettings:
        """What the rate of a block costs: what is said of it by name, else by its role, else of none."""

        def said(setting: float | Mapping[str, float], otherwise: float) -> float:
            return setting.get(block, setting.get(role, otherwise)) if isinstance(setting, Mapping) else setting

        return RateSettings(said(self.beta, 1.0), said(self.capacity, 0.0), said(self.free_nats, 0.0))


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a model has to reach, or evaluating it ends with exit code 5.

    Attributes:
        leakage: The largest R2 with which a factor may be read from a block that is not its own.
    """

    leakage: Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that training needs to know."""

    cohort: CohortSettings
    grid: Grid
    scanner: ScannerSettings = field(default_factory=ScannerSettings)
    factors: tuple[Factor, ...] = ()
    supervision: tuple[Supervision, ...] = ()
    training: TrainingSettings = field(default_factory=TrainingSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    weights: Weights = field(default_factory=Weights)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    gate: Gate | None = None


def _refuse_twice(what: str, names: tuple[str, ...]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise StudyError(f"{what} names {', '.join(twice)} twice. Once is enough.")


def _one_or_more(value: object) -> object:
    """One name counts as a list of one."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value
