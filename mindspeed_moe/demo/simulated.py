"""The demo on the simulated Ascend runtime, beside the cpu. Needs a checkout: that runtime is a test tool."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from mindspeed_moe.demo.report import SUMMARY
from mindspeed_moe.demo.settings import Settings
from mindspeed_moe.errors import ConfigError
from mindspeed_moe.files import read_text

_RUNTIME = "tests.ascend_sim"
_PASSED_ON = ("tp", "ep", "etp", "processes", "steps", "device", "dispatcher", "verify")


def run_simulated(settings: Settings) -> dict[str, Any] | None:
    """Run the demo for `settings` on the simulated runtime; returns its summary, None when it failed.

    Raises ConfigError outside of a checkout of the project.
    """
    try:
        found = importlib.util.find_spec(_RUNTIME)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ConfigError(
            "--simulated: the simulated Ascend runtime is not installed with the package; run "
            "`python -m mindspeed_moe demo --device npu --simulated` in the root folder of a checkout of the project"
        )
    options = [f"--{name}={getattr(settings, name)}" for name in _PASSED_ON]
    options.append("--within-simulation")
    options.append(f"--implementations={','.join(settings.implementations)}")
    if settings.text is not None:
        options.append(f"--text={settings.text}")
    with tempfile.TemporaryDirectory(prefix="mindspeed-moe-") as folder:
        python = [sys.executable, "-m"]
        command = [*python, _RUNTIME, *python, "mindspeed_moe", "demo", *options, f"--out={folder}"]
        if subprocess.run(command, check=False, stdout=sys.stdout).returncode:
            return None
        summary: dict[str, Any] = json.loads(read_text(Path(folder) / SUMMARY))
        return summary


def beside_cpu(npu: dict[str, Any], cpu: dict[str, Any]) -> dict[str, Any]:
    """Return one summary of both runs: every implementation on both, `simulated npu` and `cpu`.

    largest_relative_difference: of any loss of the simulated npu from the cpu's, at the same step. The npu's times
    are left out: a simulation says nothing about them.
    """
    runs = {f"{name}, cpu": run for name, run in cpu["implementations"].items()}
    for name, run in npu["implementations"].items():
        timeless = {
            key: value for key, value in run.items() if key not in ("preprocess", "seconds", "tokens_per_second")
        }
        runs[f"{name}, simulated npu"] = timeless
    differences = {
        name: max(
            abs(a - b) / abs(b) for a, b in zip(run["losses"], cpu["implementations"][name]["losses"], strict=True)
        )
        for name, run in npu["implementations"].items()
    }
    return {
        **cpu,
        "simulated": True,
        "bit_identical": npu["bit_identical"] and cpu["bit_identical"],
        "largest_relative_difference": differences,
        "implementations": runs,
    }


def comparison_table(summary: dict[str, Any]) -> Table:
    """Return the losses of the simulated npu beside the cpu's: one row an implementation."""
    table = Table(
        title="The same training on the simulated npu and on the cpu (times of a simulation are not measured)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in ("preprocess", "last loss, simulated npu", "last loss, cpu", "largest relative difference"):
        table.add_column(column)
    for name, difference in summary["largest_relative_difference"].items():
        npu, cpu = (summary["implementations"][f"{name}, {where}"] for where in ("simulated npu", "cpu"))
        table.add_row(name, f"{npu['last_loss']:.6f}", f"{cpu['last_loss']:.6f}", f"{difference:.1e}")
    return table
