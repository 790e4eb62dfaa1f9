"""The tables of docs/performance.md are those that the simulated runtime counts now."""

from __future__ import annotations

from pathlib import Path

import pytest

from npu import table
from npu.measured import Measured


@pytest.mark.simulated
@pytest.mark.megatron
def test_the_page_shows_what_is_counted(request: pytest.FixtureRequest) -> None:
    from megatron.core import __version__

    if __version__ != table.RELEASE:
        pytest.skip(f"docs/performance.md is of megatron-core {table.RELEASE}")
    measured: Measured = request.getfixturevalue("measured")  # asked for late: it takes minutes
    assert table.written() == table.render(measured), "stale: run python -m tests.npu.table"


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n{table.END}\n")
    with pytest.raises(ValueError, match="no line '<!-- ledger: begin"):
        table.written(page)
