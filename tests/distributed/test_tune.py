"""`mindspeed-moe tune` under torchrun, with gloo: what it writes, and how it ends when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mindspeed_moe.config.tuned import read_tuned, text_of

pytestmark = [pytest.mark.megatron, pytest.mark.once]

SHAPE = ("--experts", "8", "--ep", "2", "--tokens", "32", "--rounds", "40", "--device", "cpu")

# What the scripts below have in common: this rank, the command with the arguments of the launch.
HEAD = """\
import json, os, sys, time
from pathlib import Path
from mindspeed_moe.cli import main
from mindspeed_moe.tune import launch, session
rank, folder = os.environ["RANK"], Path(sys.argv.pop(1))
"""


def start(folder: Path, *arguments: str, ranks: int, script: str) -> subprocess.Popen[str]:
    """Start a script on ranks; it gets the folder, then the arguments."""
    file = folder / "script.py"
    file.write_text(HEAD + script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    return subprocess.Popen(
        [*command, str(file), str(folder), *arguments],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 1800) -> str:
    try:
        return process.communicate(timeout=timeout)[0]
    finally:
        process.kill()


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 1800
    while not file.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"script.py", "measuring"}


SEEN = """
decided = launch.tune_here

def tune_here(*arguments, **options):
    found = decided(*arguments, **options)
    seen = launch.dist.is_initialized(), found.tuned.model_dump_json(by_alias=True)
    (folder / f"rank{rank}").write_text(json.dumps(seen))
    return found

launch.tune_here = tune_here
sys.exit(main(["tune", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_all_ranks_agree_and_one_writes_the_file(tmp_path: Path, ranks: int) -> None:
    """EP 2; four ranks are two groups, as in a launch with data parallelism."""
    out = tmp_path / "tuned.yaml"
    process = start(tmp_path, *SHAPE, "--out", str(out), ranks=ranks, script=SEEN)
    told = finish(process)
    assert process.returncode == 0, told
    tuned = read_tuned(out)
    assert (tuned.machine.device, tuned.machine.world_size) == ("cpu", ranks)
    assert (tuned.shape.experts, tuned.shape.ep, tuned.shape.tokens) == (8, 2, 32)
    assert len(tuned.timings_us) == 8, "counts x exchange x exchange_group"
    assert (tuned.rounds, tuned.settled) == (40, False)
    assert tuned.chosen().keys() <= {"counts", "exchange", "exchange_group"}
    assert all(one.p20 <= one.p50 <= one.p80 for one in tuned.timings_us.values())
    assert told.count(f"written: {out}") == 1, "one rank speaks"
    assert left_in(tmp_path) == {"tuned.yaml", *(f"rank{rank}" for rank in range(ranks))}
    for rank in range(ranks):
        initialized, seen = json.loads((tmp_path / f"rank{rank}").read_text())
        assert not initialized, "the process group was left behind"
        assert text_of(type(tuned).model_validate_json(seen)) == out.read_text()


DISAGREE = """
tokens = "32" if rank == "0" else "64"
sys.exit(main(["tune", "--experts=8", "--ep=2", f"--tokens={tokens}", "--device=cpu", f"--out={folder}/tuned.yaml"]))
"""


def test_ranks_that_were_asked_for_different_things(tmp_path: Path) -> None:
    process = start(tmp_path, ranks=2, script=DISAGREE)
    told = finish(process)
    assert process.returncode != 0
    assert "disagree: shape: 'E=8 EP=2 TP=1 T=32 top-2 dropless' on ranks [0]; 'E=8 EP=2 TP=1 T=64" in told
    for rank in range(2):
        assert f"rank {rank}: the ranks of" in told or f"rank {rank} ends: rank" in told
    assert left_in(tmp_path) == set()


FAILS = """
if rank == "1":
    def fail(*arguments):
        raise RuntimeError("out of memory")
    session.measure_operations = fail
    try:
        main(["tune", *sys.argv[1:]])
    except RuntimeError as error:
        (folder / "own").write_text(str(error))
    time.sleep(5000)  # torchrun would end rank 0 for it
sys.exit(main(["tune", *sys.argv[1:]]))
"""


def test_a_rank_that_fails_ends_one_that_waits_for_it(tmp_path: Path) -> None:
    told = finish(start(tmp_path, *SHAPE, "--out", str(tmp_path / "tuned.yaml"), ranks=2, script=FAILS))
    assert "rank 0 ends: rank 1, in step 'measuring single operations': RuntimeError: out of memory" in told
    assert (tmp_path / "own").read_text() == "out of memory"
    assert left_in(tmp_path) == {"own"}


STANDS_STILL = """
if rank == "1":
    session.measure_operations = lambda *arguments: time.sleep(5000)
sys.exit(main(["tune", "--step-limit=60", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_a_rank_that_stands_still_ends_all(tmp_path: Path) -> None:
    process = start(tmp_path, *SHAPE, "--out", str(tmp_path / "tuned.yaml"), ranks=2, script=STANDS_STILL)
    told = finish(process)
    assert process.returncode != 0
    assert "in step 'measuring single operations': " in told
    assert left_in(tmp_path) == set()


MARKS = """
judged = session.judge

def judge(*arguments):
    (folder / "measuring").touch()
    return judged(*arguments)

session.judge = judge
session.stands = lambda blocks: False
sys.exit(main(["tune", *sys.argv[1:], "--rounds=1000000"]))
"""


def test_a_launch_that_is_ended_leaves_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "tuned.yaml"
    out.write_text("the old one")
    options = ["--experts=8", "--ep=2", "--tokens=8", "--device=cpu", f"--out={out}"]
    process = start(tmp_path, *options, ranks=2, script=MARKS)
    wait_for(tmp_path / "measuring", process)
    process.send_signal(signal.SIGTERM)
    told = finish(process)
    assert process.returncode != 0
    assert "interrupted" in told
    assert out.read_text() == "the old one"
    assert left_in(tmp_path) == {"tuned.yaml"}


def test_a_place_that_cannot_be_written_to_is_found_before_measuring(tmp_path: Path) -> None:
    out = tmp_path / "nowhere" / "tuned.yaml"
    process = start(tmp_path, *SHAPE, "--out", str(out), ranks=2, script=MARKS)
    told = finish(process)
    assert process.returncode != 0
    assert f"{out}: cannot be written: No such file or directory" in told
    assert "rank 1 ends: rank 0, in step 'comparing what the ranks were asked for': ConfigError" in told
    assert left_in(tmp_path) == set()
    assert not (tmp_path / "measuring").exists()
