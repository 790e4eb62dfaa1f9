"""Thousands of steps: memory stays flat, rings stay small, and losses are stock's to the last bit.

The long runs are marked slow: `pytest -m slow tests/soak`. The simulated npu runs fewer steps; a step is slower there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from npu.launch import run_ranks
from soak.training import EP, IN_FLIGHT, RESIDENT, WATCHED

pytestmark = [pytest.mark.megatron, pytest.mark.once]

LIMIT_S = 3000
# What a run may take more in its last quarter: what fragmentation adds to resident memory, in bytes; and a few blocks
# of pinned memory that torch keeps for `verify`, as many as were in use at one time, which differs from run to run.
SLACK = {RESIDENT: 2 * 2**20}
WATCHED_SLACK = {**SLACK, "pinned allocations": 4}

short_and_long = pytest.mark.parametrize(
    ("device", "steps"),
    [
        pytest.param("cpu", 24, id="cpu"),
        pytest.param("cpu", 5000, id="cpu, long", marks=pytest.mark.slow),
        pytest.param("npu", 20, id="npu", marks=pytest.mark.simulated),
        pytest.param("npu", 100, id="npu, long", marks=[pytest.mark.simulated, pytest.mark.slow]),
    ],
)


@short_and_long
@pytest.mark.timeout(LIMIT_S + 60)
def test_a_long_training_takes_no_more_memory_and_gives_stocks_losses(device: str, steps: int, tmp_path: Path) -> None:
    arguments = {"device": device, "steps": steps, "implementations": ["stock", "packed", WATCHED]}
    found = run_ranks("soak", EP, tmp_path, device=device, arguments=arguments, timeout_s=LIMIT_S)
    for rank, runs in enumerate(found):
        stock, watched = runs["stock"], runs[WATCHED]
        assert stock["recomputed"]
        for name in ("packed", WATCHED):
            found_here = runs[name]
            assert found_here["recomputed"]
            assert len(found_here["losses"]) == steps * IN_FLIGHT
            pairs = zip(stock["losses"], found_here["losses"], strict=True)
            differing = [at for at, pair in enumerate(pairs) if len({*pair}) > 1]
            assert not differing, f"rank {rank}, {name}: losses {differing[:5]}, {len(differing)} in all, differ"
            assert len(set(found_here["losses"])) > steps, "the data or the weights do not change"
            assert found_here["slots"] == ([] if device == "cpu" else [1]), "a ring for each dispatcher, of one slot"
            growing = _growing(found_here["samples"], WATCHED_SLACK if name == WATCHED else SLACK)
            assert not growing, f"rank {rank}, {name}: {growing}"
        # One header, one line for the layer, one record a step; the last step's is written when the plugin ends.
        assert watched["records"] >= min(steps, 2000)
        assert watched["dumps"] == 0
        assert watched["threads afterwards"] == []


def _growing(samples: list[dict[str, int]], slack: dict[str, int]) -> list[str]:
    """What the last quarter of a run takes more than the second; counts must be equal, resident memory nearly."""
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    found = []
    for name in samples[0]:
        before, after = (max(sample[name] for sample in part) for part in (early, late))
        if after > before + slack.get(name, 0):
            found.append(f"{name}: {before} in the second quarter, {after} in the last")
    return found


def test_a_leak_would_be_noticed() -> None:
    flat: list[dict[str, Any]] = [{RESIDENT: 400 * 2**20, "pinned allocations": 3} for _ in range(40)]
    assert not _growing(flat, SLACK)
    assert _growing([{**one, RESIDENT: one[RESIDENT] + at * 2**20} for at, one in enumerate(flat)], SLACK)
    assert _growing([{**one, "pinned allocations": 3 + at // 30} for at, one in enumerate(flat)], SLACK)
    assert _growing([{**one, "pinned allocations": 3 + at} for at, one in enumerate(flat)], WATCHED_SLACK)
