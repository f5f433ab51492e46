"""How networks run while they learn: in which precision, compiled or not, what they compute kept or computed again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, eq=False)
class Manner:
    """How a part of a model runs while it learns; a part that does not learn runs as it is written, in float32.

    Attributes:
        precision: Of convolutions; weights, sums and norms are float32.
        recompute: Whether the backward pass computes again what the forward pass else would keep for it.
        compile: Whether parts are compiled when they first run.

    References:
        Training Deep Nets with Sublinear Memory Cost (Chen, Xu, Zhang, Guestrin, 2016)
    """

    precision: torch.dtype = torch.float32
    recompute: bool = False
    compile: bool = False
    _compiled: dict[nn.Module, Callable[..., Any]] = field(default_factory=dict, init=False, repr=False)

    def run(self, part: nn.Module, *inputs: Tensor | list[Tensor]) -> Any:  # noqa: ANN401 - what the part makes
        """What a part makes of inputs."""
        if not part.training:
            return part(*inputs)
        made = self._made(part)
        device = next(part.parameters()).device.type
        with torch.autocast(device, dtype=self.precision, enabled=self.precision != torch.float32):
            if self.recompute and torch.is_grad_enabled():
                return checkpoint(made, *inputs, use_reentrant=False, preserve_rng_state=False)
            return made(*inputs)

    def _made(self, part: nn.Module) -> Callable[..., Any]:
        if not self.compile:
            return part
        if part not in self._compiled:
            self._compiled[part] = torch.compile(part)
        return self._compiled[part]
