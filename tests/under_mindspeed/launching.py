"""Runs scenarios on the double, each in a process of its own."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
DOUBLE = TESTS / "mindspeed_double"
FUSED = ("--num-experts", "4", "--moe-token-dispatcher-type", "alltoall", "--moe-permute-fusion")
_NOT_INHERITED = ("MINDSPEED_MOE_CONFIG", "MINDSPEED_DOUBLE", "RANK", "WORLD_SIZE", "TRAINING_BACKEND")


def search_path() -> str:
    """The double, these tests, and the folders that this interpreter's Megatron, and what it needs, were found in."""
    folders = [DOUBLE, TESTS]
    for name in ("megatron", "triton"):
        spec = importlib.util.find_spec(name)
        if spec is not None:
            folders.append(Path(next(iter(spec.submodule_search_locations or ()))).parent)
    return os.pathsep.join(map(str, folders))


@functools.cache
def _zygote() -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    environment |= {"PYTHONPATH": search_path(), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "under_mindspeed.zygote"],
        env=environment,
        cwd=tempfile.gettempdir(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@functools.cache
def scenario(
    *steps: str, arguments: tuple[str, ...] = FUSED, double: str = "", variables: tuple[tuple[str, str], ...] = ()
) -> list[dict[str, Any]]:
    """Return what stands after each step; an `error` ends it. double: quirks of the tree, see the double's README."""
    zygote = _zygote()
    assert zygote.stdin is not None
    assert zygote.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        request = {
            "arguments": [*steps, "--", *arguments],
            "variables": {"MINDSPEED_DOUBLE": double, **dict(variables)},
            "stdout": str(out),
            "stderr": str(err),
        }
        print(json.dumps(request), file=zygote.stdin, flush=True)
        code, log = zygote.stdout.readline().strip(), err.read_text()
        assert code == "0", log
        found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["step"] for one in found] == list(steps[: len(found)])
    for one in found:
        one["log"] = log
    return found


def together(job: str, ranks: int, folder: Path, *arguments: str, double: str = "") -> list[Any]:
    """Return what a job told, by rank: `python -m under_mindspeed.JOB RANK RANKS RENDEZVOUS -- ARGS...`."""
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    environment |= {
        "PYTHONPATH": search_path(),
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "OMP_NUM_THREADS": "1",
        "MINDSPEED_DOUBLE": double,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", f"under_mindspeed.{job}", str(rank), str(ranks)]
            + [str(folder / "rendezvous"), "--", *arguments],
            env=environment,
            cwd=tempfile.gettempdir(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    told = []
    for process in processes:
        out, err = process.communicate(timeout=1800)
        assert process.returncode == 0, err
        told.append(json.loads(out.splitlines()[-1]))
    return told
