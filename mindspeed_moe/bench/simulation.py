"""A TPxEP group of any size in one process: the collectives' results are prepared and copied to where they belong.

Every implementation gets its result from the same stand-in: on the host one look-up and one copy, on an accelerator
one real collective over a group of one rank, with the same bytes in its result as the simulated group's would have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from mindspeed_moe.bench.megatron import mappings, parallel_state
from mindspeed_moe.bench.network import HOST, Network
from mindspeed_moe.bench.places import replaced
from mindspeed_moe.errors import BenchError
from mindspeed_moe.preprocess import site, sites
from mindspeed_moe.preprocess.layout import ExpertLayout


class SimulatedGroup:
    """As much of a process group as preprocess looks at."""

    def __init__(self, size: int, rank: int) -> None:
        self._size = size
        self._rank = rank

    def size(self) -> int:
        """Return the number of ranks."""
        return self._size

    def rank(self) -> int:
        """Return this rank's index in the group."""
        return self._rank


class PreparedCollectives:
    """The two collectives that exchange counts, for the rank of `layout`.

    counts: [EP, TP, E] int64, every rank's counts in group order. network: how a result gets to its place.
    """

    def __init__(self, counts: NDArray[np.int64], layout: ExpertLayout, network: Network = HOST) -> None:
        own = slice(layout.first_expert, layout.first_expert + layout.num_local_experts)
        self._gathered = _by_dtype(counts, network.device)
        self._received = _by_dtype(counts[:, :, own], network.device)
        self._network = network

    def all_gather_into_tensor(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any = None, async_op: bool = False
    ) -> None:
        """Write every rank's counts into `output_tensor` [EP*TP*E]."""
        self._network.gather(output_tensor, self._gathered[output_tensor.dtype])

    def all_to_all_single(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        output_split_sizes: Any = None,
        input_split_sizes: Any = None,
        group: Any = None,
        async_op: bool = False,
    ) -> None:
        """Write every rank's counts for this rank's experts into `output` [EP*TP*L].

        What is no integers are the tokens of a whole layer, [rows, ...]: the same rows arrive that are sent.
        """
        if output.dtype in self._received:
            self._network.exchange(output, self._received[output.dtype])
        else:
            self._network.exchange_rows(output, input)


class CheckingCollectives(PreparedCollectives):
    """The same, and what an implementation sends must be its own counts; not for timing."""

    def __init__(self, counts: NDArray[np.int64], layout: ExpertLayout, network: Network = HOST) -> None:
        super().__init__(counts, layout, network)
        own = counts[layout.ep_rank, layout.tp_rank]
        self._gives = own.tolist()
        # Every TP peer of an EP rank is sent the counts for that EP rank's experts.
        self._sends = own.reshape(layout.ep_size, 1, -1).repeat(layout.tp_size, axis=1).ravel().tolist()

    def all_gather_into_tensor(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, *rest: Any, **named: Any
    ) -> None:
        """Check what is given, then gather. Raises BenchError."""
        _require_sent("all_gather_into_tensor", input_tensor, self._gives)
        super().all_gather_into_tensor(output_tensor, input_tensor, *rest, **named)

    def all_to_all_single(self, output: torch.Tensor, input: torch.Tensor, *rest: Any, **named: Any) -> None:
        """Check the counts that are sent, then receive. Raises BenchError."""
        if not input.dtype.is_floating_point:
            _require_sent("all_to_all_single", input, self._sends)
        super().all_to_all_single(output, input, *rest, **named)


def _by_dtype(counts: NDArray[np.int64], device: str) -> dict[torch.dtype, torch.Tensor]:
    flat = torch.from_numpy(counts.ravel()).to(device)
    return {torch.int64: flat, torch.int32: flat.int()}


def _require_sent(collective: str, sent: torch.Tensor, expected: list[int]) -> None:
    if sent.tolist() != expected:
        raise BenchError(f"{collective} was given {sent.tolist()}; this rank's counts are {expected}")


@contextlib.contextmanager
def simulated_group(layout: ExpertLayout) -> Iterator[None]:
    """Megatron's parallel state names simulated groups of this layout, seen from its rank."""
    state = parallel_state()
    tp_ep = SimulatedGroup(layout.group_size, layout.group_index)
    ep = tp_ep if layout.tp_size == 1 else SimulatedGroup(layout.ep_size, layout.ep_rank)
    with replaced(
        (
            (state, "_EXPERT_MODEL_PARALLEL_GROUP", ep),
            (state, "_EXPERT_TENSOR_PARALLEL_GROUP", SimulatedGroup(layout.tp_size, layout.tp_rank)),
            (state, "_MPU_EXPERT_MODEL_PARALLEL_RANK", layout.ep_rank),
            (state, "_MPU_EXPERT_MODEL_PARALLEL_WORLD_SIZE", layout.ep_size),
            (state, "_MPU_EXPERT_TENSOR_PARALLEL_RANK", layout.tp_rank),
            (state, "_MPU_EXPERT_TENSOR_PARALLEL_WORLD_SIZE", layout.tp_size),
            (state, "_EXPERT_TENSOR_AND_MODEL_PARALLEL_GROUP", tp_ep),
            (sites, "require_agreement", _nobody_to_ask),
            (sites, "refuse", _nobody_to_ask),
            (site, "refuse", _nobody_to_ask),
        )
    ):
        yield


@contextlib.contextmanager
def simulated_collectives(collectives: PreparedCollectives) -> Iterator[None]:
    """torch's two collectives, under every name by which they are called, are the prepared ones."""
    gather = collectives.all_gather_into_tensor
    with replaced(
        (
            (dist, "all_gather_into_tensor", gather),
            (dist, "all_to_all_single", collectives.all_to_all_single),
            (mappings(), "dist_all_gather_func", gather),
        )
    ):
        yield


def _nobody_to_ask(group: Any, *given: Any) -> None:
    """Before a layer's first exchange: there is nobody to ask."""
