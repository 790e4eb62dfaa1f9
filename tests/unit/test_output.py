"""What a program prints is its own: what libraries print beside it, on every rank, is shown only after a failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers_process import python
from mindspeed_moe.output import own_output

# A library that speaks when it is imported: by warnings, by loggers, and as C++ does.
STRANGER = """
import logging, os, warnings
warnings.warn("stranger's warning", stacklevel=1)
logging.getLogger("stranger").warning("stranger's log")
os.write(1, b"stranger on standard output\\n")
"""
# One that does so whenever a process imports a module, and is louder.
LISTENER = f"""
import sys

class Finder:
    def find_spec(self, name, *rest):
        if name == {{module!r}} and self in sys.meta_path:
            sys.meta_path.remove(self)
            {"; ".join(STRANGER.split(chr(10))[1:-1])}
            os.write(2, b"stranger on standard error\\n")
            print("stranger in Python", file=sys.stderr, flush=True)

sys.meta_path.insert(0, Finder())
"""


# ------------------------------------------------------------------------------------------------ the command's process


def doctor(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it with a torch that speaks, and cannot be imported."""
    (folder / "torch.py").write_text(f"{STRANGER}raise ImportError('a stand-in')\n")
    done = python(*words, "-m", "mindspeed_moe", "doctor", "--json", path=(folder,), variables=variables)
    assert done.returncode == 1, done.stderr
    return done


@pytest.mark.parametrize("words", [(), ("-W", "ignore")])
def test_a_command_prints_what_is_its_own_and_after_a_failure_what_was_put_aside(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    done = doctor(tmp_path, *words)
    assert json.loads(done.stdout)["environment"]["torch"]["problem"] == "cannot be imported: a stand-in"
    first, *rest = done.stderr.splitlines()
    assert (first, set(rest)) == ("libraries printed:", {"stranger on standard output"})


@pytest.mark.parametrize(("words", "variables"), [(("-W", "default"), {}), ((), {"PYTHONWARNINGS": "default"})])
def test_what_the_user_asks_for_is_shown(tmp_path: Path, words: tuple[str, ...], variables: dict[str, str]) -> None:
    done = doctor(tmp_path, *words, **variables)
    assert "UserWarning: stranger's warning" in done.stderr
    assert "stranger's log" in done.stderr
    assert done.stdout.startswith("stranger on standard output\n")


def test_a_warning_that_is_an_error_stays_one(tmp_path: Path) -> None:
    done = doctor(tmp_path, "-W", "error::UserWarning")
    assert json.loads(done.stdout)["environment"]["torch"]["problem"] == "cannot be imported: stranger's warning"


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("log.logger.warning('ours')", "ours\n"),
        ("logging.getLogger('stranger').error('an error')", "an error\n"),
        ("logging.getLogger('stranger').warning('advice')", ""),
        ("sys.stderr.write('last words')", "last words"),
        ("os.write(2, b'last words')", "last words"),
    ],
)
def test_errors_and_our_own_messages_are_shown(statement: str, told: str) -> None:
    code = f"import logging, os, sys\nfrom mindspeed_moe import log, output\nwith output.own_output(): {statement}"
    done = python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", told)


def test_our_own_warnings_are_shown() -> None:
    code = "with output.own_output(): warnings.warn('ours', errors.MindSpeedMoEWarning)"
    done = python("-c", f"import warnings\nfrom mindspeed_moe import errors, output\n{code}")
    assert "MindSpeedMoEWarning: ours" in done.stderr


def test_the_users_own_switches_of_torch_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_LOGS", "+distributed")
    monkeypatch.delenv("TORCH_CPP_LOG_LEVEL", raising=False)
    with own_output():
        assert (os.environ["TORCH_LOGS"], os.environ["TORCH_CPP_LOG_LEVEL"]) == ("+distributed", "ERROR")
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "")  # so that it is put back


# ------------------------------------------------------------------------------------------------ ranks


RANKS = """
import sys
from mindspeed_moe.demo.processes import Processes, ProcessFailedError
from test_output import {target}
if __name__ == "__main__":
    try:
        with Processes(2, {target}) as processes:
            print(list(processes.messages()))
    except ProcessFailedError as error:
        print(error)
"""


def tell_rank(tell, rank: int) -> None:
    speak(rank)
    tell(rank)


def fail_on_1(tell, rank: int) -> None:
    speak(rank)
    if rank == 1:
        os.abort()


def speak(rank: int) -> None:
    from mindspeed_moe.log import logger

    subprocess.run(["sh", "-c", f"echo stranger of {rank}; echo stranger of {rank} >&2"], check=True)
    print("stranger in Python", file=sys.stderr, flush=True)
    logger.warning("ours of %d", rank)


def ranks(tmp_path: Path, target: str, *words: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS.format(target=target))
    here = Path(__file__)
    return python(*words, str(script), path=(here.parent, here.parents[1]))


def test_what_ranks_print_is_put_aside_but_for_our_own_log(tmp_path: Path) -> None:
    done = ranks(tmp_path, "tell_rank")
    assert (done.returncode, done.stdout) in ((0, "[0, 1]\n"), (0, "[1, 0]\n")), done.stderr
    assert sorted(done.stderr.splitlines()) == ["ours of 0", "ours of 1"]


def test_of_a_rank_that_fails_it_is_shown(tmp_path: Path) -> None:
    done = ranks(tmp_path, "fail_on_1")
    assert "rank 1 failed, all 2 were ended\nthe process was ended by SIGABRT, without a traceback\n" in done.stdout
    printed = done.stdout.partition("libraries printed:\n")[2].splitlines()
    assert printed[:3] == ["stranger of 1", "stranger of 1", "stranger in Python"]
    assert "stranger of 0" not in done.stdout


def test_what_the_user_asks_for_is_shown_of_ranks(tmp_path: Path) -> None:
    done = ranks(tmp_path, "tell_rank", "-W", "default")
    for rank in range(2):
        assert f"stranger of {rank}" in done.stdout
        assert f"stranger of {rank}" in done.stderr


MODULE = "megatron.core.parallel_state"  # which ranks import, and the commands that start them do not


@pytest.mark.megatron
@pytest.mark.once
@pytest.mark.timeout(600)
@pytest.mark.parametrize("command", ["bench --ranks 2 --experts 8 --tokens 9 --topk 2 --rounds 1 --json", "demo"])
def test_ranks_of_a_command(tmp_path: Path, command: str) -> None:
    if command == "demo":
        command = f"demo --ep 2 --etp 1 --steps 1 --implementations stock --out {tmp_path / 'out'}"
    (tmp_path / "sitecustomize.py").write_text(LISTENER.format(module=MODULE))
    megatron = [Path(one).resolve() for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    done = python("-m", "mindspeed_moe", *command.split(), path=(tmp_path, *megatron))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "stranger" not in done.stdout
    if "--json" in command:
        assert json.loads(done.stdout)["results"]
