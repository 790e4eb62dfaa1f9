"""Which process group the counts travel on, and what a communicator of its own costs.

On Ascend every communicator takes HCCL_BUFFSIZE (200 MB by default) twice on each rank when it first
communicates. With TP = 1 the EP group holds the ranks of the TPxEP group, so that one of the two can be saved.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from mindspeed_moe.errors import GroupError, UnsupportedError
from mindspeed_moe.preprocess.agreement import launch_store, patience
from mindspeed_moe.preprocess.layout import ExpertLayout

# Makes the options of a group that carries nothing but counts.
SmallBuffer = Callable[[], Any]


class Groups:
    """Chooses the group for a dispatcher's exchange.

    wanted: auto, tp_ep, ep or dedicated.
    small_buffer: makes the options of a dedicated group; None where the backend has no buffer size of its own.
    """

    def __init__(self, wanted: str, small_buffer: SmallBuffer | None = None) -> None:
        self._wanted = wanted
        self._small_buffer = small_buffer
        self._dedicated: dict[tuple[int, ...], _Made] = {}

    def choose(self, full: Any, ep: Any, layout: ExpertLayout, *, overlapped: bool) -> Any:
        """Return the group; collective with `dedicated`, on the ranks of the full group.

        full: all ranks that exchange counts, TPxEP in general. ep: the group that tokens travel on.
        overlapped: whether another micro-batch's tokens may be under way on it.
        Raises GroupError when the setting does not fit the layout.
        """
        if self._wanted == "tp_ep":
            return full
        if self._wanted == "dedicated":
            return self._own_group(full)
        same = layout.tp_size == 1 and (ep is full or _ranks(ep) == _ranks(full))
        if self._wanted == "ep":
            if not same:
                raise GroupError(
                    f"preprocess.exchange_group: 'ep': the EP group {_ranks(ep)} does not hold the ranks of the TPxEP "
                    f"group {_ranks(full)} (TP = {layout.tp_size}); allowed here: auto, tp_ep"
                )
            return ep
        return ep if same and not overlapped else full

    def _own_group(self, full: Any) -> Any:
        if self._small_buffer is None:
            raise UnsupportedError("preprocess.exchange_group: 'dedicated' needs HCCL; allowed here: auto, ep, tp_ep")
        ranks = _ranks(full)
        made = self._dedicated.get(ranks)
        if made is None or not made.alive():
            # Members get here in one order, that of their dispatchers' first exchanges.
            how: dict[str, Any] = {"pg_options": self._small_buffer()}
            waits = patience(full)
            if waits is not None:  # else torch's default, whatever the launch asks for
                how["timeout"] = waits
            if len(ranks) == dist.get_world_size():
                group = dist.new_group(list(ranks), **how)
            else:
                # Members only: torch then names the group by its ranks and the number of groups. Made again, it finds
                # under its old name the key by which its ranks met before, and waits for a communicator that is gone.
                # So not by the function of a framework that makes groups again behind a wrapper, but by torch's own.
                group = dist.distributed_c10d.new_group(list(ranks), use_local_synchronization=True, **how)
            made = self._dedicated[ranks] = _Made(group)
        return made.group


class _Made:
    """A group that was made here, and how to tell whether it is still there.

    torch lists the groups that it has made. A wrapper around one, of a framework that gives communicators back and
    makes them again behind it, is not listed; it lives as long as the group of all ranks.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self._listed = _listed(group)
        store = launch_store()
        self._launch = (lambda: None) if store is None else weakref.ref(store)

    def alive(self) -> bool:
        return self._launch() is launch_store() and _listed(self.group) is self._listed


def _ranks(group: dist.ProcessGroup) -> tuple[int, ...]:
    return tuple(dist.get_process_group_ranks(group))


def _listed(group: dist.ProcessGroup) -> bool:
    return group in dist.distributed_c10d._world.pg_map
