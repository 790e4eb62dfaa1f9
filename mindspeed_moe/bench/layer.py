"""The whole MoE layer with each implementation: what preprocess is worth where tokens are really routed and moved.

Router, permutations, experts and combination are Megatron's own, with one set of weights; between two measurements
only the dispatcher changes. The group is simulated: what arrives are copies of this rank's own tokens, as many as
the other ranks' counts say, so that every kernel has its true size.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mindspeed_moe.bench.contestants import Team, layer_config
from mindspeed_moe.bench.devices import Clockwork
from mindspeed_moe.bench.megatron import layer_specs, moe_layer
from mindspeed_moe.bench.network import HOST, Network, OneRankNetwork
from mindspeed_moe.bench.shapes import Shape
from mindspeed_moe.bench.simulation import (
    CheckingCollectives,
    PreparedCollectives,
    simulated_collectives,
    simulated_group,
)
from mindspeed_moe.bench.timing import Spread, spread, turns
from mindspeed_moe.bench.traffic import make_counts
from mindspeed_moe.bench.waits import Waiting
from mindspeed_moe.dispatch_table import STOCK
from mindspeed_moe.errors import BenchError
from mindspeed_moe.preprocess.layout import ExpertLayout

FORWARD, BOTH = "forward", "forward and backward"
_WARM_UP = 3  # rounds that are not counted
_IN_A_ROW = 4  # layers between two synchronisations, on an accelerator
_STD = 0.02  # of the weights


@dataclass(frozen=True)
class LayerTime:
    """Durations of one layer, in microseconds.

    elapsed: until the device is done. host: until the host is free to launch, without waits. wait: for the device.
    """

    elapsed: Spread
    host: Spread
    wait: Spread


@dataclass(frozen=True)
class LayerResult:
    """One shape and hidden size. times: FORWARD or BOTH -> implementation.

    in_a_row: layers that run between two synchronisations; durations are divided by it.
    """

    shape: Shape
    device: str
    hidden: int
    ffn: int
    dtype: str
    in_a_row: int
    rounds: int
    seed: int
    latency_us: float
    times: Mapping[str, Mapping[str, LayerTime]]

    def ratio(self, implementation: str, passes: str) -> float:
        """Return how many times as fast as with stock a layer is with an implementation, at the median."""
        times = self.times[passes]
        return times[STOCK].elapsed.p50 / times[implementation].elapsed.p50

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; durations in microseconds."""
        return {
            "whole_layer": True,
            **{name: value for name, value in asdict(self).items() if name != "times"},
            "times": {
                passes: {name: {**asdict(one), "ratio_to_stock": self.ratio(name, passes)} for name, one in by.items()}
                for passes, by in self.times.items()
            },
        }


@dataclass(frozen=True)
class LayerBench:
    """What all layers are measured with. clockwork: None on the host. latency_us, sleep: of the simulated network."""

    team: Team
    clockwork: Clockwork | None
    latency_us: float = 0.0
    sleep: Callable[[], object] | None = None

    def network(self) -> Network:
        """Return how the results of collectives arrive."""
        return HOST if self.clockwork is None else OneRankNetwork(self.team.device, self.sleep)

    def synchronize(self) -> None:
        """Wait until the device has nothing left to do."""
        if self.clockwork is not None:
            self.clockwork.synchronize()


