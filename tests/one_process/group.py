"""A TPxEP group inside one process: a stand-in for the collectives that really moves the data.

Two passes, no threads. In the first every rank runs until its collective, which keeps what the rank sends and ends
the rank. In the second every rank runs to its end; its collective receives what the others sent in the first pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from mindspeed_moe.preprocess import exchange, reference, sites

_PRIORITY = {
    "before_permutation_1": 0,
    "before_ep_alltoall": 1,
    "before_permutation_2": 2,
    "before_finish": 3,
    "no_sync": 4,
}


@dataclass(frozen=True)
class Layout:
    """A whole group. Rank (i in EP, k in TP) has index i * tp + k and owns the i-th run of experts."""

    ep: int
    tp: int
    experts: int

    @property
    def ranks(self) -> int:
        return self.ep * self.tp

    @property
    def local_experts(self) -> int:
        return self.experts // self.ep


@dataclass(eq=False)
class Group:
    """What the code asks of a process group."""

    ranks: int
    index: int

    def size(self) -> int:
        return self.ranks

    def rank(self) -> int:
        return self.index


class Dispatcher:
    """The state of MoEAlltoAllTokenDispatcher that preprocess reads and writes, without the rest of Megatron.

    The attributes and their first values are those that the constructors of 0.12.1 and 0.16.1 leave.
    """

    def __init__(self, layout: Layout, index: int, topk: int) -> None:
        self.num_experts = layout.experts
        self.num_local_experts = layout.local_experts
        self.ep_size, self.tp_size = layout.ep, layout.tp
        self.tp_rank = index % layout.tp
        first = index // layout.tp * layout.local_experts
        self.local_expert_indices = list(range(first, first + layout.local_experts))
        self.tp_ep_group = Group(layout.ranks, index)
        self.ep_group = self.tp_ep_group if layout.tp == 1 else Group(layout.ep, index // layout.tp)
        self.config = SimpleNamespace(
            moe_router_topk=topk,
            moe_expert_capacity_factor=None,
            moe_permute_fusion=False,
            moe_router_padding_for_quantization=False,
            moe_router_padding_for_fp8=False,  # its name in 0.13 to 0.15
        )
        self.drop_and_pad = False
        self.moe_expert_capacity_factor: float | None = None
        self.capacity: int | None = None
        self.permute_idx_device: torch.device | str | None = "cpu"
        self.input_splits = self.output_splits = self.output_splits_tp = None
        self.cuda_dtoh_point = "before_permutation_1"
        self.cuda_sync_point = "no_sync"
        self.cuda_sync_point_priority = _PRIORITY

    def fuse(self) -> None:
        """Permute with fused kernels, which read their indices on the device, as Megatron's constructor sees to."""
        self.config.moe_permute_fusion = True
        self.permute_idx_device = torch.device("cpu")  # an object, where the host is None or a word

    def _maybe_update_cuda_sync_point(self, point: str) -> None:
        if _PRIORITY[point] < _PRIORITY[self.cuda_sync_point]:
            self.cuda_sync_point = point


class Sent(Exception):
    """Ends a rank's first pass."""


class Collectives:
    """Stands for torch.distributed, for one exchange of a whole group."""

    def __init__(self) -> None:
        self.sent: dict[int, tuple[str, torch.Tensor]] = {}
        self.delivering = False

    def all_to_all_single(self, output: torch.Tensor, input: torch.Tensor, *, group: Group) -> None:
        self._meet("all_to_all_single", input, group)
        assert input.numel() % group.size() == 0, "an equal-split all-to-all needs equal parts"
        parts = [sent.view(group.size(), -1)[group.rank()] for _, sent in self._in_order(group)]
        self._fill(output, parts)

    def all_gather_into_tensor(self, output: torch.Tensor, input: torch.Tensor, *, group: Group) -> None:
        self._meet("all_gather_into_tensor", input, group)
        self._fill(output, [sent for _, sent in self._in_order(group)])

    def gather_along_first_dim(self, input: torch.Tensor, group: Group) -> torch.Tensor:
        """Megatron's gather_from_sequence_parallel_region, for its own preprocess."""
        self._meet("gather_along_first_dim", input, group)
        return torch.cat([sent for _, sent in self._in_order(group)])

    def _meet(self, name: str, sent: torch.Tensor, group: Group) -> None:
        if not self.delivering:
            assert group.rank() not in self.sent
            self.sent[group.rank()] = (name, sent.clone())
            raise Sent
        assert {one for one, _ in self.sent.values()} == {name}, "ranks meet in different collectives"
        assert len({one.shape for _, one in self.sent.values()}) == 1, "ranks send different sizes"
        before = self.sent[group.rank()][1]
        assert torch.equal(before, sent), "a rank sends something else in the second pass"

    def _in_order(self, group: Group) -> list[tuple[str, torch.Tensor]]:
        return [self.sent[rank] for rank in range(group.size())]

    @staticmethod
    def _fill(output: torch.Tensor, parts: list[torch.Tensor]) -> None:
        assert output.is_contiguous()
        output.view(-1).copy_(torch.cat([part.reshape(-1) for part in parts]))


@contextlib.contextmanager
def in_place_of_torch_distributed(collectives: Collectives) -> Iterator[list[dict[str, Any]]]:
    """Put the stand-in where the code under test calls torch.distributed; yields the facts that ranks would compare."""
    facts: list[dict[str, Any]] = []
    with (
        mock.patch.object(exchange, "dist", collectives),
        mock.patch.object(reference, "dist", collectives),
        mock.patch.object(sites, "require_agreement", lambda group, own, *more: facts.append(dict(own))),
    ):
        yield facts


def preprocess_group(
    preprocess: Callable[[Any, torch.Tensor], Any], dispatchers: Sequence[Any], maps: Sequence[torch.Tensor]
) -> list[Any]:
    """Run preprocess on every rank of a group; returns what each call returned.

    One program serves all ranks, as one serves all layers of a process: its state is kept by dispatcher. The first
    pass leaves whatever preprocess had set by then; the second overwrites it, as a next call does.
    """
    collectives = Collectives()
    with in_place_of_torch_distributed(collectives) as facts:
        for dispatcher, routing_map in zip(dispatchers, maps, strict=True):
            with contextlib.suppress(Sent):
                preprocess(dispatcher, routing_map)
        assert all(one == facts[0] for one in facts), "ranks of one layout would be found to disagree"
        collectives.delivering = True
        return [preprocess(dispatcher, routing_map) for dispatcher, routing_map in zip(dispatchers, maps, strict=True)]
