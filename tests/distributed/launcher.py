"""Real processes for tests: a pool of ranks over gloo that runs one job after another.

Importing torch and Megatron takes seconds in each process, so the processes stay; a process group is made anew
when a job wants another one, or when the last job failed. A job is a function at module level: it is called on
every rank with the same arguments, and what each rank returns comes back in rank order.

A rank that raises shows its own traceback. When a job takes too long, or a rank has failed and the others do not
follow, every rank that is still busy writes down where its threads stand; then all are killed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

GRACE = 10.0  # seconds that the other ranks have to end once one has failed
_IMPORT_LIMIT = 900.0  # seconds; not a job's time: on a loaded machine importing alone takes a minute
_LOG_LINES = 15


@dataclass(frozen=True)
class World:
    """The process groups that a job wants.

    ep, tp: expert-parallel and tensor-parallel sizes of Megatron's groups (expert and attention tensor parallelism
    alike); 0 for no groups but torch's own. timeout: of store and collectives, in seconds. name: worlds that are
    alike but for their names get process groups of their own.
    """

    ep: int = 0
    tp: int = 0
    timeout: float = 600.0
    name: str = ""


class RanksFailed(AssertionError):
    """A job did not end well on every rank; the message says what each rank said and where it stood."""


@dataclass
class _Rank:
    process: Any
    pipe: connection.Connection
    log: Path
    stacks: Path


class RankPool:
    """`size` processes that run jobs together. They start with the first job, and again after they were killed."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._ranks: list[_Rank] = []
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        self._numbers = itertools.count()
        self._world: World | None = None
        self._rendezvous = ""
        self._imported: set[bool] = set()  # what the processes have imported: with Megatron or without

    def run(self, job: Callable[..., Any], *args: Any, world: World | None = None, limit: float = 900.0) -> list[Any]:
        """Run job(*args) on every rank; returns the ranks' results in rank order.

        world: None when the job needs no process group, nor torch. limit: seconds. Raises RanksFailed when a rank
        raises, dies, or is not done in time.
        """
        if not self._ranks:
            self._start()
        if world is not None and bool(world.ep) not in self._imported:
            self._send_and_collect(_import, (bool(world.ep),), None, _IMPORT_LIMIT)
            self._imported.add(bool(world.ep))
        return self._send_and_collect(job, args, world, limit)

    def _send_and_collect(
        self, job: Callable[..., Any], args: tuple[Any, ...], world: World | None, limit: float
    ) -> list[Any]:
        if world is not None and world != self._world:
            self._rendezvous = str(Path(self._folder.name) / f"rendezvous-{next(self._numbers)}")
        kept, self._world = self._world, None  # until all ranks are known to have kept step
        for rank in self._ranks:
            rank.pipe.send((world, self._rendezvous, job, args))
        answers = self._collect(time.monotonic() + limit)
        if len(answers) < self.size or not all(ok for ok, _ in answers.values()):
            told = self._describe(answers, limit)
            if len(answers) < self.size or not all(rank.process.is_alive() for rank in self._ranks):
                self.kill()
            raise RanksFailed(told)
        self._world = world or kept
        return [answers[rank][1] for rank in range(self.size)]

    def kill(self) -> None:
        """End every process at once; the next job starts new ones."""
        for rank in self._ranks:
            rank.process.kill()
        for rank in self._ranks:
            rank.process.join()
            rank.pipe.close()
        self._ranks = []
        self._world = None
        self._imported = set()

    def close(self) -> None:
        """Let every process end by itself, and kill those that do not."""
        for rank in self._ranks:
            with contextlib.suppress(OSError):
                rank.pipe.send(None)
        for rank in self._ranks:
            rank.process.join(timeout=5)
        self.kill()
        self._folder.cleanup()

    @property
    def pids(self) -> list[int]:
        """The processes, in rank order; none before the first job."""
        return [rank.process.pid for rank in self._ranks]

    def _start(self) -> None:
        context = get_context("spawn")
        for number in range(self.size):
            ours, theirs = context.Pipe()
            name = f"rank-{number}-{next(self._numbers)}"
            log, stacks = (Path(self._folder.name) / f"{name}.{kind}" for kind in ("log", "stacks"))
            process = context.Process(
                target=_serve, args=(number, self.size, theirs, str(log), str(stacks)), name=name, daemon=True
            )
            process.start()
            theirs.close()  # so that the pipe ends with the process
            self._ranks.append(_Rank(process, ours, log, stacks))

    def _collect(self, deadline: float) -> dict[int, tuple[bool, Any]]:
        """Return (ended well, result or traceback) of the ranks that answered or died before the deadline."""
        answers: dict[int, tuple[bool, Any]] = {}
        while len(answers) < self.size:
            waiting = {self._ranks[rank].pipe: rank for rank in range(self.size) if rank not in answers}
            ready = connection.wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                rank = waiting[pipe]
                try:
                    answers[rank] = pipe.recv()
                except (EOFError, OSError):
                    process = self._ranks[rank].process
                    process.join(timeout=5)
                    answers[rank] = (False, f"the process died with exit code {process.exitcode}\n")
                if not answers[rank][0]:
                    deadline = min(deadline, time.monotonic() + GRACE)
        return answers

    def _describe(self, answers: dict[int, tuple[bool, Any]], limit: float) -> str:
        busy = [rank for rank in range(self.size) if rank not in answers]
        for rank in busy:
            os.kill(self._ranks[rank].process.pid, signal.SIGUSR1)
        if busy:
            time.sleep(0.5)  # for the handlers to write
        parts = []
        for rank in range(self.size):
            if rank in busy:
                where = self._ranks[rank].stacks.read_text()
                parts.append(f"rank {rank} was not done (limit {limit} s) and stood here:\n{where}")
            elif not answers[rank][0]:
                parts.append(f"rank {rank} failed:\n{answers[rank][1]}")
            else:
                parts.append(f"rank {rank} ended well\n")
            if rank in busy or not answers[rank][0]:
                last = self._ranks[rank].log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
                parts += [f"    rank {rank} wrote: {line}\n" for line in last]
        return "\n" + "".join(parts)


