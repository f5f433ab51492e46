"""What a factor is: its name, role, unit, and the distribution its values follow. Holds no weights, reads no file."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Categorical, Distribution, Normal, VonMises
from torch.nn.functional import one_hot, softplus

from medisent.errors import InterventionError, StudyError

Role = Literal["anatomy", "nuisance"]

SCANNER_FACTORS = ("brightness", "contrast", "bias_field")
"""What the built-in scanner does to a scan; nuisance factors that need no labels."""

_VOLUME_UNITS = ("ml", "l", "cc", "cm3", "cm^3", "cm³", "mm3", "mm^3", "mm³")


@dataclass(frozen=True, kw_only=True)
class Factor(ABC):
    """A named thing that varies between scans.

    A value is one number: a measurement, or the index of a level. A type says how a value is laid out for a
    network (``embed``), how a network's output is read as a distribution over embeddings (``likelihood``), and
    which value an embedding stands for (``value``).

    Attributes:
        name: How users call it.
        role: ``anatomy``, what we want to know, or ``nuisance``, what we do not.
        unit: Of its values, as printed.
        column: Of the cohort table, with its values.
        mask: Column of the cohort table with masks whose volume in mL is the factor.
    """

    name: str
    role: Role
    unit: str = ""
    column: str | None = None
    mask: str | None = None

    kind: ClassVar[str]

    @property
    def size(self) -> int:
        """Latents in the factor's block."""
        return self.embedding_size

    @property
    def is_volume(self) -> bool:
        """Whether the factor is a volume, and so a sum over what a scan shows."""
        return False

    @property
    @abstractmethod
    def embedding_size(self) -> int:
        """Numbers in an embedding."""

    @property
    @abstractmethod
    def parameter_size(self) -> int:
        """Numbers that a likelihood needs."""

    @property
    def standardised(self) -> bool:
        """Whether embeddings are to be centred and scaled by the training cohort."""
        return False

    @property
    def ordered(self) -> bool:
        """Whether one value can be larger than another."""
        return self.embedding_size == 1

    @abstractmethod
    def embed(self, value: Float[Tensor, " batch"]) -> Float[Tensor, "batch embedding"]:
        """Values laid out for a network; NaN where the value is unknown."""

    @abstractmethod
    def value(self, embedding: Float[Tensor, "batch embedding"]) -> Float[Tensor, " batch"]:
        """The value that an embedding stands for."""

    @abstractmethod
    def likelihood(self, parameters: Float[Tensor, "batch parameter"]) -> Distribution:
        """The distribution that a network's output describes, over targets (see ``target``)."""

    def target(self, embedding: Float[Tensor, "batch embedding"]) -> Tensor:
        """What the likelihood scores: the first coordinate of the embedding."""
        return embedding[:, 0]

    @abstractmethod
    def best(self, parameters: Float[Tensor, "batch parameter"]) -> Float[Tensor, "batch embedding"]:
        """The embedding of the most likely value."""

    def parse(self, text: str) -> float:
        """The value that a user or a table wrote.

        Raises:
            InterventionError: The text is not a value of this factor.
        """
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise InterventionError(f"{self.name} takes a number{self._of_unit}, but {text!r} is not one.")
        return number

    def show(self, value: float) -> str:
        """A value as printed, with its unit."""
        return f"{value:.4g}{' ' + self.unit if self.unit else ''}"

    @property
    def _of_unit(self) -> str:
        return f" ({self.unit})" if self.unit else ""


@dataclass(frozen=True, kw_only=True)
class Real(Factor):
    """Any number, normally distributed."""

    kind: ClassVar[str] = "real"

    @property
    def embedding_size(self) -> int:
        return 1

    @property
    def parameter_size(self) -> int:
        return 2

    @property
    def standardised(self) -> bool:
        return True

    def embed(self, value: Float[Tensor, " batch"]) -> Float[Tensor, "batch embedding"]:
        return value[:, None]

    def value(self, embedding: Float[Tensor, "batch embedding"]) -> Float[Tensor, " batch"]:
        return embedding[:, 0]

    def likelihood(self, parameters: Float[Tensor, "batch parameter"]) -> Distribution:
        return Normal(parameters[:, 0], softplus(parameters[:, 1]) + 1e-2)

    def best(self, parameters: Float[Tensor, "batch parameter"]) -> Float[Tensor, "batch embedding"]:
        return parameters[:, :1]


