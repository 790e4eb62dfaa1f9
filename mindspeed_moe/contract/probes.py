"""Prove a generation by looking at the code that is about to be replaced."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from types import ModuleType
from typing import Any

from mindspeed_moe.contract.generations import TOKEN_DISPATCHER, Fact, Generation
from mindspeed_moe.errors import ContractError


def prove(generation: Generation, version: str, patched: frozenset[str] = frozenset()) -> None:
    """Check every fact that the generation expects; imports Megatron's dispatcher module.

    patched: functions and classes that are somebody else's: nothing can be learned from looking inside of them.
    Raises ContractError naming the facts that do not hold, or why Megatron cannot be looked at.
    """
    import_whole(TOKEN_DISPATCHER)
    drift = [
        f"expected: {fact}: {_yes(wanted)}; found: {_yes(not wanted)}"
        for fact, wanted in generation.expected
        if not any(f"{fact.target}.".startswith(f"{path}.") for path in patched) and holds(fact) is not wanted
    ]
    if drift:
        raise ContractError(
            f"megatron-core {version} should keep the contract {generation}, but:\n  "
            + "\n  ".join(drift)
            + "\nUse an unmodified release, upgrade mindspeed-moe, or set `enabled: false`."
        )


def import_whole(name: str) -> ModuleType:
    """Import a module of Megatron; ContractError when it is missing, broken, or still being imported."""
    for parent in _parents(name):
        module = sys.modules.get(parent)
        spec = getattr(module, "__spec__", None)
        if getattr(spec, "_initializing", False):
            raise ContractError(
                f"{parent} is still being imported: enable the plugin before or after Megatron's import, "
                f"not in the middle of it"
            )
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = getattr(error, "name", None)
        if missing and (name == missing or name.startswith(missing + ".")):
            raise ContractError(
                f"{missing} is not there: install megatron-core or put its checkout on PYTHONPATH"
            ) from error
        raise ContractError(f"{name} cannot be imported: {error}") from error
    except Exception as error:  # a library that Megatron needs and that breaks while it loads
        raise ContractError(f"{name} cannot be imported: {error}") from error


def holds(fact: Fact) -> bool:
    """Return whether the fact is true of what is installed."""
    if fact.kind == "module":
        return importlib.util.find_spec(fact.name) is not None
    target = _resolve(fact.target)
    if target is None:
        return False
    if fact.kind == "attribute":
        return hasattr(target, fact.name)
    if fact.kind == "own":
        return fact.name in vars(target)
    if fact.kind == "parameter":
        return fact.name in inspect.signature(target).parameters
    if fact.kind == "names":
        code = getattr(inspect.unwrap(target), "__code__", None)
        return code is not None and fact.name in code.co_names
    raise AssertionError(f"unknown kind of fact {fact.kind!r}")


def _resolve(dotted: str) -> Any:
    module = import_whole(TOKEN_DISPATCHER)
    target: Any = module
    for part in dotted.removeprefix(TOKEN_DISPATCHER + ".").split("."):
        if not hasattr(target, part):
            return None
        target = getattr(target, part)
    return target


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]