# ---------------------------------------------------------------------------------------------- inside a process


def _serve(rank: int, size: int, pipe: connection.Connection, log: str, stacks: str) -> None:
    """Run jobs until the parent says to end, or has ended."""
    with open(log, "w") as written, open(stacks, "w") as where:
        os.dup2(written.fileno(), sys.stdout.fileno())
        os.dup2(written.fileno(), sys.stderr.fileno())
        faulthandler.register(signal.SIGUSR1, file=where, all_threads=True)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
        joined: str | None = None
        while True:
            try:
                message = pipe.recv()
            except EOFError:
                return
            if message is None:
                leave()
                os._exit(0)  # taking torch and Megatron down in good order takes seconds
            world, rendezvous, job, args = message
            try:
                if world is not None and rendezvous != joined:
                    leave()
                    _join(rank, size, world, rendezvous)
                    joined = rendezvous
                answer = (True, job(*args))
                pickle.dumps(answer)
            except BaseException:
                answer = (False, traceback.format_exc())
            try:
                _require_plugin_off()
            except AssertionError:
                answer = (False, traceback.format_exc())
            pipe.send(answer)


def _import(megatron: bool) -> None:

    if megatron:
        import megatron.core.models.gpt.gpt_layer_specs
        import megatron.core.transformer.moe.moe_layer


def _join(rank: int, size: int, world: World, rendezvous: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=world.timeout),
    )
    if world.ep:
        from megatron.core import parallel_state

        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=world.tp,
            expert_model_parallel_size=world.ep,
            expert_tensor_parallel_size=world.tp,
            distributed_timeout_minutes=world.timeout / 60,
        )


def leave() -> None:
    """Give up this process's groups, as a process does that ends."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_initialized():
        return
    parallel_state = sys.modules.get("megatron.core.parallel_state")
    if parallel_state is not None:
        parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def _require_plugin_off() -> None:
    api = sys.modules.get("mindspeed_moe.api")
    if api is not None and api.status() is not None:
        api.disable()
        raise AssertionError("the job left the plugin enabled")
