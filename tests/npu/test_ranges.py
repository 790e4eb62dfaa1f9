"""Profiles show preprocess by its parts, on the simulated npu and on the cpu; without a profiler nothing is entered."""

from __future__ import annotations

from typing import Any

import pytest

from npu.launch import run_ranks

pytestmark = pytest.mark.megatron

EP = 2
# Range -> an operator that must be inside it, in the order of time; "" for host work that no profile names.
INSIDE = {
    "npu": {"counts": "aten::sum", "exchange": "alltoall", "copy": "aten::copy_", "wait": "", "unpack": ""},
    "cpu": {"counts": "aten::sum", "exchange": "alltoall", "unpack": ""},
}


STREAMS = {"npu": ["current", "side"], "cpu": ["current"]}

Profiled = tuple[str, list[dict[str, Any]]]


@pytest.fixture(scope="module", params=[pytest.param("npu", marks=pytest.mark.simulated), "cpu"])
def profiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Profiled:
    """Return the device, and what each rank found on each stream."""
    device = request.param
    arguments = {"device": device, "ep": EP, "streams": STREAMS[device]}
    found = run_ranks("profile", EP, tmp_path_factory.mktemp("profiled"), device=device, arguments=arguments)
    return device, [rank[stream] for rank in found for stream in STREAMS[device]]


def test_every_range_stands_around_its_work(profiled: Profiled) -> None:
    device, ranks = profiled
    for found in ranks:
        assert list(found["ranges"]) == [f"mindspeed_moe.{name}" for name in INSIDE[device]]
        for name, inside in INSIDE[device].items():
            within = found["ranges"][f"mindspeed_moe.{name}"]
            assert any(inside in one for one in within) or not inside, f"{name}: {within}"
            others = {part for other, part in INSIDE[device].items() if other != name and part}
            assert not any(part in one for part in others for one in within), f"{name}: {within}"


def test_ranges_cost_the_device_nothing(profiled: Profiled) -> None:
    device, ranks = profiled
    for found in ranks:
        assert found["plain"] == found["profiled"]
        assert bool(found["plain"]) == (device == "npu")


def test_no_range_is_entered_without_a_profiler(profiled: Profiled) -> None:
    for found in profiled[1]:
        assert found["entered_profiled"], "the test could not have seen it"
        assert not found["entered_plain"]
