"""The running mean of a network's weights (EMA), which strays less than the weights of any one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The running mean of weights.

    Early on the mean is over all steps so far, lest the weights at the start stay in it for long.

    Arguments:
        network: Whose weights; its buffers are what they are.
        decay: What of the mean stays at each step; 0 keeps none, and the mean is the weights themselves.

    References:
        Acceleration of Stochastic Approximation by Averaging (Polyak, Juditsky, 1992)
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay, self.steps = network, decay, 0
        self.means = [p.detach().clone() for p in network.parameters()] if decay else []

    @torch.no_grad()
    def take_in(self) -> None:
        """Let the mean take in the weights of the step just taken."""
        self.steps += 1
        if self.decay:
            stays = min(self.decay, (self.steps - 1) / self.steps)
            torch._foreach_lerp_(self.means, list(self.network.parameters()), 1 - stays)

    @torch.no_grad()
    def exchange(self) -> None:
        """Put the mean in the network's place, and the network's weights in the mean's; a second time undoes it."""
        for mean, weight in zip(self.means, self.network.parameters(), strict=bool(self.decay)):
            here = weight.clone()
            weight.copy_(mean)
            mean.copy_(here)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """A block in which the network's weights are their mean."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    def state(self) -> dict[str, Tensor]:
        return {"steps": torch.tensor(self.steps), **{str(index): mean for index, mean in enumerate(self.means)}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        found = [state[str(index)] for index in range(len(self.means))]
        if any(have.shape != mean.shape for have, mean in zip(found, self.means, strict=True)):
            raise ValueError("this is the mean of another network")
        for have, mean in zip(found, self.means, strict=True):
            mean.copy_(have)
        self.steps = int(state["steps"])
