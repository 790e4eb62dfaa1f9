"""What a launch may do in the middle: classes that come and go, errors in a pass, other people's patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mindspeed_moe.contract import generation_of
from mindspeed_moe.contract.generations import HOOK
from mindspeed_moe.environment import probe_megatron
from under_mindspeed.launching import FUSED, scenario

ALLTOALL = FUSED[:4]
OVERLAP = (*ALLTOALL, "--moe-alltoall-overlap-comm")
BOTH = [("adaptor", "plugin"), ("plugin", "adaptor")]

pytestmark = pytest.mark.megatron


def states(*steps: str, **more: Any) -> dict[str, dict[str, Any]]:
    """Return what stands after each step, by its number and name; none of them may fail."""
    found = scenario(*steps, **more)
    assert "error" not in found[-1], found[-1]
    return {f"{number} {one['step']}": one for number, one in enumerate(found)}


@pytest.mark.parametrize("tree", ["", "owner_kept"])
@pytest.mark.parametrize("order", BOTH)
def test_a_layer_class_that_comes_and_goes(order: tuple[str, ...], tree: str) -> None:
    """MindSpeed's class stands for MoELayer with overlap; ours must follow, and the launch must not end."""
    steps = ("experts decide", *order, "overlap off", "overlap on", "overlap off", "disable")
    found = list(states(*steps, arguments=OVERLAP, double=tree).values())[2:]
    assert [one["layer"] for one in found] == ["mindspeed", "megatron", "mindspeed", "megatron", "megatron"]
    assert [one["constructor"][-1] for one in found[:4]] == ["ours"] * 4
    assert found[4]["constructor"] == ["megatron"]
    assert [one["preprocess"] for one in found] == [["ours"]] * 4 + [["megatron"]]


@pytest.mark.parametrize("order", BOTH)
def test_a_tree_that_cannot_work_is_stock_where_that_is_asked_for(order: tuple[str, ...], tmp_path: Path) -> None:
    if generation_of(str(probe_megatron().version)).adapter != HOOK:
        pytest.skip("this release has no hook for the double to replace")
    file = tmp_path / "moe.yaml"
    file.write_text("on_conflict: skip\n")
    last = scenario(*order, arguments=(*FUSED, "--mindspeed-moe-config", str(file)), double="narrow_init")[-1]
    if last["preprocess"][-1] == "ours":
        pytest.skip("this release's constructor takes no more than the wrapper does")
    assert "no layer can be built" in last["notes"][0]
    assert last["implementation"] == "stock"
    assert last["listed"] == 1, "Megatron's parser must still know --mindspeed-moe-config"


