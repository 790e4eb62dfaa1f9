"""Telemetry of a launch that makes its process groups anew: every row under the rank that the process had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distributed.launcher import RankPool, World
from distributed.restart import STEPS, reversed_ranks, tokens_of
from mindspeed_moe.report.reader import read_folder

pytestmark = [pytest.mark.megatron, pytest.mark.once]

SIZE = 4  # ranks, and experts


def test_rows_go_under_the_new_ranks(ranks: RankPool, tmp_path: Path) -> None:
    folder = tmp_path / "telemetry"
    world = World(SIZE, 1, name="ranks in reverse order")  # nobody else's: it is not left as it was
    assert ranks.run(reversed_ranks, str(folder), world=world) == [[rank, 3 - rank] for rank in range(SIZE)]
    every = sum(map(tokens_of, range(SIZE)))
    telemetry = read_folder(folder)
    assert (telemetry.ranks, telemetry.repeated, telemetry.others) == (tuple(range(SIZE)), 0, ())
    (tables,) = telemetry.tables.values()
    assert len(tables) == SIZE
    for table in tables:
        owner = table.layout.ep_rank
        assert table.steps.tolist() == list(range(2 * STEPS))
        assert table.tokens.tolist() == [[every if owner >= SIZE - 2 else 0]] * 2 * STEPS
        assert (table.sent.sum(1) == table.sent[:, -2:].sum(1)).all()
        assert table.sent[0].sum() % tokens_of(owner) == 0, "what this rank sent, under either process"
        assert (table.sent == table.sent[0]).all()
    words = {json.loads(path.read_text().splitlines()[0])["run"] for path in folder.glob("*.jsonl")}
    assert len(words) == 1
