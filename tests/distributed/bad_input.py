"""Jobs that give a real dispatcher on a real group something wrong, and tell how it ended on each rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from distributed.launcher import leave
from distributed.layers import PLUGIN, STOCK, Layer, build_layer, enabled, routing_map_of

EP, TP, EXPERTS = 2, 2, 8
LAYER = Layer(EP, TP, EXPERTS, 2)
PATIENCE = 10.0  # seconds for a rank that never comes: more than a busy machine keeps another one back


@dataclass(frozen=True)
class Outcome:
    """How one call ended on one rank. error: the exception's name, empty when there was none."""

    error: str
    message: str
    seconds: float


def outcome_of(call: Callable[[], Any]) -> Outcome:
    """Run `call`; an exception is a result here."""
    began = time.monotonic()
    try:
        call()
    except Exception as error:
        return Outcome(type(error).__name__, str(error), time.monotonic() - began)
    return Outcome("", "", time.monotonic() - began)


def together(call: Callable[[], Any], patience: float | None = None) -> Outcome:
    """Like `outcome_of`; all ranks begin together, and wait for each other for so many seconds from here on."""
    dist.barrier()
    if patience is not None:
        for group in list(dist.distributed_c10d._world.pg_map):
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=patience), group)
    return outcome_of(call)


def replace_groups(dispatcher: Any, **groups: Any) -> None:
    """Give a dispatcher other process groups; in 0.12 they are properties of the class, later attributes."""
    dispatcher.__class__ = type("Replaced", (type(dispatcher),), groups)
    for name in groups:
        dispatcher.__dict__.pop(name, None)


# --------------------------------------------------------------------------------------------------- routing maps

BAD_MAPS: dict[str, Callable[[], torch.Tensor]] = {
    "bytes": lambda: torch.zeros(6, EXPERTS, dtype=torch.uint8),
    "floats": lambda: torch.zeros(6, EXPERTS),
    "one dimension": lambda: torch.zeros(EXPERTS, dtype=torch.bool),
    "three dimensions": lambda: torch.zeros(3, 2, EXPERTS, dtype=torch.bool),
    "too wide": lambda: torch.zeros(6, EXPERTS + 1, dtype=torch.bool),
    "too narrow": lambda: torch.zeros(6, EXPERTS - 1, dtype=torch.bool),
    "transposed": lambda: torch.zeros(EXPERTS, 6, dtype=torch.bool),
    "on another device": lambda: torch.zeros(6, EXPERTS, dtype=torch.bool, device="meta"),
}


def give_bad_maps(config: Mapping[str, Any], padded: bool) -> dict[str, Outcome]:
    """Every bad map to one dispatcher; then a good one, to show that nothing was broken."""
    with enabled(config):
        dispatcher = build_layer(Layer(EP, TP, EXPERTS, 2, "pad" if padded else "dropless")).token_dispatcher
        found = {name: outcome_of(lambda make=make: dispatcher.preprocess(make())) for name, make in BAD_MAPS.items()}
        assert dispatcher.input_splits is None
        assert not hasattr(dispatcher, "num_out_tokens")
        found["good"] = outcome_of(lambda: dispatcher.preprocess(routing_map_of(LAYER)))
    return found


def give_strided_maps() -> dict[str, list[Any]]:
    """What preprocess leaves for one map in three memory layouts, by implementation; stock is given the plain one."""

    def results(config: Mapping[str, Any], routing_map: torch.Tensor) -> list[Any]:
        with enabled(config):
            dispatcher = build_layer(LAYER).token_dispatcher
            counts = dispatcher.preprocess(routing_map)
            for point in ("before_permutation_1", "before_ep_alltoall", "before_permutation_2", "before_finish"):
                counts = dispatcher._maybe_dtoh_and_synchronize(point, counts)
            names = ("input_splits", "output_splits", "output_splits_tp", "num_global_tokens_per_local_expert")
            return [counts.tolist(), *(getattr(dispatcher, name).tolist() for name in names)]

    plain = routing_map_of(LAYER)
    columns = plain.t().contiguous().t()
    every_second = torch.zeros(2 * len(plain), 2 * EXPERTS, dtype=torch.bool)[::2, ::2].copy_(plain)
    assert not columns.is_contiguous()
    assert not every_second.is_contiguous()
    found = {"stock": results(STOCK, plain)}
    for name, config in PLUGIN.items():
        found[f"{name}, by columns"] = results(config, columns)
        found[f"{name}, every second"] = results(config, every_second)
    return found


def one_rank_has_a_bad_map(rank: int, config: Mapping[str, Any]) -> Outcome:
    """The others are in their first exchange already, or come to it."""
    with enabled(config):
        dispatcher = build_layer(LAYER).token_dispatcher
        routing_map = routing_map_of(LAYER)
        if dist.get_rank() == rank:
            routing_map = routing_map.to(torch.uint8)
        return together(lambda: dispatcher.preprocess(routing_map))


def a_later_call_has_a_bad_map(rank: int, config: Mapping[str, Any]) -> tuple[Outcome, Outcome]:
    """The ranks have agreed and exchanged once. A rank that gets an error ends, as its process would."""
    with enabled(config):
        dispatcher = build_layer(LAYER).token_dispatcher
        routing_map = routing_map_of(LAYER)
        first = together(lambda: dispatcher.preprocess(routing_map))
        if dist.get_rank() == rank:
            routing_map = routing_map.to(torch.uint8)
        second = outcome_of(lambda: dispatcher.preprocess(routing_map))
    leave()
    return first, second


