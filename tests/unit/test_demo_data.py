"""Batches against plain Python: every row is a piece of the text, and ranks share out one draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mindspeed_moe.demo.data import batch, load_text, text_name
from mindspeed_moe.demo.settings import Model
from mindspeed_moe.errors import ConfigError

SMALL = Model(sequence=5, batch=3, seed=7)


def numbered(length: int) -> np.ndarray:
    """A text in which every position can be told: two bytes never follow each other twice (up to 256)."""
    return np.arange(length, dtype=np.uint8)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_rows_are_consecutive_pieces_of_the_text(ranks: int) -> None:
    text = numbered(200)
    for rank in range(ranks):
        rows = batch(text, SMALL, 11, rank, ranks)
        assert rows.shape == (3, 6)
        assert rows.dtype == np.int64
        for row in rows.tolist():
            assert row == list(range(row[0], row[0] + 6))


def test_ranks_share_out_what_one_rank_would_draw() -> None:
    text = numbered(250)
    model = Model(sequence=5, batch=2, seed=7)
    together = batch(text, Model(sequence=5, batch=8, seed=7), 4, 0, 1).tolist()
    parts = [batch(text, model, 4, rank, 4).tolist() for rank in range(4)]
    assert [row for part in parts for row in part] == together


def test_a_batch_depends_on_seed_and_step_only() -> None:
    text = numbered(250)
    first = batch(text, SMALL, 0, 0, 1).tolist()
    assert first == batch(text, SMALL, 0, 0, 1).tolist()
    assert first != batch(text, SMALL, 1, 0, 1).tolist()
    assert first != batch(text, Model(sequence=5, batch=3, seed=8), 0, 0, 1).tolist()


def test_every_position_is_drawn_up_to_the_last() -> None:
    text = numbered(9)
    starts = {row[0] for step in range(200) for row in batch(text, SMALL, step, 0, 1).tolist()}
    assert starts == {0, 1, 2, 3}


def test_the_shortest_text_has_one_position(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"abcdef")
    assert batch(load_text(path, 5), SMALL, 0, 0, 1).tolist() == [[97, 98, 99, 100, 101, 102]] * 3


def test_the_default_text_is_the_language_reference() -> None:
    topics = pytest.importorskip("pydoc_data.topics").topics
    text = load_text(None, 128).tobytes().decode()
    assert len(text) > 100_000
    assert all(entry in text for entry in topics.values())
    assert "pydoc_data" in text_name(None)


@pytest.mark.parametrize("content", [b"", b"abcde"])
def test_a_short_text_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "short"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"--text .*short: has {len(content)} bytes; at least 6 are needed"):
        load_text(path, 5)


def test_an_unreadable_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--text .*absent: cannot be read: No such file"):
        load_text(tmp_path / "absent", 5)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_text(tmp_path, 5)
