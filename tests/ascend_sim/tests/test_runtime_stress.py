"""Many host threads at once, plain and under sanitizers."""

from __future__ import annotations

import pytest

from tests.ascend_sim.tests.running import results, run


@pytest.mark.parametrize("sanitizer", ["", "thread", pytest.param("address", marks=pytest.mark.slow)])
def test_many_host_threads(sanitizer: str) -> None:
    ended = run("runtime_stress.py", "100", sanitizer=sanitizer)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Sanitizer" not in ended.stderr
    assert ended.stdout.splitlines()[-1] == "wrong: []"


def test_the_device_waits_for_what_a_stream_had_begun_before_its_forced_end() -> None:
    found = results("runtime_forced_end.py")
    assert found["caught in the middle"]
    assert found["last byte"] == 1, "the wait ended before the task that was running"
