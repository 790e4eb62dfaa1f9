"""The pool of ranks is started once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from distributed.launcher import RankPool


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    """Four processes that run jobs together."""
    pool = RankPool(4)
    yield pool
    pool.close()
