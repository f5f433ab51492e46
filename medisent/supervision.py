"""Weak supervision: which scans make the next batch, and what the scans of a batch have in common (their tie)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medisent.batches import Batch
from medisent.posterior import PartitionedNormal, Pool, at_one, together

Kind = Literal["groups", "pairs", "clamp", "ranks"]

COPIES = 4
"""How often a clamped group of one scan is repeated, each time with another scanner."""


@dataclass(frozen=True)
class Entry:
    """One [[supervision]] of a study, its names resolved to the blocks of a model.

    Attributes:
        kind: What scans that agree in its column have in common.
        column: Of a batch's ``group`` and ``order``.
        blocks: What they share, or (pairs) may share.
        alike: Settings of the scanner that are the same in all scans of a group, and so are changed alike.
        factors: What is ordered (ranks), or what has labels and is the same (groups).
        pool: How posteriors are shared.
        batches: How many of its batches follow each plain one.
        repeats: Whether a group of one scan says something, because its scanner may be changed.
    """

    kind: Kind
    column: int
    blocks: frozenset[str] = frozenset()
    alike: frozenset[str] = frozenset()
    factors: tuple[str, ...] = ()
    pool: Pool = "product"
    batches: int = 1
    repeats: bool = False

    @property
    def about_rests(self) -> bool:
        """Whether it speaks of what no factor names, and not of named factors alone; clamping speaks of everything."""
        return self.kind == "clamp" or bool(self.blocks & {"anatomy_rest", "nuisance_rest"})


@dataclass(frozen=True, eq=False)
class Tie:
    """What the scans of one batch have in common.

    Attributes:
        entry: The [[supervision]] that says so.
        group: Scans of one number have it in common; -1 is none.
        order: What orders the scans of a group; NaN is unknown.
    """

    entry: Entry
    group: Int[Tensor, " batch"]
    order: Float[Tensor, " batch"]

    def to(self, device: torch.device) -> Tie:
        """The same on a device."""
        return Tie(self.entry, self.group.to(device), self.order.to(device))

    @property
    def together(self) -> Bool[Tensor, "batch batch"]:
        """Which scans are of one group; those without a group are not even their own mates."""
        return together(self.group)

    @property
    def leader(self) -> Int[Tensor, " batch"]:
        """The first scan of each scan's group; itself for one without a group."""
        return at_one(self.group).int().argmax(1)

    @property
    def still(self) -> bool:
        """Whether the pose is among what is shared, so that scans of a group have to be moved alike."""
        return "anatomy_rest" in self.entry.blocks

    def counted(self, block: str) -> Float[Tensor, " batch"]:
        """How much each scan counts among those that share this block: one over their number, one alone."""
        own = torch.eye(len(self.group), dtype=torch.bool, device=self.group.device)
        shares = self.entry.kind == "groups" and block in self.entry.blocks
        return (self.together & shares | own).float().sum(1).reciprocal()

    def applied(self, q: PartitionedNormal) -> PartitionedNormal:
        """The posterior of scans that share what they share."""
        if self.entry.kind == "groups":
            return q.shared(self.group, self.entry.blocks, self.entry.pool)
        if self.entry.kind == "pairs":
            return q.adapted(self.group, self.entry.blocks, self.entry.pool)
        if self.entry.kind == "clamp":
            return q.clamped(self.group, self.entry.blocks)
        return q


