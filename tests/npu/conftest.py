"""What several files of tests read: the ledgers of one call in every case, and the communicators."""

from __future__ import annotations

import pytest

from npu.measured import Measured, measure


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Everything that is counted, in two launches."""
    return measure(tmp_path_factory.mktemp("measured"))
