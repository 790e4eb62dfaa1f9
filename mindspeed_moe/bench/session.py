"""A whole bench: from shapes to a report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from mindspeed_moe.bench.contestants import DEVICE, assemble
from mindspeed_moe.bench.machine import describe_machine
from mindspeed_moe.bench.measure import measure_simulated
from mindspeed_moe.bench.ranks import measure_on_ranks
from mindspeed_moe.bench.report import Report
from mindspeed_moe.bench.shapes import Shape
from mindspeed_moe.bench.simulation import one_process_world
from mindspeed_moe.config import load_config
from mindspeed_moe.environment import Environment
from mindspeed_moe.planning import decide

Watch = Callable[[Sequence[Shape]], Iterable[Shape]]


def run_bench(
    environment: Environment,
    shapes: Sequence[Shape],
    *,
    left_out: Sequence[str] = (),
    ranks: int | None = None,
    rounds: int,
    seed: int,
    threads: int,
    watch: Watch = iter,
) -> Report:
    """Measure every shape and report.

    ranks: number of real gloo processes; None: simulated groups in this process. threads: of torch, a process.
    watch: passes on the shapes one by one, for a progress bar. Raises one of the package's errors when Megatron is
    missing or patched, or the implementations disagree; the process is then as it was before, as it is afterwards.
    """
    decide(load_config({"device": DEVICE}), environment)  # says what is missing before anything is started
    machine = describe_machine(environment, threads)
    if ranks is not None:
        results = measure_on_ranks(shapes, ranks, rounds, seed, threads)
    else:
        with _torch_threads(threads), assemble(environment) as team, one_process_world():
            results = [measure_simulated(team, shape, rounds, seed) for shape in watch(shapes)]
    return Report(machine, results, left_out)


@contextlib.contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
