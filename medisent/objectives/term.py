"""What a term of the objective is: a cost in nats a scan, read from one record (the draw)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from medisent.config import ObjectiveSettings
from medisent.model import Draw, PartitionedVAE


class Term(nn.Module, ABC):
    """One cost, in nats a scan.

    A term may hold weights, which training optimises with the model's, and buffers; both are in the checkpoint.

    Arguments:
        model: The model that draws; a term may read its factors and its partition.
        options: What the study says of the objective.
        scans: Scans that training has.
    """

    together: ClassVar[bool] = False
    """Whether scans are judged together, so that what one costs depends on the others."""

    needs: ClassVar[int] = 1
    """The fewest scans a batch from which the term means something."""

    def __init__(self, model: PartitionedVAE, options: ObjectiveSettings | None = None, scans: int = 1000) -> None:
        super().__init__()
        self.options = options or ObjectiveSettings()
        self.scans = scans
        self.factors = dict(model.factors)
        self.scanner_names = model.scanner_names
        self.shaped = tuple(model.shaped)
        # A tuple keeps the model out of this module's own parameters.
        self._model = (model,)

    @property
    def model(self) -> PartitionedVAE:
        """The model that draws."""
        return self._model[0]

    @abstractmethod
    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        """The cost of each scan, in nats."""
