"""From a version string to a contract generation: known, older, newer, pre-release, nonsense."""

from __future__ import annotations

import pytest

from mindspeed_moe.contract import GENERATIONS, generation_of
from mindspeed_moe.errors import ContractError

BY_RELEASE = {
    "0.10.0": "inline_copy_cpu_table",
    "0.11.0": "inline_copy",
    "0.12.0": "hook_stream_wait",
    "0.12.1": "hook_stream_wait",
    "0.12.3": "hook_stream_wait",
    "0.12.4": "hook_stream_wait",
    "0.13.1": "hook_event_wait",
    "0.14.0": "hook_event_wait",
    "0.15.3": "hook_event_wait",
    "0.16.0": "hook_event_wait_graphs",
    "0.16.1": "hook_event_wait_graphs",
    "0.16.2": "hook_event_wait_graphs",
    "0.17.1": "hook_event_wait_graphs",
    "0.18.2": "hook_event_wait_nccl_stream",
    "0.19.0": "hook_event_wait_nccl_stream",
    "0.19.2": "hook_event_wait_nccl_stream",
    "0.20.0": "hook_event_wait_nccl_stream",
}


KNOWN = list(dict.fromkeys(BY_RELEASE.values()))
NEWEST = GENERATIONS[-1].releases[-1]
NEXT = f"{NEWEST[0]}.{NEWEST[1] + 1}"


@pytest.mark.parametrize(("version", "name"), BY_RELEASE.items())
def test_every_known_release_has_its_generation(version: str, name: str) -> None:
    assert generation_of(version).name == name


def test_generations_stand_in_the_order_of_their_releases() -> None:
    assert [one.name for one in GENERATIONS][: len(KNOWN)] == KNOWN
    releases = [release for one in GENERATIONS for release in one.releases]
    assert releases == sorted(releases)


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("0.16.1+5f3c1e2", "hook_event_wait_graphs"),  # a source build: the git hash does not matter
        ("0.16.0rc0", "hook_event_wait_graphs"),
        ("0.17.0rc0+g5f3c1e2", "hook_event_wait_graphs"),
        ("0.12.0.dev20250101", "hook_stream_wait"),
        ("0.16", "hook_event_wait_graphs"),
        ("v0.16.1", "hook_event_wait_graphs"),
        ("0.16.1.post1", "hook_event_wait_graphs"),
    ],
)
def test_the_release_tuple_counts_and_nothing_else(version: str, name: str) -> None:
    assert generation_of(version).name == name


def refused(version: str) -> str:
    with pytest.raises(ContractError) as caught:
        generation_of(version)
    return str(caught.value)


@pytest.mark.parametrize(
    ("version", "age"),
    [
        ("0.9.0", "older than"),
        ("0.4.0", "older than"),
        ("0.9.0rc1", "older than"),
        ("0", "older than"),
        (f"{NEXT}.0", "newer than"),
        (f"{NEXT}.0rc0", "newer than"),
        ("1.0.0", "newer than"),
        ("2026.1", "newer than"),
        ("1", "newer than"),
    ],
)
def test_an_unknown_release_is_refused_with_what_is_known_and_what_to_do(version: str, age: str) -> None:
    message = refused(version)
    assert message.startswith(f"megatron-core {version} is {age} the releases whose contract is known (0.10, 0.11, ")
    assert f", {NEWEST[0]}.{NEWEST[1]})" in message
    assert message.endswith("use one of them, upgrade mindspeed-moe, or set `enabled: false`")


@pytest.mark.parametrize("version", ["", "latest", "0.16.1-dirty!", "none", "0..1", "zero.x"])
def test_a_version_that_is_none_is_refused(version: str) -> None:
    message = refused(version)
    assert message.startswith(f"megatron-core calls itself {version!r}, which is no version; known releases: 0.10, ")


def test_no_release_belongs_to_two_generations() -> None:
    releases = [release for one in GENERATIONS for release in one.releases]
    assert len(releases) == len(set(releases))
    assert releases == sorted(releases)


def test_a_generation_prints_its_name_and_releases() -> None:
    assert str(generation_of("0.14.0")) == "hook_event_wait (0.13, 0.14, 0.15)"
