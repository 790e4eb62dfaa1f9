"""`mindspeed-moe bench`: its options, and what it refuses."""

from __future__ import annotations

import importlib
import json

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
    assert {name: options[name] for name in ("ranks", "rounds", "seed", "threads")} == {
        "ranks": None,
        "rounds": 300,
        "seed": 0,
        "threads": 1,
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
        ("--experts 0", "'0' is not a whole number of at least 1"),
        ("--experts -8", "'-8' is not a whole number of at least 1"),
        ("--tokens 1,,2", "'' is not a whole number of at least 1"),
        ("--tokens 1e3", "'1e3' is not a whole number of at least 1"),
        ("--tokens 99999999999", "does not fit into memory"),
        ("--mode dropless,dropfull", "'dropfull' is not one of dropless, drop, pad"),
        ("--rounds 0", "--rounds"),
        ("--threads 0", "--threads"),
        ("--ranks 1", "--ranks"),
        ("--ranks 4 --ep 8", "EP x TP must be the 4 ranks"),
        ("--ranks 3 --tp 2", "do not divide|must be the 3 ranks"),
        ("--nonsense", "--nonsense"),
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
