"""Pipeline stages, some without a MoE layer: losses are stock's, records are of the right layer and step."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from distributed import pipeline
from distributed.launcher import RankPool, World
from distributed.pipeline import EXPERTS, FIRST_STEP, MICRO_BATCHES, SEQUENCE, STEPS, TOPK, Pipeline
from mindspeed_moe.report.notes import notes_of
from mindspeed_moe.report.reader import read_folder
from mindspeed_moe.report.summary import summarize

pytestmark = [pytest.mark.megatron, pytest.mark.once]

STOCK = {"dispatchers": {"alltoall": "stock"}}
_numbers = itertools.count()


def run(ranks: RankPool, job: Pipeline, config: Any) -> list[dict[str, Any]]:
    world = World(name=f"pipeline {next(_numbers)}")
    return ranks.run(pipeline.train, job, config, world=world)


@pytest.mark.parametrize(
    "job",
    [
        Pipeline(moe=(0, 0, 1, 1)),
        Pipeline(moe=(0, 1, 1, 1), recompute=True),
        Pipeline(moe=(0, 1, 1, 0), chunks=2),
    ],
    ids=["a stage without MoE", "recomputed", "interleaved"],
)
def test_stages(ranks: RankPool, job: Pipeline, tmp_path: Path) -> None:
    plain = run(ranks, job, STOCK)
    watched = {
        "dispatchers": {"alltoall": "packed"},
        "verify": "always",
        "dumps": str(tmp_path / "dumps"),
        "telemetry": {"enabled": True, "folder": str(tmp_path / "telemetry")},
    }
    found = run(ranks, job, watched)
    assert [one["losses"] for one in found] == [one["losses"] for one in plain]
    assert len(set(found[-1]["losses"])) == 2 * STEPS * MICRO_BATCHES, "the last stage's"
    assert not (tmp_path / "dumps").exists()

    telemetry = read_folder(tmp_path / "telemetry")
    moe = [number for number, is_moe in enumerate(job.moe, 1) if is_moe]
    assert sorted(telemetry.tables) == moe, "Megatron's numbers"
    for number in moe:
        stage = _stage(number, job)
        tables = telemetry.tables[number]
        assert sorted(one.layout.group[one.layout.ep_rank] for one in tables) == [2 * stage, 2 * stage + 1]
        for table in tables:
            assert table.steps.tolist() == [FIRST_STEP + step for step in range(STEPS)], "evaluation is no step"
    summary = summarize(telemetry)
    for load in summary.layers:
        rows = 2 * STEPS * MICRO_BATCHES * SEQUENCE * TOPK  # of both ranks
        assert (load.experts, load.total.sum(), load.groups) == (EXPERTS, rows, 1)
    absent = [one for one in notes_of(summary) if "left no file here" in one]
    assert len(absent) == (job.moe == (0, 0, 1, 1))

    passes = 2 * STEPS + (STEPS if job.recompute else 0)  # training, evaluation, and once more in backward
    for rank, one in enumerate(found):
        layers = sum(_stage(number, job) == rank // 2 for number in moe)
        assert one["compared"] == {"calls": layers * passes * MICRO_BATCHES, "layers": layers}


def _stage(number: int, job: Pipeline) -> int:
    """Two layers a stage; with two chunks a stage, one each, in turn."""
    return (number - 1) % 2 if job.chunks > 1 else (number - 1) // 2
