"""Names that are no text, ASCII locales, full and closed standard output, absurd numbers: one message, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from helpers_telemetry import header, layer_line, load, write_segment
from mindspeed_moe import cli
from mindspeed_moe.config import load_config
from mindspeed_moe.errors import ConfigError, MindSpeedMoEError

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}
NO_TEXT = b"caf\xe9-\xff"
LONG = "9" * 5000


def run(
    *arguments: str | bytes, variables: Mapping[str, str] | None = None, **more: Any
) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(
        [sys.executable, "-m", "mindspeed_moe", *arguments],
        env={**kept, **(variables or {})},
        stderr=subprocess.PIPE,
        check=False,
        **{"stdout": subprocess.PIPE, **more},
    )


def ours(stderr: bytes) -> list[bytes]:
    """Return the lines that we, or an interpreter in trouble, have written; libraries may have written others."""
    words = (b"mindspeed", b"Traceback", b"Exception ignored", b"Error")
    return [line for line in stderr.splitlines() if any(word in line for word in words)]


@pytest.fixture
def folder(tmp_path: Path) -> bytes:
    """A folder of telemetry whose name is no text."""
    name = os.fsencode(tmp_path) + b"/" + NO_TEXT
    lines = [header(0), layer_line(0, 2, 1, 0, group=[0]), load(1, 0, [1, 2], [3])]
    write_segment(tmp_path / "telemetry", 0, 1, lines)
    os.rename(os.fsencode(tmp_path / "telemetry"), name)
    return name


# ------------------------------------------------------------------------------------------------ letters


@pytest.mark.parametrize("variables", [{}, ASCII], ids=["UTF-8", "ASCII"])
def test_a_report_of_a_folder_whose_name_is_no_text(folder: bytes, variables: Mapping[str, str]) -> None:
    ended = run("report", folder, "--output", folder + b"/out.html", variables=variables)
    assert (ended.returncode, b"Traceback" in ended.stderr) == (0, False), ended.stderr
    assert b"written: " in ended.stdout
    assert os.path.getsize(folder + b"/out.html")


@pytest.mark.parametrize(
    "words",
    [
        ["doctor", "--config", NO_TEXT],
        ["doctor", "--", "pretrain_gpt.py", b"--yaml-cfg", NO_TEXT + b".yaml"],
        ["doctor", "--", NO_TEXT],
        ["tune", "--megatron-args", NO_TEXT],
        ["estimate", "--layers", "1", "--tuned", NO_TEXT],
        ["replay", NO_TEXT],
        ["report", NO_TEXT],
        ["demo", "--text", NO_TEXT],
        ["bench", "--png", NO_TEXT],
        ["selftest", "--out", b"/nowhere/" + NO_TEXT],
        ["bench", "--experts", NO_TEXT],
        [NO_TEXT],
    ],
    ids=lambda words: " ".join(str(word) for word in words[:2]),
)
def test_names_that_are_no_text(
    words: list[str | bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([os.fsdecode(word) for word in words]) == 2
    assert capfd.readouterr().err


@pytest.mark.parametrize("words", [["doctor"], ["doctor", "--config", NO_TEXT], ["replay", NO_TEXT]])
def test_an_ascii_locale(words: list[str | bytes]) -> None:
    ended = run(*words, variables=ASCII)
    assert ended.returncode == 2 if len(words) > 1 else ended.returncode in (0, 1)
    assert b"Traceback" not in ended.stderr


# ------------------------------------------------------------------------------------------------ standard output


COMMANDS = {
    "help": ["--help"],
    "doctor": ["doctor"],
    "estimate": [
        "estimate",
        "--layers=1",
        *(f"--{one}=1" for one in ("kernel", "collective", "copy", "record", "wait")),
    ],
    "report": ["report", "."],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_standard_output(command: str, folder: bytes) -> None:
    with open("/dev/full", "wb") as full:
        ended = run(*COMMANDS[command], stdout=full, cwd=folder)
    assert (ended.returncode, ours(ended.stderr)) == (2, [b"mindspeed-moe: No space left on device"])


def test_everything_full() -> None:
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "mindspeed_moe", "doctor", "--json"],
            stdout=full,
            stderr=full,
            check=False,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        )
    assert ended.returncode == 2


def test_a_reader_that_has_seen_enough() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = run("doctor", "--json", stdout=writing)
    os.close(writing)
    assert (ended.returncode, ours(ended.stderr)) == (1, [])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_standard_output(command: str, folder: bytes) -> None:
    ended = subprocess.run(
        ["bash", "-c", 'exec "$0" "$@" >&-', sys.executable, "-m", "mindspeed_moe", *COMMANDS[command]],
        stderr=subprocess.PIPE,
        cwd=folder,
        check=False,
    )
    assert ended.returncode in (0, 1)
    assert ours(ended.stderr) == []


# ------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("value", [LONG, "9" * 4000, "nan", "inf", "-1", "1e400", "2147483648"])
@pytest.mark.parametrize(
    "words",
    [
        ["tune", "--tokens=8", "--experts"],
        ["tune", "--tokens=8", "--experts=8", "--step-limit"],
        ["tune", "--seed"],
        ["tune", "--", "--seq-length", "8", "--micro-batch-size", "1", "--num-experts"],
        ["bench", "--experts"],
        ["bench", "--experts=8", "--ranks"],
        ["bench", "--device=cuda", "--latency-us"],
        ["bench", "--device=cuda", "--busy-us"],
        ["estimate", "--layers"],
        ["estimate", "--layers=1", "--collective=1", "--copy=1", "--record=1", "--wait=1", "--kernel"],
        ["selftest", "--seed"],
        ["selftest", "--step-limit"],
        ["report", ".", "--last"],
        ["demo", "--steps"],
        ["demo", "--ep"],
        ["demo", "--processes"],
    ],
    ids=lambda words: " ".join((words[0], words[-1])),
)
def test_absurd_numbers(
    words: list[str], value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if value == "2147483648" and words[-1] in ("--latency-us", "--busy-us", "--kernel", "--num-experts"):
        pytest.skip("a size or time that can be")
    monkeypatch.chdir(tmp_path)
    last = [f"{words[-1]}={value}"] if words[-1] != "--num-experts" else [words[-1], value]
    assert cli.main([*words[:-1], *last]) == 2
    told = capsys.readouterr().err
    assert 0 < len(told) < 10_000
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["HCCL_BUFFSIZE", "RANK", "WORLD_SIZE"])
def test_absurd_numbers_in_variables(name: str) -> None:
    ended = run("doctor", "--", "pretrain_gpt.py", "--num-experts", "8", variables={name: LONG})
    assert (ended.returncode, b"Traceback" in ended.stderr) == (1, False)


# ------------------------------------------------------------------------------------------------ messages


@pytest.mark.parametrize("letters", ["\x1b[2J\x07", "\x00", "\x9b31m", "\u202e", "\udcff", "\r"])
def test_nothing_in_a_message_steers_a_terminal(letters: str) -> None:
    told = str(MindSpeedMoEError(f"a\n{letters}b"))
    assert told.startswith("a\n\\")
    assert told.endswith("b")
    assert all(one.isprintable() for one in told.replace("\n", ""))


def test_a_message_is_bounded_at_both_ends() -> None:
    told = str(ConfigError("begin " + "x" * 10**6 + " end"))
    assert len(told) < 10_000
    assert told.startswith("begin x")
    assert told.endswith("x end")


@pytest.mark.parametrize("key", ["verify", "dumps", "telemetry"])
def test_values_of_a_file_are_bounded_and_escaped(tmp_path: Path, key: str) -> None:
    file = tmp_path / "moe.yaml"
    file.write_text(f'"\\e[2J{key}": {"y" * 100_000}\n{key}: ["{"x" * 100_000}\\e[2J"]\n')
    with pytest.raises(ConfigError) as refused:
        load_config(file)
    told = str(refused.value)
    assert len(told) < 10_000
    assert "\x1b" not in told


# ------------------------------------------------------------------------------------------------ paths


@pytest.mark.parametrize("path", ["~/moe", "~", "~me/x", "$HOME/moe", "${HOME}/moe", "a$b", "a\0b", "a\udcffb"])
@pytest.mark.parametrize("key", ["dumps", "tuned", "telemetry.folder"])
def test_a_path_that_a_shell_would_have_filled_in(key: str, path: str) -> None:
    first, _, second = key.partition(".")
    with pytest.raises(ConfigError, match=rf"^configuration: {key}: .*; allowed: the path of a f"):
        load_config({first: {second: path} if second else path})


@pytest.mark.parametrize("path", ["a~b", "./~", "\N{LATIN SMALL LETTER E WITH ACUTE}", "a b"])
def test_paths_that_are_meant(path: str) -> None:
    assert load_config({"dumps": path}).dumps == path


@pytest.mark.parametrize("path", ["~/demo", "$HOME/demo"])
def test_the_demo_makes_no_folder_of_that_name(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--out", path]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["~/pictures", "$HOME/pictures"])
def test_nor_does_the_report(folder: bytes, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", os.fsdecode(folder), "--png", path]) == 2
    assert not [one for one in os.listdir(tmp_path) if one[0] in "~$"]


def test_a_writer_named_twice() -> None:
    with pytest.raises(ConfigError, match="allowed: a list of one or more of jsonl, tensorboard, each once"):
        load_config({"telemetry": {"writers": ["jsonl", "jsonl"]}})