@dataclass(frozen=True, kw_only=True)
class Positive(Real):
    """A number above zero, normally distributed on a log scale.

    Attributes:
        offset: Added before the logarithm, for cohorts in which zeros occur (no tumour, 0 mL).
    """

    offset: float = 0.0

    kind: ClassVar[str] = "positive"

    @property
    def is_volume(self) -> bool:
        return self.unit.lower() in _VOLUME_UNITS

    def embed(self, value: Float[Tensor, " batch"]) -> Float[Tensor, "batch embedding"]:
        return (value + self.offset).clamp(min=1e-30).log()[:, None]

    def value(self, embedding: Float[Tensor, "batch embedding"]) -> Float[Tensor, " batch"]:
        return (embedding[:, 0].exp() - self.offset).clamp(min=0)

    def parse(self, text: str) -> float:
        number = super().parse(text)
        if number < 0 or (number == 0 and self.offset == 0):
            raise InterventionError(f"{self.name} is positive{self._of_unit}, but {text} is not.")
        return number


@dataclass(frozen=True, kw_only=True)
class Ordinal(Factor):
    """One of several levels that have an order, by cumulative logits.

    Attributes:
        levels: From the lowest to the highest.

    References:
        Regression Models for Ordinal Data (McCullagh, 1980)
    """

    levels: tuple[str, ...]

    kind: ClassVar[str] = "ordinal"

    def __post_init__(self) -> None:
        _check_levels(self.name, self.levels)

    @property
    def embedding_size(self) -> int:
        return 1

    @property
    def parameter_size(self) -> int:
        return len(self.levels)

    def embed(self, value: Float[Tensor, " batch"]) -> Float[Tensor, "batch embedding"]:
        top = len(self.levels) - 1
        return (2 * value / top - 1)[:, None]

    def value(self, embedding: Float[Tensor, "batch embedding"]) -> Float[Tensor, " batch"]:
        top = len(self.levels) - 1
        return ((embedding[:, 0] + 1) / 2 * top).round().clamp(0, top)

    def likelihood(self, parameters: Float[Tensor, "batch parameter"]) -> Distribution:
        # The first threshold is free, the others follow at positive distances.
        where, first, gaps = parameters[:, :1], parameters[:, 1:2], softplus(parameters[:, 2:])
        thresholds = torch.cat([first, first + gaps.cumsum(1)], 1)
        below = torch.sigmoid(thresholds - where)
        edges = torch.cat([torch.zeros_like(where), below, torch.ones_like(where)], 1)
        return Categorical(probs=edges.diff(dim=1).clamp(min=1e-6))

    def target(self, embedding: Float[Tensor, "batch embedding"]) -> Tensor:
        return self.value(embedding)

    def best(self, parameters: Float[Tensor, "batch parameter"]) -> Float[Tensor, "batch embedding"]:
        return self.embed(self.likelihood(parameters).mode.to(parameters.dtype))

    def parse(self, text: str) -> float:
        return _parse_level(self.name, self.levels, text)

    def show(self, value: float) -> str:
        return self.levels[round(value)]


@dataclass(frozen=True, kw_only=True)
class Nominal(Factor):
    """One of several levels without an order.

    Attributes:
        levels: In any order; their indices are the values.
    """

    levels: tuple[str, ...]

    kind: ClassVar[str] = "categorical"

    def __post_init__(self) -> None:
        _check_levels(self.name, self.levels)

    @property
    def embedding_size(self) -> int:
        return len(self.levels)

    @property
    def parameter_size(self) -> int:
        return len(self.levels)

    def embed(self, value: Float[Tensor, " batch"]) -> Float[Tensor, "batch embedding"]:
        known = value.isfinite()
        index = torch.where(known, value, 0).long()
        hot = one_hot(index, len(self.levels)).to(value.dtype)
        return torch.where(known[:, None], hot, torch.nan)

    def value(self, embedding: Float[Tensor, "batch embedding"]) -> Float[Tensor, " batch"]:
        return embedding.argmax(1).to(embedding.dtype)

    def likelihood(self, parameters: Float[Tensor, "batch parameter"]) -> Distribution:
        return Categorical(logits=parameters)

    def target(self, embedding: Float[Tensor, "batch embedding"]) -> Tensor:
        return self.value(embedding)

    def best(self, parameters: Float[Tensor, "batch parameter"]) -> Float[Tensor, "batch embedding"]:
        return self.embed(parameters.argmax(1).to(parameters.dtype))

    def parse(self, text: str) -> float:
        return _parse_level(self.name, self.levels, text)

    def show(self, value: float) -> str:
        return self.levels[round(value)]


