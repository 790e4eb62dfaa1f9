"""Tensor-parallel ranks that hold whole experts: owners of experts and the plan of their one all-to-all. No torch.

In this layout (MindSpeed's --moe-tp-extend-ep) no expert is split: each of the R = TP * EP ranks of the TPxEP group
owns L = E / R whole experts, whichever it likes, and tokens travel in one all-to-all over the whole group. Once
counts stand in the order of owners it is an ExpertLayout with EP = R and TP = 1; extended_async does the rest.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mindspeed_moe.errors import GroupError, PreprocessError
from mindspeed_moe.preprocess.exchange import Rows
from mindspeed_moe.preprocess.layout import ExpertLayout
from mindspeed_moe.preprocess.splits import Splits, padded_plan, split_plan


@dataclass(frozen=True)
class ExtendedLayout:
    """Which rank owns which experts, as one rank sees it.

    owned: [R][L] for every rank of the TPxEP group, in group order, the global indices of its experts, in the order
        in which it keeps them. Any order will do; every rank must be told the same.
    rank: this rank's index in the group.
    Raises GroupError unless every expert of 0..E-1 has exactly one owner, all own as many, and `rank` is one of them.
    """

    owned: Sequence[Sequence[int]]
    rank: int

    def __post_init__(self) -> None:
        # Tuples of int whatever was given, so that a layout can be compared and hashed.
        object.__setattr__(self, "owned", tuple(tuple(map(operator.index, own)) for own in self.owned))
        _check(self.owned, self.rank)

    @classmethod
    def contiguous(cls, num_experts: int, group_size: int, rank: int) -> ExtendedLayout:
        """Return the layout in which rank r owns experts [r*L, (r+1)*L); GroupError when E does not divide by R."""
        if group_size < 1 or num_experts < group_size or num_experts % group_size:
            raise GroupError(f"{num_experts} experts cannot be spread evenly over a TPxEP group of {group_size} ranks")
        experts = range(num_experts)
        local = num_experts // group_size
        return cls([experts[first : first + local] for first in range(0, num_experts, local)], rank)

    @cached_property
    def group_size(self) -> int:
        """R."""
        return len(self.owned)

    @cached_property
    def num_local_experts(self) -> int:
        """L."""
        return len(self.owned[0])

    @cached_property
    def num_experts(self) -> int:
        """E."""
        return self.group_size * self.num_local_experts

    @cached_property
    def order(self) -> tuple[int, ...]:
        """All experts in the order of their owners, [E]: the order in which the all-to-all needs a rank's rows."""
        return tuple(chain.from_iterable(self.owned))

    @cached_property
    def in_order(self) -> bool:
        """Whether that is 0..E-1, so that nothing needs to be put in another order."""
        return self.order == tuple(range(self.num_experts))

    @cached_property
    def digest(self) -> str:
        """A few letters that differ when the owners do, for ranks to compare."""
        return hashlib.sha256(repr(self.owned).encode()).hexdigest()[:16]

    @cached_property
    def by_owner(self) -> ExpertLayout:
        """The same as an ExpertLayout, EP = R and TP = 1, for counts that stand in the order of owners."""
        return ExpertLayout(self.num_experts, ep_size=self.group_size, tp_size=1, ep_rank=self.rank, tp_rank=0)

    @cached_property
    def places(self) -> NDArray[np.intp]:
        """Where the counts that `ExtendedPlan` is made of stand among all counts of all ranks, [2 * R, L].

        Indices into [R, E], in group order and in the experts' own numbering, read as one row.
        """
        ranks, experts = self.group_size, self.num_experts
        sent = self.rank * experts + np.array(self.order, dtype=np.intp).reshape(ranks, -1)
        received = np.arange(ranks, dtype=np.intp)[:, None] * experts + np.array(self.owned[self.rank], dtype=np.intp)
        return np.concatenate((sent, received))

    def require_group(self, group: Any) -> None:
        """Raise GroupError unless a group has R ranks and this one at its index; a rank without peers needs none."""
        if self.group_size == 1:
            return
        if group is None:
            raise GroupError(f"{self.group_size} ranks own experts: their process group is needed")
        if group.size() != self.group_size:
            raise GroupError(f"the TPxEP group has {group.size()} ranks; experts are owned by {self.group_size}")
        if group.rank() != self.rank:
            raise GroupError(
                f"this rank is number {group.rank()} in the TPxEP group; the layout is that of number {self.rank}"
            )


