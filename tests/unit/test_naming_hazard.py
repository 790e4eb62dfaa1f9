"""No module of the package holds anything of Megatron's or MindSpeed's by name.

MindSpeed's `remove_patches` leaves out every module whose name contains "mindspeed", which ours does: a name that was
imported at module level would stay MindSpeed's after `repatch`. Every module is imported here and walked.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from types import ModuleType
from typing import Any

import pytest

FOREIGN = ("megatron", "mindspeed", "mindspeed_llm", "transformer_engine")


def names() -> list[str]:
    import mindspeed_moe
    import mindspeed_moe.patches

    found = []
    for package in (mindspeed_moe, mindspeed_moe.patches):
        found += [one.name for one in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return sorted({*found, "mindspeed_moe"} - {"mindspeed_moe.adaptor", "mindspeed_moe.__main__"})


def foreign(value: Any) -> str | None:
    """Return where a value is from, when it is of somebody whom MindSpeed patches; classes and functions say it."""
    module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return module if isinstance(module, str) and module.partition(".")[0] in FOREIGN else None


def held(module: ModuleType) -> list[str]:
    """Return what a module, or a class of it, holds of others, by name."""
    found = []
    for name, value in vars(module).items():
        if (origin := foreign(value)) is not None:
            found.append(f"{module.__name__}.{name} is of {origin}")
        if isinstance(value, type) and value.__module__ == module.__name__:
            for inner, attribute in vars(value).items():
                if (origin := foreign(attribute)) is not None:
                    found.append(f"{module.__name__}.{name}.{inner} is of {origin}")
    return found


@pytest.mark.megatron
def test_nothing_is_held_by_name() -> None:
    importlib.import_module("megatron.core.transformer.moe.moe_layer")
    modules = [importlib.import_module(name) for name in names()]
    assert len(modules) > 80
    assert [one for module in modules for one in held(module)] == []


@pytest.mark.megatron
def test_nor_while_the_plugin_is_enabled() -> None:
    import mindspeed_moe

    mindspeed_moe.enable({"device": "cpu", "mindspeed": "off"})
    try:
        ours = [module for name, module in sorted(sys.modules.items()) if name.partition(".")[0] == "mindspeed_moe"]
        assert [one for module in ours for one in held(module)] == []
    finally:
        mindspeed_moe.disable()


@pytest.mark.megatron
def test_a_held_name_is_found() -> None:
    """Otherwise the tests above could not fail."""
    module = ModuleType("mindspeed_moe.bad")
    module.permute = importlib.import_module("megatron.core.transformer.moe.moe_utils").permute  # type: ignore[attr-defined]
    module.utilities = importlib.import_module("megatron.core.transformer.moe.moe_utils")  # type: ignore[attr-defined]
    assert len(held(module)) == 2
