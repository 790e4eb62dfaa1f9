"""One rank of four makes a mistake, in processes of their own: all of them end, each says why, and dumps tell the rest.

EP = 2: rank 0 sits in the all-to-all that rank 1 never comes to; ranks 2 and 3 train on, in another group.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed.one_wrong_rank import CALL, EP, EXPERTS, GRACE_S, STAYS_S, WRONG
from mindspeed_moe import cli
from oracle.plan import DROPLESS, RankPlan, plan_group

pytestmark = [pytest.mark.megatron, pytest.mark.once]

RANKS = 4
TESTS = Path(__file__).resolve().parents[1]
START_S = 240.0  # to import everything, on a busy machine


@dataclass(frozen=True)
class Ended:
    """How a rank ended. wall: when, by the clock."""

    code: int
    err: str
    wall: float


@dataclass(frozen=True)
class Run:
    folder: Path
    ranks: list[Ended]

    @property
    def dumps(self) -> dict[int, Path]:
        return {int(one.stem[-5:]): one for one in (self.folder / "dumps").iterdir()}

    def raised(self, rank: int) -> float:
        return float((self.folder / f"raised-{rank}").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train until every process has ended; the store lives in rank 0."""
    folder = tmp_path_factory.mktemp("ends")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        task = {"folder": str(folder), "rendezvous": f"tcp://127.0.0.1:{free.getsockname()[1]}", "world_size": RANKS}
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(RANKS):
        command = [sys.executable, "-m", "distributed.one_wrong_rank", json.dumps({**task, "rank": rank})]
        with (folder / f"rank{rank}.err").open("w") as err:
            processes.append(subprocess.Popen(command, cwd=TESTS, env=environment, stderr=err, stdout=err))
    ended: dict[int, float] = {}
    until = time.monotonic() + START_S
    try:
        while len(ended) < RANKS and time.monotonic() < until:
            ended |= {
                rank: time.time() for rank, one in enumerate(processes) if rank not in ended and one.poll() is not None
            }
            time.sleep(0.05)
    finally:
        for one in processes:
            one.kill()
            one.wait()
    told = [(folder / f"rank{rank}.err").read_text() for rank in range(RANKS)]
    assert len(ended) == RANKS, f"ranks {set(range(RANKS)) - ended.keys()} did not end:\n" + "\n".join(told)
    return Run(folder, [Ended(processes[rank].returncode, told[rank], ended[rank]) for rank in range(RANKS)])


@pytest.fixture(scope="module")
def wanted(run: Run) -> list[RankPlan]:
    """What the oracle says of ranks 0 and 1, from the routing maps that the router itself gave."""
    maps = [np.load(run.folder / f"map-{rank}.npy").tolist() for rank in range(EP)]
    return plan_group(maps, ep=EP, tp=1, experts=EXPERTS, topk=2, mode=DROPLESS)


def difference(wanted: list[RankPlan]) -> str:
    """What rank 1 received from rank 0 and from itself changes places."""
    from_first, from_second = wanted[1].output_splits or ()
    assert from_first != from_second, "or the mistake would not matter"
    return f"output_splits[0]: found {from_second}, expected {from_first}"


def test_every_rank_ends_with_an_error(run: Run) -> None:
    assert [one.code for one in run.ranks] == [1] * RANKS, "\n".join(one.err for one in run.ranks)


def test_every_rank_says_what_was_wrong_and_where(run: Run, wanted: list[RankPlan]) -> None:
    """Layer, micro-batch, rank, attribute, index, both values; and where the dump is."""
    assert 2 * WRONG["step"] + WRONG["micro_batch"] == CALL
    text = (
        "verification failed on rank 1, layer 2, training step 1, micro-batch 1 (call 3 of the layer): "
        f"{difference(wanted)}; implementation packed, all_to_all; "
    )
    for rank, one in enumerate(run.ranks):
        where = "its dump goes to " if rank != 1 else "dump: "
        assert f"{text}{where}{run.dumps[1]}" in one.err, f"rank {rank}"
        assert rank not in run.dumps or f"mindspeed-moe replay {run.dumps[rank]})" in one.err, f"rank {rank}"


def test_the_rank_at_fault_raises_and_so_does_who_comes_to_a_check(run: Run) -> None:
    """Of ranks 2 and 3, the second may meet the end of the first in a collective."""
    assert "mindspeed_moe.errors.VerificationError: verification failed on rank 1" in run.ranks[1].err
    raised = [rank for rank in (2, 3) if (run.folder / f"raised-{rank}").exists()]
    assert raised
    for rank in raised:
        assert f"VerificationError: rank {rank} ends with the others: verification failed" in run.ranks[rank].err
        assert run.raised(rank) - run.raised(1) < 5.0


def test_the_rank_in_a_collective_that_never_ends_is_ended(run: Run) -> None:
    """While rank 1 still lives: gloo has not noticed anything."""
    assert "mindspeed_moe ends this process: rank 0: verification failed on rank 1" in run.ranks[0].err
    assert not (run.folder / "raised-0").exists()
    assert run.ranks[0].wall < run.raised(1) + STAYS_S


def test_all_of_it_takes_seconds(run: Run) -> None:
    """From the error on rank 1: half a second to hear of it, the grace, and the end of a process."""
    for rank in (0, 2, 3):
        assert run.ranks[rank].wall - run.raised(1) < GRACE_S + 10.0


def test_the_ranks_of_the_group_leave_dumps_and_nobody_else(run: Run) -> None:
    assert sorted(run.dumps) == [0, 1]
    for path in run.dumps.values():
        assert "layer002-call000003" in path.name
    assert {one.name for one in run.folder.iterdir() if one.is_dir()} == {"dumps"}


@pytest.mark.parametrize("given", [(1,), (0, 1)], ids=["from its dump", "from all dumps"])
def test_replaying_gives_the_same_difference(
    run: Run, wanted: list[RankPlan], capsys: pytest.CaptureFixture[str], given: tuple[int, ...]
) -> None:
    assert cli.main(["replay", *(str(run.dumps[rank]) for rank in given)]) == 0
    told = capsys.readouterr().out
    assert f"rank 1: reproduced: {difference(wanted)}; the routing maps say what the reference said" in told
    assert "this version's code is right on these counts" in told
    assert "verification failed on rank 1, layer 2, training step 1, micro-batch 1" in told


def test_the_dumps_hold_the_routers_own_maps(run: Run) -> None:
    """Read with numpy alone."""
    for rank, path in run.dumps.items():
        routing_map = np.load(run.folder / f"map-{rank}.npy")
        with np.load(path, allow_pickle=False) as file:
            meta: dict[str, Any] = json.loads(file["meta"].tobytes())
            bits = np.unpackbits(file["routing_map"], count=routing_map.size)
            assert bits.reshape(routing_map.shape).tolist() == routing_map.astype(int).tolist()
        place = {name: meta[name] for name in ("rank", "layer", "step", "micro_batch", "call", "group")}
        assert place == {**WRONG, "rank": rank, "call": CALL, "group": [0, 1]}
        assert meta["configuration"]["verify"] == "always"
        assert {"mindspeed_moe", "torch", "megatron_core", "python"} <= meta["versions"].keys()