@pytest.mark.parametrize("order", BOTH)
def test_switching_off_works_where_it_cannot_be_switched_on(order: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "moe.yaml"
    file.write_text("device: npu\n")
    last = scenario(*order, arguments=(*ALLTOALL, "--no-moe-npu-preprocess", "--mindspeed-moe-config", str(file)))[-1]
    assert last["notes"] == ["moe_npu_preprocess: False"]
    assert last["implementation"] == "stock"


@pytest.mark.parametrize("tree", ["", "owner_kept"])
def test_a_pass_that_ends_in_an_error(tree: str) -> None:
    """MindSpeed has removed everything by then; `disable` leaves Megatron as it was."""
    found = states("adaptor", "plugin", "try bad file", "disable", "repatch", double=tree)
    failed, disabled, repatched = list(found.values())[2:]
    assert failed["failed"].startswith("ConfigError: /nowhere.yaml")
    assert failed["implementation"] == "stock"
    assert "has taken the patches out" in failed["notes"][0]
    assert disabled["preprocess"][-1] == "megatron"
    assert repatched["preprocess"] == ["mindspeed", "megatron"]


def test_a_users_patch_over_ours_is_left_alone() -> None:
    found = list(states("adaptor", "plugin", "user patch", "disable").values())
    assert found[2]["preprocess"] == ["under_mindspeed"]
    assert found[3]["preprocess"] == ["under_mindspeed"]
    assert "MoEAlltoAllTokenDispatcher.preprocess was patched over by" in found[3]["log"]
    if "hook" in found[3]:
        assert found[3]["hook"] == ["megatron"]


@pytest.mark.parametrize("on_conflict", ["error", "skip", "replace"])
def test_a_users_patch_beneath(on_conflict: str, tmp_path: Path) -> None:
    file = tmp_path / "moe.yaml"
    file.write_text(f"on_conflict: {on_conflict}\n")
    arguments = (*FUSED, "--mindspeed-moe-config", str(file))
    found = scenario("adaptor", "user patch", "try plugin", "disable", arguments=arguments)
    plugin, disabled = found[2:]
    if on_conflict == "error":
        assert plugin["failed"].startswith("PatchConflictError")
    expected = {"error": ["under_mindspeed"], "skip": ["under_mindspeed"], "replace": ["mindspeed", "ours"]}
    assert plugin["preprocess"] == expected[on_conflict]
    assert disabled["preprocess"] == ["under_mindspeed"]


def test_nothing_of_ours_stays_in_the_manager() -> None:
    """An entry of ours that had stayed would put Megatron's methods back over what our own engine has patched."""
    beside, repatched = list(
        states("adaptor", "plugin", "off", "disable", "enable beside", "repatch", arguments=ALLTOALL).values()
    )[4:]
    assert beside["preprocess"] == repatched["preprocess"] == ["ours"]


@pytest.mark.parametrize("order", BOTH)
def test_alltoall_seq_stays_stock_under_overlap(order: tuple[str, ...]) -> None:
    """MindSpeed's dispatcher reads a table there that only Megatron's preprocess leaves."""
    arguments = ("--num-experts", "4", "--moe-token-dispatcher-type", "alltoall_seq", "--moe-alltoall-overlap-comm")
    last = scenario(*order, arguments=arguments)[-1]
    if last["seq"] is None:
        pytest.skip("this release has no alltoall_seq")
    assert last["seq"] == ["megatron"]
    assert any("alltoall_seq stays stock" in note for note in last["notes"])


def test_a_tree_that_cannot_remove_still_reads_the_launch() -> None:
    for flags, told in (
        (("--no-moe-npu-preprocess",), "moe_npu_preprocess: False"),
        (("--ai-framework", "mindspore"), "MindSpeedError: ai-framework mindspore"),
    ):
        last = scenario("adaptor", "plugin", arguments=(*ALLTOALL, *flags), double="no_removal")[-1]
        assert last.get("error", "").startswith(told) or last["notes"] == [told]
        assert last.get("preprocess", ["megatron"]) == ["megatron"]


def test_allgather_is_said_at_run_time_too() -> None:
    last = scenario("adaptor", "plugin", arguments=("--num-experts", "4", "--moe-token-dispatcher-type", "allgather"))[
        -1
    ]
    assert any(note.startswith("allgather dispatcher bypasses mindspeed_moe") for note in last["notes"])


# ------------------------------------------------------------------------------------------------ hooks


@pytest.mark.parametrize("order", BOTH)
def test_hooks_are_called_with_a_namespace_and_with_a_config(order: tuple[str, ...]) -> None:
    """Twice each, as MindSpeed does for every TransformerConfig that is made: nothing changes, nothing fails."""
    steps = ("validate namespace", "validate config", "validate config", "validate namespace", "repatch")
    found = list(states(*order, *steps).values())[1:]
    assert [one["preprocess"] for one in found] == [["mindspeed", "ours"]] * 6
    assert len({tuple(one["notes"]) for one in found}) == 1


@pytest.mark.parametrize("on_conflict", ["error", "skip"])
def test_a_hook_that_learns_of_mindspore_only_then(on_conflict: str, tmp_path: Path) -> None:
    file = tmp_path / "moe.yaml"
    file.write_text(f"on_conflict: {on_conflict}\n")
    arguments = (*FUSED, "--mindspeed-moe-config", str(file))
    last = scenario("adaptor", "plugin", "mindspore in the end", arguments=arguments)[-1]
    if on_conflict == "error":
        assert last["error"].startswith("MindSpeedError: ai-framework mindspore")
    else:
        assert last["preprocess"] == ["mindspeed", "megatron"]
        assert last["implementation"] == "stock"
        assert "nothing is patched any more" in last["notes"][0]
