"""Wrappers of other people's around ours, through everything that MindSpeed's manager does to patches."""

from __future__ import annotations

from typing import Any

import pytest

from under_mindspeed.launching import FUSED
from under_mindspeed.test_trouble import states

pytestmark = pytest.mark.megatron

PLAIN = FUSED[:4]  # MindSpeed itself wraps preprocess only with --moe-permute-fusion
TREES = ["", "owner_kept"]


def last(*steps: str, **more: Any) -> dict[str, Any]:
    return list(states("adaptor", "plugin", *steps, **more).values())[-1]


def hook(found: dict[str, Any]) -> Any:
    return found.get("hook", ["no hook"])


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("passes", [("repatch",), ("repatch", "repatch"), ("off", "on")])
def test_a_wrapper_stays_through_passes_and_ours_comes_back_beneath_it(passes: tuple[str, ...], tree: str) -> None:
    found = last("user patch", *passes, arguments=PLAIN, double=tree)
    assert found["preprocess"] == ["under_mindspeed"]
    assert found["beneath"] == ["ours"]
    assert hook(found) in (["ours"], ["no hook"])
    assert found["implementation"] == "packed"


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("end", ["off", "disable", "remove", "try bad file"])
@pytest.mark.parametrize("before", [(), ("repatch",)])
def test_a_unit_comes_out_as_a_whole_under_a_wrapper(before: tuple[str, ...], end: str, tree: str) -> None:
    """Whatever takes it out; a layer would else get our splits with nobody to wait for them."""
    found = last("user patch", *before, end, arguments=PLAIN, double=tree)
    assert found["preprocess"] == ["under_mindspeed"]
    assert found["beneath"] == ["megatron"]
    assert hook(found) in (["megatron"], ["no hook"])


@pytest.mark.parametrize("tree", TREES)
def test_it_is_on_again_after_disable(tree: str) -> None:
    found = last("user patch", "disable", "enable", arguments=PLAIN, double=tree)
    assert found["beneath"] == ["ours"]
    assert found["implementation"] == "packed"


@pytest.mark.parametrize("tree", TREES)
def test_a_preprocess_that_does_not_call_ours_is_named(tree: str) -> None:
    found = last("user replacement", "try repatch", arguments=PLAIN, double=tree)
    assert found["failed"].startswith("PatchConflictError")
    assert "_user_replacement" in found["failed"]
    assert found["preprocess"] == ["under_mindspeed"]
    assert hook(found) in (["megatron"], ["no hook"])


@pytest.mark.parametrize("tree", TREES)
def test_a_wrapper_over_a_method_that_mindspeed_patches_too_is_named_when_it_is_taken_off(tree: str) -> None:
    """With --moe-permute-fusion MindSpeed puts its own around preprocess in each pass, with and without the plugin."""
    found = last("user patch", "repatch", arguments=FUSED, double=tree)
    assert found["preprocess"] == ["mindspeed", "ours"]
    assert "of_a_user (" in found["log"]
    assert "MindSpeed has taken it off, as it does without mindspeed_moe too" in found["log"]


@pytest.mark.parametrize("tree", TREES)
def test_a_wrapper_stays_when_mindspeed_begins_to_patch_the_method(tree: str) -> None:
    found = last("user patch", "verl", arguments=PLAIN, double=tree)  # its words turn --moe-permute-fusion on
    assert found["preprocess"][0] == "mindspeed"
    assert "under_mindspeed" in found["wrappers"]
    assert found["beneath"] == ["ours"]
    assert hook(found) in (["ours"], ["no hook"])
    off = last("user patch", "verl", "disable", arguments=PLAIN, double=tree)
    assert off["preprocess"] == ["under_mindspeed"]
    assert off["beneath"] == ["megatron"]
    assert hook(off) in (["megatron"], ["mindspeed"], ["no hook"])
