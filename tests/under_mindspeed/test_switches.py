"""Flags, YAML and the dictionary of `repatch` against each other, and what of MindSpeed keeps the plugin out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from mindspeed_moe.environment import probe_megatron
from mindspeed_moe.mindspeed.conflicts import CONFLICTS
from under_mindspeed.launching import FUSED, scenario

pytestmark = pytest.mark.megatron

BOTH = [("adaptor", "plugin"), ("plugin", "adaptor")]
ALLTOALL = FUSED[:4]


def _has_row(flag: str) -> bool:
    """Whether the table has a row of this beginning for the installed release."""
    version = probe_megatron().version
    if version is None:
        return False
    major, minor = Version(version).release[:2]
    rows = (row for row in CONFLICTS if row.feature.startswith(flag))
    return any(row.releases[0] <= (major, minor) <= row.releases[1] for row in rows)


@pytest.fixture
def yaml(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        file = tmp_path / "moe.yaml"
        file.write_text(text)
        return str(file)

    return write


def ours(found: dict[str, Any]) -> bool:
    return "error" not in found and found["preprocess"][-1] == "ours"


@pytest.mark.parametrize("order", BOTH)
@pytest.mark.parametrize(
    ("flags", "text", "on"),
    [
        ((), None, True),
        ((), "enabled: true", True),
        ((), "enabled: false", False),
        (("--moe-npu-preprocess",), None, True),
        (("--no-moe-npu-preprocess",), None, False),
        (("--moe-npu-preprocess",), "enabled: false", True),
        (("--no-moe-npu-preprocess",), "enabled: true", False),
        (("--optimization-level", "1"), None, False),
        (("--optimization-level", "2"), None, True),
        (("--moe-npu-preprocess", "--optimization-level", "0"), None, False),
    ],
)
def test_what_switches_it_on(order: tuple[str, ...], flags: tuple[str, ...], text: Any, on: bool, yaml: Any) -> None:
    file = ("--mindspeed-moe-config", yaml(text)) if text else ()
    last = scenario(*order, arguments=(*ALLTOALL, *flags, *file))[-1]
    assert ours(last) is on
    assert last["implementation"] == ("packed" if on else "stock")
    contradiction = "from the launch is in force, not `enabled:" in last["log"]
    assert contradiction == (bool(flags) and flags[0].endswith("moe-npu-preprocess") and text is not None)


@pytest.mark.parametrize("order", BOTH)
def test_the_environment_names_the_file(order: tuple[str, ...], yaml: Any) -> None:
    variables = (("MINDSPEED_MOE_CONFIG", yaml("enabled: false")),)
    *_, off, on = scenario(*order, "on", variables=variables)
    assert not ours(off)
    assert off["notes"] == ["enabled: false"]
    assert ours(on)


@pytest.mark.parametrize("order", BOTH)
def test_a_value_that_is_no_switch(order: tuple[str, ...]) -> None:
    if order == BOTH[1]:
        pytest.skip("its parser knows the flag by then, and it takes no value")
    last = scenario(*order, arguments=(*ALLTOALL, "--moe-npu-preprocess", "perhaps"))[-1]
    assert last["error"] == "ConfigError: moe_npu_preprocess: 'perhaps' is not valid; allowed: true, false"


def test_both_flags_before_the_parser_knows_them() -> None:
    last = scenario(*BOTH[0], arguments=(*ALLTOALL, "--moe-npu-preprocess", "--no-moe-npu-preprocess"))[-1]
    assert last["error"].startswith("ConfigError: --moe-npu-preprocess and --no-moe-npu-preprocess: given together")


@pytest.mark.parametrize("order", BOTH)
def test_mindspore_is_refused(order: tuple[str, ...], yaml: Any) -> None:
    flags = (*ALLTOALL, "--ai-framework", "mindspore")
    last = scenario(*order, arguments=flags)[-1]
    assert last["error"].startswith("MindSpeedError: ai-framework mindspore and mindspeed_moe exclude each other")
    left = scenario(*order, arguments=(*flags, "--mindspeed-moe-config", yaml("on_conflict: skip")))[-1]
    assert not ours(left)
    assert "(on_conflict: skip)" in left["notes"][0]


@pytest.mark.skipif(not _has_row("moe-alltoall-overlap-comm"), reason="no MindSpeed for this release has it")
@pytest.mark.parametrize("order", BOTH)
def test_a_feature_that_bypasses_is_named(order: tuple[str, ...]) -> None:
    last = scenario(*order, arguments=(*ALLTOALL, "--moe-alltoall-overlap-comm"))[-1]
    assert ours(last)  # for whoever still uses Megatron's layer
    assert any(note.startswith("moe-alltoall-overlap-comm, alltoall bypasses mindspeed_moe") for note in last["notes"])
    assert "moe-alltoall-overlap-comm, alltoall bypasses mindspeed_moe" in last["log"]


@pytest.mark.parametrize("order", BOTH)
def test_without_triton_the_hook_is_taken_over_and_given_back(order: tuple[str, ...]) -> None:
    found = scenario(*order, "off", "on", "disable", double="no_triton")
    if "hook" not in found[-1]:
        pytest.skip("this release has no hook")
    enabled, off, on, disabled = (one["hook"] for one in found[1:])
    assert (enabled, off, on, disabled) == (["ours"], ["mindspeed"], ["ours"], ["mindspeed"])


# ------------------------------------------------------------------------------------------------ trees


@pytest.mark.skipif(not _has_row("moe-permute-fusion"), reason="no MindSpeed for this release is so")
@pytest.mark.parametrize("order", BOTH)
def test_a_constructor_that_takes_too_little(order: tuple[str, ...]) -> None:
    last = scenario(*order, double="narrow_init")[-1]
    if "error" not in last:
        pytest.skip("this release's constructor takes no more than the wrapper does")
    assert "with this Megatron-Core no layer can be built, with or without mindspeed_moe" in last["error"]
    assert "--moe-permute-fusion" in last["error"]


@pytest.mark.parametrize("tree", ["broken", "partless"])
def test_a_broken_tree_is_one_clear_message(tree: str, yaml: Any) -> None:
    (last,) = scenario("plugin", double=tree)
    told = {"broken": "mindspeed.patch_utils cannot be imported (ImportError: libascend_something.so", "partless": ""}
    assert last["error"].startswith("MindSpeedError: MindSpeed in ")
    assert told[tree] in last["error"]
    assert "`mindspeed: off` or `on_conflict: skip`" in last["error"]


@pytest.mark.parametrize("tree", ["broken", "partless", "no_removal"])
@pytest.mark.parametrize("text", ["on_conflict: skip", "enabled: false"])
def test_a_broken_tree_is_stock_where_that_is_asked_for(tree: str, text: str, yaml: Any) -> None:
    (last,) = scenario("plugin", double=tree, arguments=(*ALLTOALL, "--mindspeed-moe-config", yaml(text)))
    assert "error" not in last
    assert last["patches"] == 0
    assert "nothing is patched" in last["notes"][0]


@pytest.mark.parametrize("tree", ["", "broken", "no_removal"])
def test_off_does_without_mindspeed(tree: str, yaml: Any) -> None:
    flags = (*ALLTOALL, "--mindspeed-moe-config", yaml("mindspeed: off"))
    plugin, disabled = scenario("plugin", "disable", double=tree, arguments=flags)
    assert plugin["preprocess"] == ["ours"]
    assert plugin["listed"] == 0
    assert disabled["preprocess"] == ["megatron"]


def test_a_tree_that_cannot_remove_has_to_patch_first() -> None:
    last = scenario("plugin", "adaptor", double="no_removal", arguments=ALLTOALL)[-1]
    assert "import mindspeed.megatron_adaptor above mindspeed_moe.adaptor" in last["error"]
    adaptor, plugin, disabled = scenario("adaptor", "plugin", "disable", double="no_removal", arguments=ALLTOALL)
    assert plugin["preprocess"] == ["ours"]
    assert disabled["preprocess"] == adaptor["preprocess"] == ["megatron"]


def test_a_tree_that_cannot_remove_and_has_patched_the_target(yaml: Any) -> None:
    last = scenario("adaptor", "plugin", double="no_removal")[-1]
    assert last["error"].startswith("PatchConflictError")
    assert "mindspeed.core.fusions" in last["error"]
    flags = (*FUSED, "--mindspeed-moe-config", yaml("on_conflict: skip"))
    left = scenario("adaptor", "plugin", double="no_removal", arguments=flags)[-1]
    assert left["preprocess"] == ["mindspeed", "megatron"]


def test_a_second_copy_of_the_plugin() -> None:
    last = scenario("plugin", "second copy")[-1]
    assert "is there a second copy of mindspeed_moe on the path?" in last["error"]


def test_an_error_in_a_pass_leaves_nothing(yaml: Any) -> None:
    flags = (*FUSED, "--mindspeed-moe-config", yaml("device: npu"))
    adaptor, plugin, after = scenario("adaptor", "try plugin", "repatch", arguments=flags)
    assert plugin["failed"].startswith("DeviceError")
    assert plugin["listed"] == after["listed"] == 0
    assert plugin["preprocess"] == after["preprocess"] == adaptor["preprocess"]
