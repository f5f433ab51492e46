"""What a term of the objective is: a cost in nats a scan, read from one record (the draw)."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from medisent.model import Draw, PartitionedVAE


class Term(nn.Module, ABC):
    """One cost, in nats a scan.

    Arguments:
        model: The model that draws; a term may read its factors and its partition.
    """

    def __init__(self, model: PartitionedVAE) -> None:
        super().__init__()
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
