"""Ranges are there under a profiler and cost nothing without one."""

from __future__ import annotations

import pytest
import torch

from mindspeed_moe.preprocess.ranges import in_range, profiling


def work(number: int, *, plus: int = 0) -> int:
    torch.ones(3).sum()
    return number + plus


def test_a_step_is_a_range_of_its_own() -> None:
    step = in_range("counts", work)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert profiling()
        assert step(4, plus=3) == 7
    events = {event.name: event for event in profile.events()}
    inner = events["aten::sum"]
    while inner is not None and inner.name != "mindspeed_moe.counts":
        inner = inner.cpu_parent
    assert inner is not None, "the work is not inside the range"
    assert not profiling()


def test_under_emit_nvtx_and_the_old_profiler(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.autograd.profiler.profile():
        assert profiling()
    assert not profiling()


def test_a_backward_pass_is_profiled_too() -> None:
    """Recomputation runs preprocess in autograd's own threads."""
    seen = []
    leaf = torch.ones(2, requires_grad=True)
    leaf.mul(2).register_hook(lambda grad: seen.append(profiling()))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        doubled = leaf.mul(2)
        doubled.register_hook(lambda grad: seen.append(profiling()))
        doubled.sum().backward()
    assert seen == [True]
