"""The tables of docs/performance.md are those that the simulated runtime counts now."""

from __future__ import annotations

from pathlib import Path

import pytest

from npu import table
from npu.measured import Measured


@pytest.mark.simulated
@pytest.mark.megatron
def test_the_page_shows_what_is_counted(measured: Measured) -> None:
    assert table.written() == table.render(measured), "stale: run python -m tests.npu.table"


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n{table.END}\n")
    with pytest.raises(ValueError, match="no line '<!-- ledger: begin"):
        table.written(page)
