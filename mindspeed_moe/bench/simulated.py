"""`bench --simulated`: the same command on the simulated Ascend runtime. Needs a checkout: that is a test tool."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mindspeed_moe.errors import BenchError
from mindspeed_moe.files import read_text
from mindspeed_moe.output import put_aside_in

_RUNTIME = "tests.ascend_sim"
_RECORDER = f"{_RUNTIME}.ledger:record"


def run_simulated(options: Sequence[str]) -> str:
    """Run `bench` with options on the simulated runtime, where it counts instead of timing; returns what it reports.

    Raises BenchError outside of a checkout of the project, and when the run fails.
    """
    try:
        found = importlib.util.find_spec(_RUNTIME)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise BenchError(
            "--simulated: the simulated Ascend runtime is not installed with the package; run "
            "`python -m mindspeed_moe bench --device npu --simulated` in the root folder of a checkout of the project"
        )
    # torch_npu warns of everything that it replaces.
    bench = [sys.executable, "-W", "ignore", "-m", "mindspeed_moe", "bench", f"--ledger={_RECORDER}", *options]
    # Without delays: counts do not depend on them.
    command = [sys.executable, "-m", _RUNTIME, "--delay-us=0", *bench]
    with tempfile.TemporaryDirectory(prefix="mindspeed-moe-bench-") as folder:
        report = Path(folder) / "report"
        with (aside := Path(folder) / "aside").open("wb") as file:
            ended = subprocess.run([*command, f"--report-to={report}"], check=False, stdout=file, stderr=file)
        if ended.returncode:
            told = f"--simulated: the run on the simulated runtime ended with {ended.returncode}"
            raise BenchError("\n".join(filter(None, (told, put_aside_in(str(aside))))))
        return read_text(report)
