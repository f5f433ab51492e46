"""The queue: rows of recent steps, so that dependence can be measured where a batch holds four scans."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Queue(nn.Module):
    """The last rows that were pushed, without their gradients; a ring.

    Arguments:
        length: Rows kept at most.
        width: Numbers a row.

    References:
        Momentum Contrast for Unsupervised Visual Representation Learning (He et al., 2020)
    """

    rows: Tensor
    pushed: Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(length, width))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        return min(int(self.pushed), len(self.rows))

    def recent(self) -> Float[Tensor, "kept width"]:
        """The rows that are kept, in no particular order."""
        return self.rows[: len(self)].clone()

    def joined(self, fresh: Float[Tensor, "batch width"]) -> Float[Tensor, "all width"]:
        """Fresh rows, through which gradients pass, and behind them those that are kept."""
        return torch.cat([fresh, self.recent()])

    def push(self, fresh: Float[Tensor, "batch width"]) -> None:
        """Keep these rows in the place of the oldest."""
        places = (int(self.pushed) + torch.arange(len(fresh), device=fresh.device)) % len(self.rows)
        self.rows[places] = fresh.detach()
        self.pushed += len(fresh)


def amplified(value: Float[Tensor, "*shape"], batch: int, rows: int) -> Float[Tensor, "*shape"]:
    """The same value with a gradient as if every row, not only those of the batch, had moved as the batch does.

    A statistic of 256 rows hardly changes when four of them move. Times rows over batch, the gradient's expectation is
    that of the statistic over as many fresh rows.
    """
    return value.detach() + (rows / batch) * (value - value.detach())
