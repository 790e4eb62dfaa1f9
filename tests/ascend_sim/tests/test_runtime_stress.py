"""Many host threads at once, plain and under sanitizers."""

from __future__ import annotations

import pytest

from tests.ascend_sim.tests.running import run


@pytest.mark.parametrize("sanitizer", ["", "thread", "address"])
def test_many_host_threads(sanitizer: str) -> None:
    ended = run("runtime_stress.py", "100", sanitizer=sanitizer, timeout_s=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Sanitizer" not in ended.stderr
    assert ended.stdout.splitlines()[-1] == "wrong: []"
