"""The examples: their flags are parsed and judged; the one that needs no accelerator runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mindspeed_moe.cli.launch import judge_launch
from mindspeed_moe.config import load_config
from mindspeed_moe.environment import Found, probe_environment
from mindspeed_moe.mindspeed.arguments import read_config_file, read_switch
from under_mindspeed.launching import scenario

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.sh") if path.name != "environment.sh")
VARIABLES = ("DATA_PATH", "VOCAB_FILE", "MERGE_FILE", "TOKENIZER", "NNODES", "NODE_RANK", "MASTER_ADDR")


def launched(script: str, folder: Path) -> list[str]:
    """Return the words of the command that a script starts, by a torchrun that only prints them."""
    torchrun = folder / "torchrun"
    torchrun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    torchrun.chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", **dict.fromkeys(VARIABLES, "1")}
    done = subprocess.run(
        ["bash", str(EXAMPLES / script)], env=environment, capture_output=True, text=True, check=True, timeout=1800
    )
    return done.stdout.splitlines()


def test_every_example_is_listed() -> None:
    text = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.iterdir():
        if path.name not in ("README.md", "__pycache__"):
            assert f"({path.name})" in text, path.name
    assert len(SCRIPTS) >= 4


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_plugin_is_effective_in_a_script(script: str, tmp_path: Path) -> None:
    words = launched(script, tmp_path)
    here = replace(probe_environment(), megatron_core=Found("0.12.1"), mindspeed=Found("2.3.0"))
    launch = judge_launch(words, load_config(), here)
    assert launch.problems == []
    assert "pretrain_gpt.py" in words
    file = read_config_file(launch.arguments)
    assert read_switch(launch.arguments) is True or file is not None
    if file is not None:
        assert load_config(file).enabled


@pytest.mark.megatron
@pytest.mark.parametrize("script", SCRIPTS)
def test_its_flags_switch_the_plugin_on_in_the_double(script: str, tmp_path: Path) -> None:
    words = launched(script, tmp_path)
    arguments = tuple(words[words.index("pretrain_gpt.py") + 1 :])
    for order in (("adaptor", "plugin"), ("plugin", "llm")):
        last = scenario(*order, arguments=arguments)[-1]
        assert "error" not in last, last
        assert last["preprocess"][-1] == "ours"


def test_verls_dictionary() -> None:
    here = replace(probe_environment(), megatron_core=Found("0.16.1"), mindspeed=Found("0.16"))
    launch = judge_launch([str(EXAMPLES / "verl_override.yaml")], load_config(), here)
    assert launch.problems == []
    assert read_switch(launch.arguments) is True


@pytest.mark.megatron
def test_verls_dictionary_in_repatch() -> None:
    off, on = scenario("adaptor", "plugin", "off", "verl", arguments=("--num-experts", "64"))[2:]
    assert off["preprocess"] == ["megatron"]
    assert on["preprocess"] == ["mindspeed", "ours"]  # with the fused permute that the dictionary asks for too


def test_the_yaml_is_the_defaults() -> None:
    assert load_config(EXAMPLES / "moe.yaml") == load_config(None)


def test_every_variable_says_what_it_does() -> None:
    lines = (EXAMPLES / "environment.sh").read_text().splitlines()
    exported = [number for number, line in enumerate(lines) if line.startswith("export ")]
    assert len(exported) >= 8
    for number in exported:
        above = lines[number - 1]
        assert above.startswith(("# ", "export ")), f"{lines[number]} has no comment"


@pytest.mark.megatron
@pytest.mark.once
def test_the_cpu_example_trains() -> None:
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(EXAMPLES / "plain_megatron_cpu.py"), "--steps", "20"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", done.stdout)]
    assert losses[-1] < losses[0] - 0.3
    assert "preprocess: packed" in done.stdout
