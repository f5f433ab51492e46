"""Processes that take one step together: which scans of it are whose, and how each learns what the others know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, distributed, nn

from medisent.errors import MachineError


@dataclass(frozen=True)
class Crew:
    """Processes that take every step together, and which of them this one is.

    Scans of a step are dealt out in turn. What depends on one scan is worked out by its owner alone; what depends on
    all of them is worked out by every process, from the small numbers that describe each scan (see ``whole``). With
    the mean of all processes' gradients each then takes the step that one process would have taken with all scans.

    Attributes:
        rank: Of this process; the first writes and speaks.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    def own(self, rows: Shaped[Tensor, "batch *rest"]) -> Shaped[Tensor, "own *rest"]:
        """The rows of this process's own scans."""
        return rows[self.rank :: self.size]

    def whole(self, own: Shaped[Tensor, "own *rest"]) -> Shaped[Tensor, "batch *rest"]:
        """The rows of all scans of the step, from each process its own; gradients find their way back to the owner."""
        if self.size == 1:
            return own
        found: Tensor = _Whole.apply(own, self)  # type: ignore[no-untyped-call]
        return found

    def noise(self, like: Shaped[Tensor, "own *rest"]) -> Shaped[Tensor, "own *rest"]:
        """Normal numbers for this process's scans, the same for a scan however many processes there are."""
        return self.own(torch.randn(self.size * len(like), *like.shape[1:], dtype=like.dtype, device=like.device))

    @torch.no_grad()
    def mean(self, own: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The mean over processes, without gradients."""
        if self.size == 1:
            return own.detach()
        return summed(own.detach()) / self.size

    @torch.no_grad()
    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Put the mean over processes in the place of each gradient, by one message for all of them.

        A parameter that no scan of any process has reached keeps none, so that the optimiser leaves it alone.
        """
        if self.size == 1:
            return
        reached = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = summed(torch.cat([*(part.flatten() for part in parts), reached])) / self.size
        *means, reached = flat.split([*(p.numel() for p in parameters), len(parameters)])
        for parameter, mean, by_any in zip(parameters, means, reached.tolist(), strict=True):
            parameter.grad = mean.reshape(parameter.shape) if by_any else None

    def meet(self) -> None:
        """Wait until every process has come here."""
        self.mean(torch.zeros(1))


ALONE = Crew()
"""One process."""


class _Whole(torch.autograd.Function):
    """All rows of a step; a row's gradient is the sum of what every process has to say of it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, crew: Crew) -> Tensor:  # noqa: ANN401 - torch names no type for it
        ctx.crew = crew
        found = own.new_zeros(len(own), crew.size, *own.shape[1:])
        found[:, crew.rank] = own
        return summed(found).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return ctx.crew.own(summed(gradient)), None


def summed(numbers: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The sum over processes, the same bits in all of them.

    Raises:
        MachineError: One of them has gone.
    """
    total = numbers.contiguous().clone()
    try:
        distributed.all_reduce(total)
    except RuntimeError as error:
        raise MachineError(
            "Another process of this training has ended, and so does this one. What it said stands above, if it could. "
            "The same command goes on from the last checkpoint."
        ) from error
    return total