def _check(owned: Sequence[Sequence[int]], rank: int) -> None:
    """Raise GroupError, naming what is wrong first."""
    if not owned:
        raise GroupError("a TPxEP group without ranks: `owned` is empty")
    local = len(owned[0])
    if local == 0:
        raise GroupError("rank 0 of the TPxEP group owns no experts: every rank must own at least one")
    for number, own in enumerate(owned):
        if len(own) != local:
            raise GroupError(
                f"rank {number} of the TPxEP group owns {len(own)} experts and rank 0 owns {local}: "
                "every rank must own as many"
            )
    experts = local * len(owned)
    owners: dict[int, list[int]] = {}
    for number, own in enumerate(owned):
        for expert in own:
            if not 0 <= expert < experts:
                raise GroupError(
                    f"rank {number} of the TPxEP group owns expert {expert}: {len(owned)} ranks with {local} experts "
                    f"each own the experts 0..{experts - 1}"
                )
            owners.setdefault(expert, []).append(number)
    for expert, ranks in owners.items():
        if len(ranks) > 1:
            missing = [one for one in range(experts) if one not in owners]
            raise GroupError(
                f"expert {expert} is owned {len(ranks)} times, by ranks {ranks} of the TPxEP group, and nobody owns "
                f"{missing}: every expert must be owned exactly once"
            )
    if not 0 <= rank < len(owned):
        raise GroupError(f"rank {rank} is not in a TPxEP group of {len(owned)} ranks")


class ExtendedPlan(NamedTuple):
    """What the dispatcher of this layout reads. Arrays are int64, and share no memory with a buffer.

    input_splits: [R] rows sent to each rank of the TPxEP group. None where all parts are equal: with padding, and
        for a rank without peers.
    output_splits: [R] rows received from each rank; None likewise.
    tokens_per_local_expert: [L] rows that each own expert receives, in the order in which this rank lists them.
    chunk_table: [R, L] rows per sending rank and own expert: the chunk sizes of the second sort.
    num_out_tokens: rows after the first permutation, which must put them in the order of `ExtendedLayout.order`.
    counts: [L] int64 tensor, tokens_per_local_expert where the experts read it: on the device when that was asked
        for, else on the host, over the same memory as the array. None with padding.
    """

    input_splits: Splits | None
    output_splits: Splits | None
    tokens_per_local_expert: Splits
    chunk_table: Splits
    num_out_tokens: int
    counts: Any


def extended_plan(layout: ExtendedLayout, rows: Rows, num_out_tokens: int | None) -> ExtendedPlan:
    """Return the plan, but for `counts`, from this rank's counts and those that it received.

    rows: [2 * R, L] int64, handed over: first this rank's tokens for each rank's experts, then every rank's tokens for
        this rank's own.
    num_out_tokens: T * topk when it is known (dropless); None when it depends on the routing map.
    Raises CountOverflowError when a buffer would hold more than 2**31 - 1 rows.
    """
    plan = split_plan(layout.by_owner, rows, num_out_tokens)
    alone = layout.group_size == 1
    return ExtendedPlan(
        input_splits=None if alone else plan.input_splits,
        output_splits=None if alone else plan.output_splits,
        tokens_per_local_expert=plan.tokens_per_local_expert,
        chunk_table=rows[layout.group_size :],
        num_out_tokens=plan.num_out_tokens,
        counts=None,
    )


def extended_padded_plan(layout: ExtendedLayout, capacity: int) -> ExtendedPlan:
    """Return the plan of drop-and-pad: every expert gets `capacity` rows from every rank, so nothing is exchanged.

    Raises PreprocessError when the capacity is negative, CountOverflowError as `extended_plan` does.
    """
    if capacity < 0:
        raise PreprocessError(f"capacity {capacity}; expected at least 0")
    plan = padded_plan(layout.by_owner, capacity)
    assert plan.chunk_table is not None
    return ExtendedPlan(
        input_splits=None,
        output_splits=None,
        tokens_per_local_expert=plan.tokens_per_local_expert,
        chunk_table=plan.chunk_table.reshape(layout.group_size, layout.num_local_experts),
        num_out_tokens=plan.num_out_tokens,
        counts=None,
    )
