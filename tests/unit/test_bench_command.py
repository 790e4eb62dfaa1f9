"""`mindspeed-moe bench`: its options, and what it refuses."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers_process import python
from mindspeed_moe.bench import session
from mindspeed_moe.bench.report import Report
from mindspeed_moe.cli import main
from mindspeed_moe.environment import Found, Probes, probe_environment

# The package has the command under the name of the module.
command_module = importlib.import_module("mindspeed_moe.cli.bench")


@pytest.fixture
def asked(monkeypatch):
    """What the command asks the bench for, which is not run."""
    calls = []

    def run_bench(environment, shapes, **options):
        calls.append((shapes, options))
        return Report({"threads": options["threads"]}, [], options["left_out"])

    monkeypatch.setattr(session, "run_bench", run_bench)
    return calls


def sizes(call):
    return [(one.experts, one.ep, one.tp, one.tokens, one.topk, one.mode) for one in call[0]]


def test_defaults(asked):
    assert main(["bench", "--json"]) == 0
    ((shapes, options),) = asked
    assert sizes((shapes, options)) == [(256, 32, 1, 4096, 8, "dropless")]
    del options["watch"]
    assert options == {
        "left_out": (),
        "device": "cpu",
        "ranks": None,
        "verify": False,
        "rounds": 300,
        "seed": 0,
        "threads": 1,
        "latency_us": 0.0,
        "busy_us": 1500.0,
        "choices": {},
        "hidden": (),
        "ledger": None,
    }


def test_every_option(asked, capsys):
    arguments = (
        "--experts 8,16 --ep 4 --tp 2 --tokens 5 --topk 3 --mode drop,pad --rounds 7 --seed 9 --threads 2 --json"
    )
    assert main(["bench", *arguments.split()]) == 0
    ((shapes, options),) = asked
    assert sizes((shapes, options)) == [
        (8, 4, 2, 5, 3, "drop"),
        (8, 4, 2, 5, 3, "pad"),
        (16, 4, 2, 5, 3, "drop"),
        (16, 4, 2, 5, 3, "pad"),
    ]
    assert (options["rounds"], options["seed"], options["threads"]) == (7, 9, 2)
    assert json.loads(capsys.readouterr().out)["machine"] == {"threads": 2}


def test_an_accelerators_options(asked):
    arguments = "--json --device cuda --latency-us 20 --busy-us 500 --rounds 9"
    assert main(["bench", *arguments.split()]) == 0
    ((_, options),) = asked
    assert {name: options[name] for name in ("device", "latency_us", "busy_us", "rounds")} == {
        "device": "cuda",
        "latency_us": 20.0,
        "busy_us": 500.0,
        "rounds": 9,
    }


@pytest.mark.parametrize(
    ("arguments", "hidden", "rounds"),
    [("", (512, 4096), 20), ("--hidden 8,16", (8, 16), 20), ("--rounds 3", (512, 4096), 3)],
)
def test_whole_layers(asked, arguments, hidden, rounds):
    assert main(["bench", "--json", "--whole-layer", *arguments.split()]) == 0
    ((_, options),) = asked
    assert (options["hidden"], options["rounds"]) == (hidden, rounds)


def test_a_simulated_bench_hands_its_options_on(asked, monkeypatch, capsys):
    commands = []

    def run(command, *, check, stdout, stderr):
        assert not check
        assert stdout is stderr is not sys.stderr, "torch_npu prints there, and our streams are for the report"
        commands.append(command)
        Path(command[-1].partition("=")[2]).write_text("what it reports")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "tests.ascend_sim" or None)
    arguments = "--device npu --simulated --experts 8,16 --ep 2 --seed 5 --choice stream=side --json"
    assert main(["bench", *arguments.split()]) == 0
    assert capsys.readouterr().out == "what it reports\n"
    ((*command, _),) = commands
    runtime, bench = command[: command.index("bench")], command[command.index("bench") + 1 :]
    assert runtime[:3] == [sys.executable, "-m", "tests.ascend_sim"]
    handed_on = "--device=npu --experts=8,16 --ep=2 --seed=5 --mode=dropless --choice=stream=side --json"
    assert set(handed_on.split()) <= set(bench)
    assert "--ledger=tests.ascend_sim.ledger:record" in bench
    assert asked == []


def test_choices(asked):
    assert main(["bench", "--json", "--choice", "counts=sum", "--choice", "exchange=all_gather"]) == 0
    ((_, options),) = asked
    assert options["choices"] == {"counts": "sum", "exchange": "all_gather"}


def test_a_simulated_bench_that_fails(asked, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda command, **more: subprocess.CompletedProcess(command, 3))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    assert main(["bench", "--device", "npu", "--simulated"]) == 2
    assert "ended with 3" in capsys.readouterr().err


def test_a_simulated_bench_outside_of_a_checkout(asked, monkeypatch, capsys, tmp_path):
    def find_spec(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    assert main(["bench", "--device", "npu", "--simulated"]) == 2
    assert "root folder of a checkout" in capsys.readouterr().err


def test_times_of_a_simulation_are_refused(monkeypatch, capsys):
    probe = probed(
        megatron_core=lambda: Found("0.16.1"), devices=lambda: {"npu": (True, "x")}, variables={"ASCEND_SIM": "1"}
    )
    monkeypatch.setattr(command_module, "probe_environment", probe)
    assert main(["bench", "--device", "npu"]) == 2
    assert "times of a simulated device say nothing" in capsys.readouterr().err


def test_a_picture(asked, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr("mindspeed_moe.bench.picture.draw_ratios", lambda *given: drawn.append(given))
    assert main(["bench", "--json", "--png", str(tmp_path / "ratios.png")]) == 0
    assert drawn == [([], "threads 1", tmp_path / "ratios.png")]


@pytest.mark.parametrize(
    ("arguments", "layouts"),
    [("--ranks 4", [(4, 1)]), ("--ranks 4 --tp 2", [(2, 2)]), ("--ranks 4 --tp 1,4", [(1, 4), (4, 1)])],
)
def test_real_ranks_make_up_the_expert_parallel_size(asked, arguments, layouts):
    assert main(["bench", "--json", *arguments.split()]) == 0
    ((shapes, options),) = asked
    assert sorted((one.ep, one.tp) for one in shapes) == layouts
    assert options["ranks"] == 4


def test_a_progress_bar_keeps_out_of_pipes(capsys):
    assert list(command_module._progress([1, 2, 3])) == [1, 2, 3]
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--experts 12 --ep 5", "12 experts do not divide by EP = 5"),
        ("--experts 4 --ep 1 --topk 5", "a token can go to 1 to 4 experts"),
        ("--experts 9,10 --ep 4", "no possible shape"),
        ("--experts 0", "'0' is not a whole number from 1 to 2147483647"),
        ("--experts -8", "'-8' is not a whole number from 1 to 2147483647"),
        ("--tokens 1,,2", "'' is not a whole number from 1 to 2147483647"),
        ("--tokens 1e3", "'1e3' is not a whole number from 1 to 2147483647"),
        ("--tokens 2147483647", "does not fit into memory"),
        ("--mode dropless,dropfull", "'dropfull' is not one of dropless, drop, pad"),
        ("--rounds 0", "--rounds"),
        ("--threads 0", "--threads"),
        ("--ranks 1", "--ranks"),
        ("--ranks 4 --ep 8", "EP x TP must be the 4 ranks"),
        ("--ranks 3 --tp 2", "do not divide|must be the 3 ranks"),
        ("--nonsense", "--nonsense"),
        ("--verify", "--verify: goes with --ranks"),
        ("--ranks 2 --device npu", "--ranks: goes with --device cpu"),
        ("--ranks 2 --whole-layer", "--ranks: goes with --device cpu, and with neither --whole-layer nor --choice"),
        ("--simulated", "--simulated: goes with --device npu"),
        ("--simulated --device npu --whole-layer", "with neither --whole-layer nor --png"),
        ("--simulated --device npu --png x.png", "with neither --whole-layer nor --png"),
        ("--ranks 2 --choice counts=sum", "--ranks: goes with --device cpu, and with neither"),
        ("--choice counts", "expected NAME=VALUE"),
        ("--choice =sum", "expected NAME=VALUE"),
        ("--choice counts=", "expected NAME=VALUE"),
        ("--device tpu", "--device"),
        ("--device cuda --latency-us -1", "--latency-us"),
        ("--device cuda --busy-us 0", "--busy-us"),
        ("--whole-layer --hidden 0", "'0' is not a whole number from 1 to 2147483647"),
        ("--png ratios.jpg", "--png ratios.jpg"),
        ("--png no/such/folder/ratios.png", "in a folder that exists"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(asked, capsys, arguments, told):
    assert main(["bench", *arguments.split()]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert any(one in output.err for one in told.split("|"))
    assert "Traceback" not in output.err
    assert asked == []


def probed(**probes):
    return lambda: probe_environment(Probes(**probes))


def test_megatron_missing(monkeypatch, capsys):
    probe = probed(megatron_core=lambda: Found(problem="not installed"))
    monkeypatch.setattr(command_module, "probe_environment", probe)
    assert main(["bench"]) == 2
    assert capsys.readouterr().err.startswith("mindspeed-moe: megatron-core: not installed;")


def test_megatron_unknown(monkeypatch, capsys):
    probe = probed(megatron_core=lambda: Found("9.9.0"))
    monkeypatch.setattr(command_module, "probe_environment", probe)
    assert main(["bench"]) == 2
    assert "megatron-core 9.9.0 is newer than the releases" in capsys.readouterr().err


def test_torch_missing(monkeypatch, capsys):
    probe = probed(torch=lambda: Found(problem="cannot be imported: no CANN"))
    monkeypatch.setattr(command_module, "probe_environment", probe)
    assert main(["bench"]) == 2
    assert capsys.readouterr().err == "mindspeed-moe: torch: cannot be imported: no CANN\n"


def test_the_command_line_loads_no_torch():
    """So that `doctor` works where torch does not."""
    code = "import sys, mindspeed_moe.cli; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    assert python("-c", code).stdout.strip() == "[]"
