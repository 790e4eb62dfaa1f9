"""The job in which a framework destroys all process groups, to free memory, and makes them again behind wrappers."""

from __future__ import annotations

import inspect
import time
from typing import Any

import torch
import torch.distributed as dist

import mindspeed_moe
from distributed.layers import HIDDEN, Layer, build_layer

LATE_S = 2.0  # of the first rank of a group: what the others find of the group before, they find by then


class Wrapper(dist.ProcessGroup):
    """What `new_group` gives in the place of a process group, which is made again behind it."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__(dist.get_rank(group), dist.get_world_size(group))
        self.group = group

    def rank(self) -> int:
        return self.group.rank()

    def size(self) -> int:
        return self.group.size()


class Framework:
    """Wraps torch.distributed for good, as such frameworks do."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, Any, Any]] = []  # in order, those of other ranks too: torch counts them
        self._new_group = dist.new_group
        takes_group = [name for name, one in vars(dist).items() if inspect.isfunction(one) and _takes_group(one)]
        for name in takes_group:
            setattr(dist, name, self._unwrapping(getattr(dist, name)))
        dist.new_group = self.new_group

    def new_group(self, *arguments: Any, **options: Any) -> Any:
        group = self._new_group(*arguments, **options)
        if isinstance(group, dist.ProcessGroup):
            group = Wrapper(group)
        self.made.append((group, arguments, options))
        return group

    def make_again(self) -> None:
        for one, _, _ in self.made:
            if isinstance(one, Wrapper):
                dist.destroy_process_group(one.group)
        for one, arguments, options in self.made:
            group = self._new_group(*arguments, **options)
            if isinstance(one, Wrapper):
                one.group = group

    def _unwrapping(self, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            given = [one.group if isinstance(one, Wrapper) else one for one in arguments]
            named = {key: one.group if isinstance(one, Wrapper) else one for key, one in options.items()}
            return function(*given, **named)

        return call


def _takes_group(function: Any) -> bool:
    return "group" in inspect.signature(function).parameters


def remade(rank: int, device: str, ep: int, times: int) -> dict[str, Any]:
    """Call two layers before and after their groups were made again. wrong: turns that differ from stock's."""
    layers = _layers(device, ep, {"dispatchers": {"alltoall": "stock"}})
    expected = _turn(layers, device)
    mindspeed_moe.disable()
    framework = Framework()  # from here on: stock has bound functions of torch.distributed, which would not unwrap
    config = {"dispatchers": {"alltoall": "packed"}, "preprocess": {"exchange_group": "dedicated"}}
    layers = _layers(device, ep, config)
    before = len(dist.distributed_c10d._world.pg_map)
    turns = [_turn(layers, device)]
    made = len(dist.distributed_c10d._world.pg_map) - before
    for _ in range(times):
        framework.make_again()
        if rank % ep == 0:
            time.sleep(LATE_S)
        turns.append(_turn(layers, device))
    mindspeed_moe.disable()
    return {"wrong": [turn for turn, one in enumerate(turns) if not torch.equal(one, expected)], "made": made}


def _layers(device: str, ep: int, config: dict[str, Any]) -> list[Any]:
    from megatron.core import parallel_state

    mindspeed_moe.enable({"device": device, **config})
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(expert_model_parallel_size=ep)
    return [build_layer(Layer(ep=ep, tp=1, experts=2 * ep, topk=2)).to(device) for _ in range(2)]


def _turn(layers: list[Any], device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(dist.get_rank())
    hidden = torch.randn(8, 1, HIDDEN, generator=generator).to(device)
    for layer in layers:
        hidden = hidden + layer(hidden)[0]
    return hidden.detach().cpu()


JOBS = {"remade": remade}
