"""Keeps what the tests of this folder saw, for docs/reliability.md."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from faults.launch import Outcome
from faults.scenarios import Scenario


@pytest.fixture
def record_fault(request: pytest.FixtureRequest) -> Callable[[Scenario, Outcome], None]:
    """Return what takes a scenario that came out as it must; it goes to the file of --record-faults."""
    from faults.record import record

    file = request.config.getoption("--record-faults")

    def keep(scenario: Scenario, outcome: Outcome) -> None:
        if file is not None:
            record(file, scenario, outcome)

    return keep