def measure_layer(bench: LayerBench, shape: Shape, hidden: int, rounds: int, seed: int) -> LayerResult:
    """Measure a layer as its group's last rank sees it; needs `one_process_world` of the device.

    Raises BenchError for TP > 1, and when outputs or gradients differ in any bit from stock's.
    """
    if shape.tp > 1:
        raise BenchError(f"--whole-layer: the tokens of other TP ranks are not simulated ({shape}); allowed: --tp 1")
    team, layout, ffn = bench.team, shape.layout(shape.ranks - 1), max(hidden // 2, 1)
    dtype = torch.float32 if bench.clockwork is None else torch.bfloat16
    with simulated_group(layout):
        layer = _layer(team.device, shape, hidden, ffn, dtype, seed)
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randn(shape.tokens, 1, hidden, generator=generator).to(team.device, dtype).requires_grad_()
        dispatchers = {name: team.dispatcher(name, shape, layout) for name in team.classes}
        counts = _counts(shape, layout, layer, tokens, seed)
        with simulated_collectives(CheckingCollectives(counts, layout, bench.network())):
            _require_same(layer, dispatchers, tokens)
        with simulated_collectives(PreparedCollectives(counts, layout, bench.network())):
            in_a_row = 1 if bench.clockwork is None else _IN_A_ROW
            times = {
                passes: _times(bench, layer, dispatchers, run, in_a_row, rounds, seed)
                for passes, run in _passes(layer, tokens).items()
            }
    return LayerResult(
        shape=shape,
        device=team.device,
        hidden=hidden,
        ffn=ffn,
        dtype=str(dtype).removeprefix("torch."),
        in_a_row=in_a_row,
        rounds=rounds,
        seed=seed,
        latency_us=bench.latency_us,
        times=times,
    )


def _layer(device: str, shape: Shape, hidden: int, ffn: int, dtype: torch.dtype, seed: int) -> Any:
    config = layer_config(
        shape,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        moe_ffn_hidden_size=ffn,
        params_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        perform_initialization=False,
        moe_router_load_balancing_type="none",
        gradient_accumulation_fusion=False,
    )
    mlp = layer_specs().get_gpt_layer_local_spec(num_experts=shape.experts, moe_grouped_gemm=False).submodules.mlp
    # From 0.18 on the specification is the layer's constructor itself, with what it is made of.
    built = mlp(config) if isinstance(mlp, functools.partial) else moe_layer().MoELayer(config, mlp.submodules)
    layer = built.to(device)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, _STD, generator=generator))
    return layer


def _counts(shape: Shape, layout: ExpertLayout, layer: Any, tokens: torch.Tensor, seed: int) -> Any:
    """Return every rank's counts, this rank's as its router decides."""
    with torch.no_grad():
        _, routing_map = layer.router(tokens)
    return make_counts(shape, layout.group_index, routing_map.cpu(), np.random.default_rng(seed))


def _passes(layer: Any, tokens: torch.Tensor) -> dict[str, Callable[[], object]]:
    gradient = torch.ones_like(tokens)

    def forward() -> None:
        with torch.no_grad():
            layer(tokens)

    def both() -> None:
        tokens.grad = None
        layer(tokens)[0].backward(gradient)

    return {FORWARD: forward, BOTH: both}


def _require_same(layer: Any, dispatchers: Mapping[str, Any], tokens: torch.Tensor) -> None:
    """Compare output and gradients with stock's, bit by bit, with algorithms that give the same twice."""
    found: dict[str, list[torch.Tensor]] = {}
    with _deterministic():
        for name, dispatcher in dispatchers.items():
            layer.token_dispatcher = dispatcher
            layer.zero_grad()
            tokens.grad = None
            output = layer(tokens)[0]
            output.backward(torch.ones_like(output))
            gradients = (tokens.grad, *(one.grad for one in layer.parameters()))
            found[name] = [output.detach(), *(one.clone() for one in gradients if one is not None)]
    layer.zero_grad()
    for name, tensors in found.items():
        same = [torch.equal(one, other) for one, other in zip(tensors, found[STOCK], strict=True)]
        if not all(same):
            raise BenchError(f"{name}: the layer differs from stock's in {same.count(False)} of {len(same)} tensors")


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)


def _times(
    bench: LayerBench,
    layer: Any,
    dispatchers: Mapping[str, Any],
    run: Callable[[], object],
    in_a_row: int,
    rounds: int,
    seed: int,
) -> dict[str, LayerTime]:
    """Run some layers in a row with every implementation in turn."""
    waiting = Waiting()
    watching = contextlib.nullcontext() if bench.clockwork is None else waiting.watching(bench.clockwork.streams)
    taken: dict[str, list[tuple[int, int, int]]] = {name: [] for name in dispatchers}
    with watching, contextlib.closing(turns(list(dispatchers), rounds, seed, _WARM_UP)) as order:
        for name, counts in order:
            layer.token_dispatcher = dispatchers[name]
            bench.synchronize()
            waiting.take()
            start = time.perf_counter_ns()
            for _ in range(in_a_row):
                run()
            launched = time.perf_counter_ns() - start
            bench.synchronize()
            elapsed = time.perf_counter_ns() - start
            waited, _ = waiting.take()
            if counts:
                taken[name].append((elapsed // in_a_row, (launched - waited) // in_a_row, waited // in_a_row))
    return {name: LayerTime(*(spread(column) for column in zip(*rows, strict=True))) for name, rows in taken.items()}
