"""The same comparison with real gloo processes: spawned here, rendezvous through a file, reported by rank 0."""

from __future__ import annotations

import pickle
import sys
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessException, spawn

from mindspeed_moe.bench.contestants import assemble
from mindspeed_moe.bench.measure import Result, measure_real
from mindspeed_moe.bench.megatron import parallel_state
from mindspeed_moe.bench.shapes import Shape
from mindspeed_moe.environment import probe_environment
from mindspeed_moe.errors import BenchError, MindSpeedMoEError
from mindspeed_moe.files import read_text, read_whole, write_whole
from mindspeed_moe.output import put_aside_in, started_aside

_TIMEOUT = timedelta(minutes=5)  # of one collective: a dead peer ends the bench, it does not hang
_RESULTS, _PROBLEM, _ASIDE = "results", "problem-{rank}", "aside"


def measure_on_ranks(
    shapes: Sequence[Shape], ranks: int, rounds: int, seed: int, threads: int, *, verify: bool = False
) -> list[Result]:
    """Measure shapes, each of EP * TP = `ranks`, in as many fresh processes; returns rank 0's results.

    verify: also `packed` under verification. Raises BenchError with the message of a rank that refuses or disagrees,
    and the traceback of one that crashes. Either ends the other ranks, and so does an interruption here.
    """
    with tempfile.TemporaryDirectory(prefix="mindspeed-moe-bench-") as folder:
        arguments = (ranks, folder, tuple(shapes), rounds, seed, threads, verify)
        try:
            with started_aside(f"{folder}/{_ASIDE}"):
                context = spawn(_rank, arguments, nprocs=ranks, join=False)  # type: ignore[no-untyped-call]
            _wait(context)
        except ProcessException:
            problems = sorted(Path(folder).glob(_PROBLEM.format(rank="*")))
            if not problems:
                print(put_aside_in(f"{folder}/{_ASIDE}"), file=sys.stderr)
                raise
            raise BenchError(read_text(problems[0])) from None
        results: list[Result] = pickle.loads(read_whole(Path(folder) / _RESULTS))
    return results


def _wait(context: Any) -> None:
    try:
        while not context.join():
            pass
    finally:
        for process in context.processes:
            if process.is_alive():
                process.terminate()
            process.join()


def _rank(
    rank: int,
    ranks: int,
    folder: str,
    shapes: tuple[Shape, ...],
    rounds: int,
    seed: int,
    threads: int,
    verify: bool,
) -> None:
    torch.set_num_threads(threads)
    try:
        with assemble(probe_environment(), verify=verify) as team:
            dist.init_process_group(
                "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks, timeout=_TIMEOUT
            )
            results = []
            for shape in shapes:
                parallel_state().initialize_model_parallel(
                    tensor_model_parallel_size=shape.tp,
                    expert_model_parallel_size=shape.ep,
                    expert_tensor_parallel_size=shape.tp,
                )
                results.append(measure_real(team, shape, rounds, seed))
                parallel_state().destroy_model_parallel()
            if rank == 0:
                write_whole(Path(folder) / _RESULTS, pickle.dumps(results))
            dist.barrier()
            dist.destroy_process_group()
    except MindSpeedMoEError as error:
        write_whole(Path(folder) / _PROBLEM.format(rank=rank), f"rank {rank}: {error}".encode(errors="replace"))
        raise