@dataclass
class Sampler:
    """Which scans come next, in turn: a plain batch, then the batches of each entry.

    Plain batches show every scan once before any comes again. An entry's batches hold whole groups where these fit,
    every group once before any comes again; a larger one comes in parts, and room that is left is filled with plain
    scans, which are of no group. The state can be taken out and put back.

    Attributes:
        shown: All scans there are to choose from.
        entries: What is known of them.
        batch: Scans a batch.
        chance: The source of chance, shared with whoever else draws from it.
        turn: Batches given out.
        plain: The scans of the current pass over all of them that are still to come.
        queues: For each entry, what is still to come of the pass over its groups: scans, and the number of their part.
    """

    shown: Batch
    entries: Sequence[Entry]
    batch: int
    chance: torch.Generator
    turn: int = 0
    plain: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    queues: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.batch = min(self.batch, len(self.shown))
        self.group, self.order = self.shown.group.cpu(), self.shown.order.cpu()
        self.round = [None, *(entry for entry in self.entries for _ in range(entry.batches))]
        self.queues = self.queues or [torch.zeros(0, 2, dtype=torch.long) for _ in self.entries]

    def next(self) -> tuple[Int[Tensor, " batch"], Tie | None]:
        """The rows of the next batch, and what they have in common."""
        index = self.turn % len(self.round)
        self.turn += 1
        entry = self.round[index]
        if entry is None:
            return self._take(self.batch), None
        rows, part = self._whole_parts(entry)
        rest = self._take(max(0, self.batch - len(rows)))
        rows, part = torch.cat([rows, rest]), torch.cat([part, torch.full_like(rest, -1)])
        return rows, Tie(entry, part, self.order[rows, entry.column])

    def foreseen(self) -> Int[Tensor, " batch"]:
        """The rows of the next batch, if nobody draws from the source of chance before; nothing is given out."""
        before = (self.turn, self.plain, list(self.queues), self.chance.get_state())
        rows, _ = self.next()
        self.turn, self.plain, self.queues, chance = before
        self.chance.set_state(chance)
        return rows

    def state(self) -> dict[str, Tensor]:
        """All that the next batches depend on, but for the source of chance."""
        queues = {f"queue{index}": queue for index, queue in enumerate(self.queues)}
        return {"turn": torch.tensor(self.turn), "plain": self.plain, **queues}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where the state was taken.

        Raises:
            KeyError: The state is not one of this sampler.
            ValueError: It names scans that there are not.
        """
        plain, queues = state["plain"], [state[f"queue{index}"] for index in range(len(self.entries))]
        for rows in (plain, *(queue.reshape(-1, 2)[:, 0] for queue in queues)):
            if rows.dtype != torch.long or rows.ndim != 1 or bool(((rows < 0) | (rows >= len(self.shown))).any()):
                raise ValueError("these scans are not of this cohort")
        self.turn, self.plain, self.queues = int(state["turn"]), plain, queues

    def _take(self, count: int) -> Int[Tensor, " rows"]:
        """The next so many scans in turn."""
        if len(self.plain) < count:
            self.plain = torch.cat([self.plain, torch.randperm(len(self.shown), generator=self.chance)])
        rows, self.plain = self.plain[:count], self.plain[count:]
        return rows

    def _whole_parts(self, entry: Entry) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
        """The next parts of groups that fit into a batch together, and their numbers; none if there is no group."""
        where = self.entries.index(entry)
        if not len(self.queues[where]):
            dealt = [[(row, number) for row in part] for number, part in enumerate(self._parts(entry))]
            self.queues[where] = torch.tensor([row for part in dealt for row in part]).reshape(-1, 2).long()
        taken: list[list[int]] = []
        left: list[list[int]] = []
        for _, rows in groupby(self.queues[where].tolist(), key=lambda row: row[1]):
            part = list(rows)
            fits = not taken or len(taken) + len(part) <= self.batch
            (taken if fits else left).extend(part)
        self.queues[where] = torch.tensor(left).reshape(-1, 2).long()
        found = torch.tensor(taken).reshape(-1, 2).long()
        return found[:, 0], found[:, 1]

    def _parts(self, entry: Entry) -> Iterator[list[int]]:
        """All groups of an entry, by chance, in parts that fit into a batch; none of a part is alone."""
        group = self.group[:, entry.column]
        if entry.kind == "ranks":
            group = torch.where(self.order[:, entry.column].isfinite(), group, -1)
        names = group[group >= 0].unique()
        most = 2 if entry.kind == "pairs" else max(2, self.batch)
        for name in names[torch.randperm(len(names), generator=self.chance)]:
            members = torch.nonzero(group == name)[:, 0]
            members = members[torch.randperm(len(members), generator=self.chance)]
            if len(members) == 1:
                if entry.repeats:
                    yield members.tolist() * min(COPIES, most)
                continue
            for part in members.tensor_split(math.ceil(len(members) / most)):
                # One left over has had its mates already in this pass; it meets one of them again.
                yield part.tolist() if len(part) > 1 else [int(part[0]), int(members[0])]
