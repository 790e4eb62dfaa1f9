"""Every order of imports, and what happens to a running launch in each: one table of outcomes.

Whose code stands is told by the code of the method itself, not by what the plugin says of it.
"""

from __future__ import annotations

import pytest

from under_mindspeed.launching import scenario

pytestmark = pytest.mark.megatron

# preprocess from the outermost wrapper inwards, the hook, and how many patches the plugin says are in force
OURS = (["mindspeed", "ours"], ["ours"], 2)
STOCK = (["mindspeed", "megatron"], ["megatron"], 0)
GONE = (["mindspeed", "megatron"], ["megatron"], None)
PLAIN = (["megatron"], ["megatron"], None)
WAITING = (None, None, 0)
NOTHING = (None, None, None)

# What happens to a launch, in this order, and what must stand after it.
LIFE = (
    ("repatch", OURS),
    ("repatch", OURS),
    ("wipe", OURS),
    ("repatch", OURS),
    ("off", STOCK),
    ("on", OURS),
    ("disable", GONE),
    ("repatch", GONE),
    ("enable", OURS),
    ("repatch", OURS),
)
# MindSpeed-LLM has a `repatch` of its own, which parses the command line anew and knows no switch of an earlier one.
LIFE_LLM = (
    ("llm repatch", OURS),
    ("llm repatch", OURS),
    ("wipe", OURS),
    ("llm repatch", OURS),
    ("disable", GONE),
    ("llm repatch", GONE),
    ("enable", OURS),
    ("llm repatch", OURS),
)

ORDERS = {
    "adaptor first": ((("adaptor", GONE), ("plugin", OURS)), LIFE),
    "plugin first": ((("plugin", WAITING), ("adaptor", OURS)), LIFE),
    "plugin between": ((("managers", NOTHING), ("plugin", WAITING), ("adaptor", OURS)), LIFE),
    "plugin between two adaptors": ((("adaptor", GONE), ("plugin", OURS), ("llm", OURS)), LIFE),
    "Megatron first, then the adaptor": ((("megatron", PLAIN), ("adaptor", GONE), ("plugin", OURS)), LIFE),
    "Megatron first, then the plugin": (
        (("megatron", PLAIN), ("plugin", (["megatron"], ["megatron"], 0)), ("adaptor", OURS)),
        LIFE,
    ),
    "under NoExecuteFunction": ((("quiet adaptor", NOTHING), ("plugin", WAITING), ("run adaptor", OURS)), LIFE),
    "MindSpeed-LLM first": ((("llm", GONE), ("plugin", OURS)), LIFE_LLM),
    "MindSpeed-LLM last": ((("plugin", WAITING), ("llm", OURS)), LIFE_LLM),
}

TREES = ("", "owner_kept", "add_feature")


def flat(order: str) -> list[tuple[str, tuple[object, object, object]]]:
    imports, life = ORDERS[order]
    return [*imports, *life]


CELLS = [
    pytest.param(order, position, id=f"{order}: {position} {step}")
    for order in ORDERS
    for position, (step, _) in enumerate(flat(order))
]


@pytest.mark.parametrize(("order", "position"), CELLS)
def test_whose_code_stands(order: str, position: int) -> None:
    steps = flat(order)
    found = scenario(*(step for step, _ in steps))
    assert "error" not in found[-1], found[-1]
    one = found[position]
    # Before 0.12 there is no hook to stand in; the rest is the same.
    preprocess, hook, patches = steps[position][1]
    assert one.get("preprocess") == preprocess
    assert one.get("implementation") in (None, "packed" if patches else "stock"), "the plan says what stands"
    if "hook" in found[-1]:
        assert one.get("hook") == hook
        assert one.get("patches") == patches


@pytest.mark.parametrize("order", ORDERS)
def test_the_feature_is_listed_once_while_it_is_enabled(order: str) -> None:
    for (step, _), one in zip(flat(order), scenario(*(step for step, _ in flat(order))), strict=True):
        enabled = "patches" in one
        assert one["listed"] == enabled, step


@pytest.mark.parametrize("tree", TREES[1:])
@pytest.mark.parametrize("order", ["adaptor first", "plugin first"])
def test_other_trees(order: str, tree: str) -> None:
    steps = flat(order)
    found = scenario(*(step for step, _ in steps), double=tree)
    assert [one.get("preprocess") for one in found] == [wanted[0] for _, wanted in steps]


def test_plugin_first_says_that_it_waits() -> None:
    waiting, patched = scenario(*(step for step, _ in flat("plugin first")))[:2]
    assert waiting["notes"][0].startswith("mindspeed_moe is not in force yet: MindSpeed is on the path")
    assert "mindspeed_moe is not in force yet" in waiting["log"]
    assert waiting["implementation"] == "stock"
    assert not any("waits" in note for note in patched["notes"])
    assert patched["implementation"] == "packed"
    assert "mindspeed_moe is in force under MindSpeed" in patched["log"], "who was told to wait is told the end"
    assert "patches go through MindSpeed's manager" in patched["notes"]


def test_megatron_first_says_what_is_too_late() -> None:
    _, waiting, _ = scenario(*(step for step, _ in flat("Megatron first, then the plugin")))[:3]
    assert "imported already, which is not too late for mindspeed_moe" in waiting["notes"][0]
