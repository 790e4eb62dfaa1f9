"""Process groups of a run: Megatron's end with their layout, those for counts alone are made once for their ranks.

Each communicator costs memory once it has communicated, on Ascend 200 MB twice. Groups for counts are never made
again: torch names a group after its ranks, and one of the same name as one that has ended meets its leftovers in the
store, and hangs.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch.distributed as dist

from mindspeed_moe.bench.megatron import parallel_state
from mindspeed_moe.bench.places import replaced

_GLOO = "create_gloo_process_groups"


@contextlib.contextmanager
def model_parallel_groups(ep: int, tp: int, end: Callable[[], object]) -> Iterator[tuple[int, int]]:
    """Make Megatron's groups; yields this rank's group, by its first rank, and its index there.

    end: called before the groups end; nothing may be under way on any rank when it returns.
    """
    state, before = parallel_state(), _groups()
    takes = inspect.signature(state.initialize_model_parallel).parameters
    state.initialize_model_parallel(
        tensor_model_parallel_size=tp,
        expert_model_parallel_size=ep,
        expert_tensor_parallel_size=tp,
        **({_GLOO: False} if _GLOO in takes else {}),  # nothing here needs them beside the device's
    )
    made = [group for group in _groups() if group not in before]
    members = dist.get_process_group_ranks(state.get_expert_tensor_and_model_parallel_group())
    index = state.get_expert_model_parallel_rank() * tp + state.get_expert_tensor_parallel_rank()
    yield members[0], index
    end()
    state.destroy_model_parallel()
    for group in made:
        if group in _groups():  # Megatron itself ends none, or only some
            dist.destroy_process_group(group)


class KeptGroups:
    """Groups of their own for counts, by ranks."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, ...], Any] = {}

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """Until the block ends, a group that was made before is given again to whoever asks for one."""
        new_group = dist.new_group

        def kept(ranks: Sequence[int], **options: Any) -> Any:
            key = tuple(ranks)
            if key not in self._made:
                self._made[key] = new_group(list(ranks), **options)
            return self._made[key]

        with replaced([(dist, "new_group", kept)]):
            yield


def _groups() -> list[Any]:
    return list(dist.distributed_c10d._world.pg_map)