@dataclass(frozen=True, kw_only=True)
class Circular(Factor):
    """A number on a circle, such as an angle, by the von Mises distribution.

    Attributes:
        period: After which values repeat, in the factor's unit.
    """

    period: float

    kind: ClassVar[str] = "circular"

    def __post_init__(self) -> None:
        if not self.period > 0:
            raise StudyError(f"The period of {self.name} is {self.period}, but has to be positive.")

    @property
    def embedding_size(self) -> int:
        return 2

    @property
    def parameter_size(self) -> int:
        return 3

    def embed(self, value: Float[Tensor, " batch"]) -> Float[Tensor, "batch embedding"]:
        angle = value * (2 * math.pi / self.period)
        return torch.stack([angle.cos(), angle.sin()], 1)

    def value(self, embedding: Float[Tensor, "batch embedding"]) -> Float[Tensor, " batch"]:
        angle = torch.atan2(embedding[:, 1], embedding[:, 0])
        return (angle * (self.period / (2 * math.pi))) % self.period

    def likelihood(self, parameters: Float[Tensor, "batch parameter"]) -> Distribution:
        return VonMises(self._angle(parameters), softplus(parameters[:, 2]) + 1e-2)

    def target(self, embedding: Float[Tensor, "batch embedding"]) -> Tensor:
        return self._angle(embedding)

    def best(self, parameters: Float[Tensor, "batch parameter"]) -> Float[Tensor, "batch embedding"]:
        angle = self._angle(parameters)
        return torch.stack([angle.cos(), angle.sin()], 1)

    @staticmethod
    def _angle(pair: Float[Tensor, "batch pair"]) -> Float[Tensor, " batch"]:
        return torch.atan2(pair[:, 1], pair[:, 0])


FACTOR_TYPES: dict[str, type[Factor]] = {
    "real": Real,
    "positive": Positive,
    "ordinal": Ordinal,
    "categorical": Nominal,
    "circular": Circular,
}


@dataclass(frozen=True)
class Block:
    """A named run of latents.

    Attributes:
        name: Of the factor, or ``anatomy_rest`` and ``nuisance_rest``.
        role: ``anatomy`` or ``nuisance``.
        start: Its first latent.
        size: Its number of latents.
    """

    name: str
    role: Role
    start: int
    size: int

    @property
    def where(self) -> slice:
        """Its latents."""
        return slice(self.start, self.start + self.size)


class Partition(Mapping[str, Block]):
    """Which latents belong to whom: a block a factor, and the rest of each role.

    Example:
        >>> partition = Partition([("tumour_volume", "anatomy", 1), ("anatomy_rest", "anatomy", 16)])
        >>> partition["anatomy_rest"].where
        slice(1, 17, None)
    """

    def __init__(self, blocks: Sequence[tuple[str, Role, int]]) -> None:
        self._blocks: dict[str, Block] = {}
        start = 0
        for name, role, size in blocks:
            self._blocks[name] = Block(name, role, start, size)
            start += size
        self.size = start

    def __getitem__(self, name: str) -> Block:
        return self._blocks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def columns(self) -> tuple[str, ...]:
        """A name a latent: ``BLOCK.INDEX``."""
        return tuple(f"{b.name}.{i}" for b in self._blocks.values() for i in range(b.size))

    def of_role(self, role: Role) -> Bool[Tensor, " latent"]:
        """Which latents are of that role."""
        return torch.tensor([b.role == role for b in self._blocks.values() for _ in range(b.size)])


def _check_levels(name: str, levels: tuple[str, ...]) -> None:
    if len(levels) < 2 or len(set(levels)) < len(levels):
        raise StudyError(f"{name} has the levels {list(levels)}, but needs at least two, all different.")


def _parse_level(name: str, levels: tuple[str, ...], text: str) -> float:
    if text not in levels:
        raise InterventionError(f"{name} is one of {', '.join(levels)}, but {text!r} is not.")
    return float(levels.index(text))