# --------------------------------------------------------------------------------------------------------- groups


def group_of_wrong_size(config: Mapping[str, Any]) -> Outcome:
    """The EP group where the TPxEP group belongs."""
    with enabled(config):
        dispatcher = build_layer(LAYER).token_dispatcher
        replace_groups(dispatcher, tp_ep_group=dispatcher.ep_group)
        return together(lambda: dispatcher.preprocess(routing_map_of(LAYER)))


def group_in_wrong_order(config: Mapping[str, Any]) -> Outcome:
    """Coordinates as if the group were TP-major: rank 1 is (1, 0) and rank 2 is (0, 1)."""
    with enabled(config):
        dispatcher = build_layer(LAYER).token_dispatcher
        ep_rank, tp_rank = dist.get_rank() % EP, dist.get_rank() // EP
        local = EXPERTS // EP
        dispatcher.local_expert_indices = list(range(ep_rank * local, (ep_rank + 1) * local))
        replace_groups(dispatcher, tp_rank=tp_rank)
        return together(lambda: dispatcher.preprocess(routing_map_of(LAYER)))


# --------------------------------------------------------------------------------------------------- disagreement


def disagree_on_experts(rank: int, config: Mapping[str, Any]) -> Outcome:
    """One rank has twice as many experts, and so twice as many local ones."""
    experts = EXPERTS * 2 if dist.get_rank() == rank else EXPERTS
    layer = Layer(EP, TP, experts, 2)
    with enabled(config):
        dispatcher = build_layer(layer).token_dispatcher
        return together(lambda: dispatcher.preprocess(routing_map_of(layer)))


def disagree_on_local_experts(rank: int, config: Mapping[str, Any]) -> Outcome:
    """One rank believes that it owns half as many experts as the others do."""
    with enabled(config):
        dispatcher = build_layer(LAYER).token_dispatcher
        if dist.get_rank() == rank:
            dispatcher.local_expert_indices = dispatcher.local_expert_indices[: EXPERTS // EP // 2]
            dispatcher.num_local_experts = EXPERTS // EP // 2
        return together(lambda: dispatcher.preprocess(routing_map_of(LAYER)))


def disagree_on_configuration(
    rank: int,
    config: Mapping[str, Any],
    other: Mapping[str, Any],
    *,
    of_a_launch: bool = False,
    patience: float | None = None,
) -> Outcome:
    """One rank runs another configuration. Ranks that got an error end, as their processes would.

    of_a_launch: as in processes that have enabled nothing before. patience: as in `together`.
    """
    from mindspeed_moe.preprocess.agreement import LaunchAgreement

    LaunchAgreement._made = not of_a_launch
    with enabled(other if dist.get_rank() == rank else config):
        dispatcher = build_layer(LAYER).token_dispatcher
        found = together(lambda: dispatcher.preprocess(routing_map_of(LAYER)), patience)
    leave()
    return found


def disagree_between_groups(layer: Layer, ranks: tuple[int, ...], config: Any, other: Any) -> Outcome:
    """Some ranks, whole TPxEP groups, run another configuration; `together` waits for all, as Megatron does too."""
    from mindspeed_moe.preprocess.agreement import LaunchAgreement

    LaunchAgreement._made = False  # as in a process that has enabled nothing before
    with enabled(other if dist.get_rank() in ranks else config):
        dispatcher = build_layer(layer).token_dispatcher
        return together(lambda: dispatcher.preprocess(routing_map_of(layer)))


def disagree_on_version(rank: int, config: Mapping[str, Any]) -> Outcome:
    """One rank has another release of the plugin installed."""
    from unittest import mock

    from mindspeed_moe import planning

    version = "9.9.9" if dist.get_rank() == rank else "1.0.0"
    with mock.patch.object(planning, "plugin_version", return_value=version), enabled(config):
        dispatcher = build_layer(LAYER).token_dispatcher
        return together(lambda: dispatcher.preprocess(routing_map_of(LAYER)))


def one_rank_never_comes(rank: int, config: Mapping[str, Any]) -> Outcome:
    """One rank is somewhere else."""
    with enabled(config):
        dispatcher = build_layer(LAYER).token_dispatcher
        if dist.get_rank() == rank:
            return together(lambda: None, PATIENCE)
        return together(lambda: dispatcher.preprocess(routing_map_of(LAYER)), PATIENCE)


def one_rank_comes_late(rank: int, config: Mapping[str, Any]) -> Outcome:
    """The store is not as patient as the group: who makes a store may leave it at torch's default."""
    with enabled(config):
        dispatcher = build_layer(LAYER).token_dispatcher
        dist.barrier()
        store = dist.distributed_c10d._get_default_store()
        store.set_timeout(timedelta(seconds=0.5))
        if dist.get_rank() == rank:
            time.sleep(3.0)
        return outcome_of(lambda: dispatcher.preprocess(routing_map_of(LAYER)))


def a_new_layer_in_new_groups(config: Mapping[str, Any]) -> Outcome:
    """A good call; the world before this one ended in a comparison that not all ranks took part in."""
    with enabled(config):
        dispatcher = build_layer(LAYER).token_dispatcher
        return together(lambda: dispatcher.preprocess(routing_map_of(LAYER)))
