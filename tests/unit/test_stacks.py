"""The stacks are data that scripts, doctor and documents read; set-up takes what there is and says what it lacks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_moe.stacks import DEFAULT, STACKS, stack_for, stack_of

ROOT = Path(__file__).resolve().parents[2]

# ------------------------------------------------------------------------------------------------ the data


def test_a_stack_is_found_by_its_torch_whatever_the_build() -> None:
    for one in STACKS.values():
        assert stack_of(f"{one.torch}+cpu") == stack_of(one.torch) == one
    assert stack_of("1.0.0") is None


@pytest.mark.parametrize(("megatron", "name"), [("0.12.4", "llm"), ("0.16.2", "verl"), ("0.19.3", "verl")])
def test_a_stack_is_found_by_a_release_of_the_same_series(megatron: str, name: str) -> None:
    found = stack_for(megatron)
    assert found is not None
    assert found.name == name
    assert stack_for("0.99.0") is None


def test_no_script_chooses_a_release_by_a_number_of_its_own() -> None:
    for script in (*(ROOT / "ci").iterdir(), ROOT / ".ci/run"):
        if script.is_file():
            text = re.sub(r"#.*", "", script.read_text(encoding="utf-8"))
            assert not re.findall(r"\b\d+\.\d+\.\d+\b", text), script.name


def test_any_python_reads_the_data_for_the_shell() -> None:
    command = [sys.executable, "-I", "-S", str(ROOT / "ci/stacks.py"), "shell"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"STACK={DEFAULT}\n" in done.stdout
    assert f"STACK_TORCH={STACKS[DEFAULT].torch}\n" in done.stdout


# ------------------------------------------------------------------------------------------------ the set-up


def setup(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a line after `. ci/setup.sh` with nothing of the caller's environment but what is given."""
    line = f'. "{ROOT}/ci/setup.sh"; {script}'
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **variables}
    return subprocess.run(["bash", "-euo", "pipefail", "-c", line], env=environment, capture_output=True, text=True)


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


# It says yes to every question about its version.
STARTS, FAILS = "exit 0", "echo 'pyenv: python3.10: command not found' >&2; exit 127"
FIND = "use_stack; _find_python; echo $FOUND_PYTHON"


@pytest.mark.parametrize("blank", ["", " with a blank"])
def test_behind_a_shim_that_fails_the_real_interpreter_is_taken(tmp_path: Path, blank: str) -> None:
    root, wanted = tmp_path / f"pyenv{blank}", STACKS[DEFAULT].python
    program(root / f"shims/python{wanted}", FAILS)
    real = program(root / f"versions/{wanted}.7/bin/python", STARTS)
    done = setup(FIND, PATH=f"{root}/shims:{os.environ['PATH']}")
    # An interpreter of that version may stand in the rest of PATH, too: it comes first, and starts.
    assert done.stdout.strip() in (str(real), *done.stdout.strip().splitlines()[:1])
    assert str(root / "shims") not in done.stdout


def test_without_the_stacks_python_the_machines_is_taken(tmp_path: Path) -> None:
    for name in (f"python{STACKS[DEFAULT].python}", "pyenv"):
        program(tmp_path / name, FAILS)
    # The machine's python3 says no when it is asked whether it is the stack's.
    program(tmp_path / "python3", f'[[ "$*" != *stacks.py* ]] || exec "{sys.executable}" "$@"; [[ "$2" != *"v == "* ]]')
    done = setup(FIND, PATH=f"{tmp_path}:/usr/bin:/bin")
    assert Path(done.stdout.strip()).name == "python3", done.stderr


def test_an_interpreter_that_is_named_and_does_not_start_is_told(tmp_path: Path) -> None:
    done = setup(FIND, PYTHON=str(program(tmp_path / "python", FAILS)))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"PYTHON={tmp_path}/python does not start" in done.stderr


def test_an_unknown_stack_is_told() -> None:
    done = setup("use_stack nobody")
    assert (done.returncode, done.stderr.strip()) == (1, f"no stack for nobody; there are: {', '.join(STACKS)}")


def pip_with(folder: Path, *versions: str) -> str:
    """A PATH with a pip that offers these releases of everything, and writes down what it installs."""
    program(
        folder / "pip",
        f'[ "$1" = index ] && echo "Available versions: {", ".join(versions)}" || echo "$@" >>"{folder}/installed"',
    )
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("stack", "offered", "installed"),
    [
        ("llm", "{0}, {0}+cpu, 2.0.0", "torch=={0}+cpu"),
        ("llm", "9.9.9, {0}", "torch=={0}"),
        ("cpu-torch", "{0}, {0}+cpu", "torch=={0}+cpu"),
        ("newest", "{0}", "torch=={0}"),
    ],
)
def test_the_cpu_build_is_taken_where_pip_finds_one(tmp_path: Path, stack: str, offered: str, installed: str) -> None:
    torch = STACKS[stack].torch
    done = setup(f"use_stack {stack}; _install_torch", PATH=pip_with(tmp_path, offered.format(torch)))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "installed").read_text().split()[-1] == installed.format(torch)


