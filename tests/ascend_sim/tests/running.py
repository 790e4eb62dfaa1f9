"""How the tests start programs on the simulated Ascend runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.ascend_sim.launching import environment

PROGRAMS = Path(__file__).resolve().parent / "programs"


def run(
    program: str | Path,
    *arguments: str,
    timeout_s: float = 1800,
    variables: dict[str, str] | None = None,
    **settings: Any,
) -> subprocess.CompletedProcess[str]:
    """Runs a program (a file in programs/, or its text) to its end; `settings` as for `environment`."""
    command = [sys.executable]
    command += [str(PROGRAMS / program)] if isinstance(program, Path) or program.endswith(".py") else ["-c", program]
    return subprocess.run(
        [*command, *arguments],
        env=environment(**settings) | (variables or {}),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def results(program: str, *arguments: str, **settings: Any) -> dict[str, Any]:
    """Runs a program of programs/ that must succeed, and returns the JSON document that is its last line."""
    ended = run(program, *arguments, **settings)
    assert ended.returncode == 0, f"{program} ended with {ended.returncode}:\n{ended.stdout}\n{ended.stderr}"
    document: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return document
