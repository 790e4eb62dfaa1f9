"""Each fault: what every rank says, within how long it has ended, and what is left.

Marked by device: gloo on the host, and the simulated Ascend runtime.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.launch import Outcome, line_that_says, run
from faults.scenarios import FAULTY, NO_FAULT, NPU, SCENARIOS, Scenario, named
from faults.training import AFTER, BEFORE, RANKS

pytestmark = [pytest.mark.megatron, pytest.mark.once]


_undisturbed: dict[str, Outcome] = {}


def rows() -> list[Any]:
    return [pytest.param(one, id=one.id, marks=list(_marks(one))) for one in SCENARIOS]


def _marks(one: Scenario) -> Iterator[Any]:
    if one.device == NPU:
        yield pytest.mark.simulated
    if one.slow:
        yield pytest.mark.slow


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


def undisturbed(device: str, root: Path) -> Outcome:
    """A run without a fault."""
    if device not in _undisturbed:
        _undisturbed[device] = run(named(device, NO_FAULT), root / "undisturbed")
    return _undisturbed[device]


@pytest.mark.parametrize("scenario", rows())
def test_fault(scenario: Scenario, root: Path, record_fault: Any) -> None:
    alone = undisturbed(scenario.device, root)
    outcome = alone if scenario.name == NO_FAULT else run(scenario, root)
    told = "\n".join(f"--- rank {rank}: {one.code}\n{one.log[-3000:]}" for rank, one in enumerate(outcome.ranks))
    assert outcome.broken == (), told
    if scenario.ends:
        _ended(scenario, outcome, told)
    else:
        _went_on(scenario, outcome, alone, told)
    assert len(outcome.dumps) == scenario.dumps, (outcome.dumps, told)
    _lost_no_more_than_the_last_step(scenario, outcome)
    record_fault(scenario, outcome)


def _ended(scenario: Scenario, outcome: Outcome, told: str) -> None:
    assert all(one.code for one in outcome.ranks), f"a rank ended well\n{told}"
    assert max(outcome.seconds) < scenario.within_s, told
    for rank, one in enumerate(outcome.ranks):
        wanted = scenario.faulty if rank == FAULTY else scenario.others
        assert line_that_says(wanted, one) is not None, f"rank {rank} must say {wanted!r}\n{told}"
    assert all(BEFORE <= steps < BEFORE + AFTER for steps in outcome.steps), told


def _went_on(scenario: Scenario, outcome: Outcome, alone: Outcome, told: str) -> None:
    assert [one.code for one in outcome.ranks] == [0] * RANKS, told
    for found, wanted in zip(outcome.losses, alone.losses, strict=True):
        assert found is not None, told
        assert wanted is not None
        assert len(wanted) == BEFORE + AFTER
        assert found[: len(wanted)] == wanted, told
    if scenario.warns:
        assert re.search(scenario.warns, outcome.ranks[FAULTY].log), told


def _lost_no_more_than_the_last_step(scenario: Scenario, outcome: Outcome) -> None:
    """One record a step and rank, whatever their numbers: those begin anew with the plugin."""
    for rank, steps in enumerate(outcome.steps):
        recorded = len([of for _, of in outcome.records if of == rank])
        if scenario.records is not None and (rank == FAULTY or scenario.everywhere):
            assert recorded == scenario.records, (rank, steps, outcome.records)
        elif scenario.ends:
            assert steps - 1 <= recorded <= steps + 1, (rank, steps, outcome.records)
        else:
            assert recorded == BEFORE + AFTER, (rank, steps, outcome.records)
