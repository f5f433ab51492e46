"""What one training step sees: scans on the model's grid, and whatever is known of them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Scans with what is known of them. NaN is unknown, everywhere.

    Attributes:
        scan: Intensities divided by each scan's measured scale.
        coverage: The part of each grid voxel that the scan's field of view covers, 0 to 1.
        log_scale: Logarithm of what was divided out; the known part of the brightness.
        values: One column a factor.
        masks: One channel a factor with a mask: the part of each voxel that is inside.
        group: One column a [[supervision]]: scans of one number have in common what it says; -1 is none.
        order: One column a [[supervision]]: what orders the scans of one group.
    """

    scan: Float[Tensor, "batch 1 x y z"]
    coverage: Float[Tensor, "batch 1 x y z"]
    log_scale: Float[Tensor, " batch"]
    values: Float[Tensor, "batch factors"]
    masks: Float[Tensor, "batch shapes x y z"]
    group: Int[Tensor, "batch entries"]
    order: Float[Tensor, "batch entries"]

    def __len__(self) -> int:
        return len(self.scan)

    def __getitem__(self, rows: Int[Tensor, " rows"]) -> Batch:
        """The batch of these rows."""
        return Batch(*(getattr(self, f.name)[rows] for f in fields(self)))

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; from pinned memory the device fetches it by itself."""
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def pinned(self) -> Batch:
        """The same batch in memory that a CUDA device can fetch by itself."""
        return Batch(*(getattr(self, f.name).pin_memory() for f in fields(self)))
