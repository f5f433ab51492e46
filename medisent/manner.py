"""How networks run: while they learn in which precision, compiled or not, and computing what twice; later how fast."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv3d
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint


class AsForSeveral(TorchFunctionMode):
    """Within it a CPU convolves one scan as it does several, by oneDNN.

    For one small scan PyTorch chooses another way, which takes three times as long and rounds differently.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - what the function makes
        if func is conv3d and not kwargs:
            image, weight, bias, stride, padding, dilation, groups = args  # as nn.Conv3d calls it
            if image.is_cpu and image.dtype == torch.float32 and not isinstance(padding, str):
                return torch.mkldnn_convolution(image.contiguous(), weight, bias, padding, stride, dilation, groups)
        return func(*args, **(kwargs or {}))


def as_written(part: nn.Module, *inputs: Any) -> Any:  # noqa: ANN401 - what the part takes and makes
    """What a part makes of inputs in float32; single scans as fast as several, once it does not learn."""
    if part.training or not torch.backends.mkldnn.is_available():
        return part(*inputs)
    with AsForSeveral():
        return part(*inputs)


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
            return as_written(part, *inputs)
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