@pytest.mark.parametrize(
    ("stack", "told"),
    [
        ("cpu-torch", "stack cpu-torch runs only with a CPU build of torch 2.13.0, and pip finds none for Python "),
        ("llm", "pip finds no torch 2.7.1 for Python "),
    ],
)
def test_a_torch_that_cannot_be_had_is_told_in_a_line(tmp_path: Path, stack: str, told: str) -> None:
    done = setup(f"use_stack {stack}; _install_torch", PATH=pip_with(tmp_path, "2.13.0"))
    assert done.returncode == (1 if stack == "llm" else 3)
    assert done.stderr.startswith(f"ci: {told}")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "installed").exists()


@pytest.mark.parametrize("stack", [one.name for one in STACKS.values() if one.cpu_build != "preferred"])
def test_beside_a_cuda_build_that_aborts_nothing_runs_on_torch_npu(tmp_path: Path, stack: str) -> None:
    done = setup(f"use_stack {stack}; torch_build() {{ echo cuda; }}; install_torch_npu || echo left out")
    assert done.stdout == "left out\n"
    (line,) = done.stderr.splitlines()
    assert "is a cuda build, beside which torch-npu" in line
    assert "put a CPU build where pip finds it" in line


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("try:\n    import triton\nexcept ImportError:\n    pass\n", "{0}/megatron-core/1:{0}/triton/{1}"),
        ("import torch\n", "{0}/megatron-core/1"),
    ],
)
def test_triton_is_on_the_path_of_a_release_that_imports_it(tmp_path: Path, source: str, path: str) -> None:
    folder = tmp_path / "megatron-core/1/megatron/core/transformer/moe"
    folder.mkdir(parents=True)
    (folder / "moe_layer.py").write_text(source)
    done = setup(f"use_stack; HOME_OF_STACK='{tmp_path}'; megatron_path 1")
    assert done.stdout.strip() == path.format(tmp_path, STACKS[DEFAULT].triton)


def test_of_a_checkout_the_package_alone_is_on_the_path(tmp_path: Path) -> None:
    checkout, home = tmp_path / "a checkout", tmp_path / "home"
    for name in ("megatron/core/package_info.py", "tests/__init__.py"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text('__version__ = "0.99.1"\n')
    done = setup(f"use_stack; HOME_OF_STACK='{home}'; link_megatron '{checkout}'; megatron_path \"$LINKED\"")
    (path,) = done.stdout.splitlines()
    assert path == f"{home}/megatron-core/0.99.1-checkout"
    assert [one.name for one in Path(path).iterdir()] == ["megatron"]
    assert (Path(path) / "megatron/core/package_info.py").exists()
    done = setup(f"use_stack; link_megatron '{tmp_path}'")
    assert (done.returncode, done.stderr.strip()) == (1, f"{tmp_path} is no checkout of Megatron-LM")


def full(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(ROOT / "ci/full.sh"), *arguments], capture_output=True, text=True)


def test_every_release_of_a_stack_is_a_part() -> None:
    listed = dict(line.split(": ") for line in full("--list").stdout.splitlines())
    assert listed.keys() == STACKS.keys()
    for name, parts in listed.items():
        assert set(STACKS[name].megatron_core) < set(parts.split())


@pytest.mark.parametrize("arguments", [("--part", "0.99.1"), ("--stack", "newest", "--part", "0.10.0")])
def test_a_part_that_no_stack_has_is_told(arguments: tuple[str, ...]) -> None:
    done = full(*arguments)
    assert done.returncode == 1
    assert done.stderr == f"ci: there is no part {arguments[-1]}; bash ci/full.sh --list prints them\n"


# ------------------------------------------------------------------------------------------------ the table


def table(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "ci/table.py"), *map(str, arguments)]
    environment = {**os.environ, "STACK": "llm", "STACK_TORCH_NPU": "1.2.3"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


JUNIT = """<testsuites><testsuite><testcase classname="a" name="b"/><testcase classname="a" name="c"/>
<testcase classname="a" name="d"><skipped message="no Chromium is on PATH"/></testcase></testsuite></testsuites>"""


def test_tables_of_parts_are_joined(tmp_path: Path) -> None:
    outcomes, one, two = tmp_path / "junit.xml", tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    outcomes.write_text(JUNIT)
    assert table("add", one, "unit", "without megatron", "", "12", "0", outcomes).returncode == 0
    assert table("leave", two, "npu", "ledger", "0.12.1", "no CPU build").returncode == 0
    done = table("show", one, two)
    assert done.returncode == 0
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[1] == ["llm", "unit", "without", "megatron", "2", "0", "1", "12", "passed"]
    assert lines[2] == ["llm", "npu", "ledger", "0.12.1", "not", "run:", "no", "CPU", "build"]
    assert f"llm: Python {sys.version.split()[0]}, torch " in done.stdout
    assert "torch-npu 1.2.3" in done.stdout
    assert "llm: skipped 1: no Chromium is on PATH" in done.stdout
    assert table("add", two, "unit", "lint", "", "1", "2", tmp_path / "none").returncode == 0
    assert table("show", one, two).returncode == 1
