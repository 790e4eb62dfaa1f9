"""A whole bench: from shapes to a report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from mindspeed_moe.bench.accelerated import Bench, measure_accelerated
from mindspeed_moe.bench.contestants import PACKED, assemble, packed_config
from mindspeed_moe.bench.devices import CPU, DEVICES, Clockwork
from mindspeed_moe.bench.layer import LayerBench, measure_layer
from mindspeed_moe.bench.ledger import count_calls, recorder
from mindspeed_moe.bench.load import Busy, device_sleep
from mindspeed_moe.bench.machine import describe_machine, is_simulated
from mindspeed_moe.bench.measure import measure_simulated
from mindspeed_moe.bench.ranks import measure_on_ranks
from mindspeed_moe.bench.report import Measured, Report
from mindspeed_moe.bench.shapes import Shape
from mindspeed_moe.bench.world import one_process_world
from mindspeed_moe.config import load_config
from mindspeed_moe.dispatch_table import CHOICES, Decision
from mindspeed_moe.environment import Environment
from mindspeed_moe.errors import BenchError
from mindspeed_moe.planning import decide

Watch = Callable[[Sequence[Shape]], Iterable[Shape]]


def run_bench(
    environment: Environment,
    shapes: Sequence[Shape],
    *,
    left_out: Sequence[str] = (),
    device: str = CPU,
    ranks: int | None = None,
    verify: bool = False,
    rounds: int,
    seed: int,
    threads: int,
    latency_us: float = 0,
    busy_us: float = 0,
    choices: Mapping[str, str] | None = None,
    hidden: Sequence[int] = (),
    ledger: str | None = None,
    watch: Watch = iter,
) -> Report:
    """Measure every shape and report.

    ranks: number of real gloo processes; None: simulated groups in this process. verify: with ranks, also `packed`
    under verification. threads: of torch, a process.
    latency_us, busy_us: on an accelerator, the delay after every collective, and the work queued before a call.
    choices: of `packed`, as in the configuration's `preprocess`.
    hidden: hidden sizes of whole layers, which are then measured instead of preprocess alone.
    ledger: module:function of a simulated accelerator's recorder; its counts are then reported, and no times.
    watch: passes on the shapes one by one, for a progress bar. Raises one of the package's errors when Megatron is
    missing or patched, or the implementations disagree; the process is then as it was before, as it is afterwards.
    """
    choices = dict(choices or {})
    if hidden:
        # Experts of a whole layer are Megatron's SequentialMLP, which reads its counts on the host.
        choices.setdefault("tokens_per_expert", "host")
    decide(load_config({"device": device}), environment)  # says what is missing before anything is started
    _, _, decisions = decide(packed_config(device, choices), environment)
    machine = {**describe_machine(environment, threads, device), PACKED: _told(decisions)}
    if ranks is not None:
        return Report(machine, measure_on_ranks(shapes, ranks, rounds, seed, threads, verify=verify), left_out)
    if is_simulated(environment) and ledger is None:
        raise BenchError("times of a simulated device say nothing: use --device npu --simulated, which counts")
    place = DEVICES[device]
    place.enter()
    clockwork = Clockwork(place.streams()) if place.streams is not None else None
    with _torch_threads(threads), assemble(environment, device, choices) as team, one_process_world(place):
        sleep = device_sleep(clockwork, latency_us) if clockwork is not None else None
        measure: Callable[[Shape], Sequence[Measured]]
        if hidden:
            layers = LayerBench(team, clockwork, latency_us, sleep)
            measure = lambda shape: [measure_layer(layers, shape, size, rounds, seed) for size in hidden]  # noqa: E731
        elif clockwork is not None and ledger is not None:
            record = recorder(ledger)
            measure = lambda shape: [count_calls(team, clockwork, record, shape, seed)]  # noqa: E731
        elif clockwork is None:
            measure = lambda shape: [measure_simulated(team, shape, rounds, seed)]  # noqa: E731
        else:
            bench = Bench(team, clockwork, Busy(clockwork, device, busy_us), busy_us, latency_us, sleep)
            measure = lambda shape: [measure_accelerated(bench, shape, rounds, seed)]  # noqa: E731
        return Report(machine, [one for shape in watch(shapes) for one in measure(shape)], left_out)


def _told(decisions: Iterable[Decision]) -> str:
    """Return which choices `packed` is measured with."""
    decision = next(one for one in decisions if one.implementation == PACKED)
    return ", ".join(f"{name} {getattr(decision, name)}" for name in CHOICES)


@contextlib.contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
