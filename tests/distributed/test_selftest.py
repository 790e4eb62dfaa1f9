"""`mindspeed-moe selftest` with gloo: it passes, notices mistakes by name, and no rank is left hanging."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distributed import selftest_jobs
from distributed.launcher import RankPool, World
from distributed.selftest_jobs import MUTATIONS
from helpers_process import torchrun

pytestmark = [pytest.mark.megatron, pytest.mark.once]


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mistake_fails_the_step_by_name_on_every_rank(ranks: RankPool, mutation: str) -> None:
    _, only, told = MUTATIONS[mutation]
    found = ranks.run(selftest_jobs.run, only, mutation, world=World(name="selftest"))
    assert found[1:] == found[:-1], "all ranks come to the same verdict"
    problems = [problem for _, _, problems in found[0] for problem in problems]
    assert problems, "nothing was noticed"
    assert any(told in problem for problem in problems), problems[:5]
    assert all(problem.startswith("EP ") and "; rank " in problem for problem in problems)


def test_the_code_as_it_is_passes_the_same_steps(ranks: RankPool) -> None:
    """Those of EP 2, TP 2 are passed by the command, below."""
    for only in dict.fromkeys(only for _, only, _ in MUTATIONS.values() if "TP 2" not in only[0]):
        for name, state, problems in ranks.run(selftest_jobs.run, only, world=World(name="selftest"))[0]:
            assert state in ("passed", "refused"), (name, problems)


# ------------------------------------------------------------------------------------------------ the command

HEAD = """\
import os, signal, sys, time
from mindspeed_moe.cli import main
from mindspeed_moe.selftest import layer, run
rank, reached = int(os.environ["RANK"]), []
original = layer.run_layer

def fifth(bench, step):
    reached.append(step)
    if rank == 1 and len(reached) == 5:
        happen()
    original(bench, step)

run._RUN["megatron's dispatcher", False] = fifth
"""
NOTHING = """
def happen():
    pass
"""
TAIL = """
sys.exit(main(["selftest", *sys.argv[1:]]))
"""


def launch(folder: Path, script: str, *arguments: str, ranks: int) -> tuple[int, str]:
    """Run a script on ranks; returns exit code and what it printed."""
    file = folder / "script.py"
    file.write_text(HEAD + script + TAIL)
    return torchrun([str(file), "--device=cpu", *arguments], ranks=ranks)


def test_four_ranks_pass(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    code, told = launch(tmp_path, NOTHING, "--only=EP 2, TP 2, L 2; alltoall", "--json", f"--out={out}", ranks=4)
    assert code == 0, told
    report = json.loads(out.read_text())
    assert report["passed"]
    assert report["counts"]["passed"] >= 60
    assert report["counts"]["refused"] >= 8
    assert {row["mode"] for row in report["rows"]} >= {"dropless", "drop", "drop and pad"}


@pytest.mark.slow
def test_everything_on_four_ranks(tmp_path: Path) -> None:
    code, told = launch(tmp_path, NOTHING, ranks=4)
    assert code == 0, told
    assert told.count("selftest passed: ") == 1, "one rank speaks"


DIES = """
def happen():
    os.kill(os.getpid(), signal.SIGKILL)
"""
SLEEPS = """
def happen():
    time.sleep(5000)
"""
RAISES = """
def happen():
    raise RuntimeError("out of memory")
"""
STEP = "EP 2, TP 1, L 1; alltoall; dropless; packed"


@pytest.mark.parametrize(
    ("script", "stopped", "rank_1"),
    [
        pytest.param(DIES, "", "no answer: its process has ended", id="dies", marks=pytest.mark.slow),
        pytest.param(SLEEPS, "not done after 60 s", "time.sleep(5000)", id="sleeps"),
        pytest.param(
            RAISES, "RuntimeError: out of memory", "in happen raise RuntimeError", id="raises", marks=pytest.mark.slow
        ),
    ],
)
def test_a_rank_in_trouble_ends_all_and_everybody_says_where_it_stands(
    tmp_path: Path, script: str, stopped: str, rank_1: str
) -> None:
    code, told = launch(tmp_path, script, f"--only={STEP}", "--step-limit=60", ranks=2)
    assert code != 0
    words = " ".join(told.split())
    assert "STOPPED: rank " in words
    assert "in step 'EP 2, TP 1, L 1; alltoall; dropless; packed" in words
    assert stopped in words
    by_rank = words.partition("--- rank 0 stands here:")[2].partition("--- rank 1 stands here:")
    assert rank_1 in by_rank[2]
    assert "step: EP 2, TP 1, L 1" in by_rank[0]
    assert "last collective: all" in by_rank[0]
    assert "stack:" in by_rank[0]
    assert "selftest FAILED" in words
