"""Whole MoE layers in a simulated group: the same output to the last bit, or no measurement."""

from __future__ import annotations

import json

import pytest
import torch

from mindspeed_moe.bench.layer import BOTH, FORWARD
from mindspeed_moe.bench.session import run_bench
from mindspeed_moe.bench.shapes import Shape
from mindspeed_moe.environment import probe_environment
from mindspeed_moe.errors import BenchError
from mindspeed_moe.preprocess import packed
from mindspeed_moe.tables import render

pytestmark = [pytest.mark.megatron, pytest.mark.once]


def bench(*shapes, hidden=(16,), rounds=1):
    return run_bench(probe_environment(), shapes, rounds=rounds, seed=0, threads=1, hidden=hidden)


@pytest.mark.parametrize("mode", ["dropless", "drop", "pad"])
@pytest.mark.parametrize("ep", [1, 4, 8])
def test_every_mode(mode, ep):
    report = bench(Shape(8, ep, 1, 40, 2, mode), hidden=(16, 8), rounds=2)
    data = json.loads(json.dumps(report.to_dict()))
    assert [one["hidden"] for one in data["results"]] == [16, 8]
    for one in data["results"]:
        assert list(one["times"]) == [FORWARD, BOTH]
        for times in one["times"].values():
            assert list(times) == ["stock", "reference", "packed"]
            for spread in times.values():
                assert spread["elapsed"]["p50"] > 0
    text = render(*report.parts())
    assert "whole MoE layers on cpu, float32" in text
    assert text.count(BOTH) == 2


@pytest.mark.parametrize("tokens", [1, 2])
def test_fewer_tokens_than_the_others_send(tokens):
    bench(Shape(8, 8, 1, tokens, 2, "dropless"))


def test_another_order_of_tokens_is_found_out(monkeypatch):
    real = packed.split_plan

    def wrong(*arguments):
        plan = real(*arguments)
        return plan._replace(chunk_table=plan.chunk_table[::-1].copy())

    monkeypatch.setattr(packed, "split_plan", wrong)
    with pytest.raises(BenchError, match="packed: the layer differs from stock's"):
        bench(Shape(8, 4, 1, 40, 2, "dropless"))


def test_deterministic_algorithms_are_left_as_they_were():
    bench(Shape(8, 4, 1, 20, 2, "dropless"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_tokens_of_tp_peers_are_not_simulated():
    with pytest.raises(BenchError, match="allowed: --tp 1"):
        bench(Shape(8, 2, 2, 20, 2, "dropless"))
