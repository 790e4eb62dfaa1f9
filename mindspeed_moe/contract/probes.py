"""Prove a contract by looking at the code that is about to be replaced, and at the code that uses its results."""

from __future__ import annotations

import dis
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any

from packaging.version import Version

from mindspeed_moe.contract.generations import LEGACY_MODULE, TOKEN_DISPATCHER, Fact, Generation
from mindspeed_moe.contract.requirements import MOE_LAYER, MOE_UTILS, UNITS, Requirement, requirements_of
from mindspeed_moe.errors import ContractError

_MODULES = (TOKEN_DISPATCHER, LEGACY_MODULE, MOE_UTILS, MOE_LAYER)

OK, DRIFTED, UNSEEN = "ok", "drifted", "not looked at"

# What Megatron may need, by the name that is imported -> what to do when it is missing.
_REMEDIES = {
    "triton": "install triton",
    "apex": "build it from github.com/NVIDIA/apex (`apex` on PyPI is another project); with MindSpeed, import "
    "mindspeed.megatron_adaptor first, which stands in for it",
    "transformer_engine": "install transformer-engine[pytorch]; with MindSpeed, import "
    "mindspeed.megatron_adaptor first, which stands in for it",
}


@dataclass(frozen=True)
class Finding:
    """One line of the comparison: what was asked of the installed release, and what was found."""

    what: str
    expected: str
    found: str
    state: str  # OK, DRIFTED, or UNSEEN when somebody else's code stands there
    why: str

    def __str__(self) -> str:
        return f"expected: {self.what}: {self.expected}; found: {self.found}"


def prove(
    generation: Generation,
    version: str,
    patched: frozenset[str] = frozenset(),
    units: Collection[str] | None = None,
) -> None:
    """Check the facts of a generation and what the patches in use require; imports Megatron's dispatcher module.

    patched: functions and classes that are somebody else's: nothing can be learned from looking inside of them.
    units: the units of the patches in use; None for every unit that the generation has.
    Raises ContractError naming what does not hold, or why Megatron cannot be looked at.
    """
    drift = [one for one in compare(generation, patched, units) if one.state == DRIFTED]
    if drift:
        raise ContractError(
            f"megatron-core {version} should keep the contract {generation}, but:\n  "
            + "\n  ".join(map(str, drift))
            + (f"\n{_pre_release(version)}" if Version(version).is_prerelease else "")
            + "\nUse an unmodified release, upgrade mindspeed-moe, or set `enabled: false`."
        )


def compare(
    generation: Generation, patched: frozenset[str] = frozenset(), units: Collection[str] | None = None
) -> tuple[Finding, ...]:
    """Return every fact and requirement beside what is installed, first the facts; parameters as of `prove`.

    Raises ContractError when Megatron's modules cannot be imported.
    """
    import_whole(TOKEN_DISPATCHER)
    findings = [_compare_fact(fact, wanted, patched) for fact, wanted in generation.expected]
    required = [one for unit in UNITS if units is None or unit in units for one in requirements_of(unit, generation)]
    findings += [_compare_requirement(requirement, patched) for requirement in required]
    # Units share functions, and what is not there is missed by every requirement of it: one line each.
    return tuple({one.what: one for one in reversed(findings)}.values())[::-1]


def _pre_release(version: str) -> str:
    return f"{version} is a pre-release: those have the contract of their own commit, not of the release they precede."


def _compare_fact(fact: Fact, wanted: bool, patched: frozenset[str]) -> Finding:
    why = "tells the generations apart"
    if _somebody_elses(fact.target, patched):
        return Finding(str(fact), _yes(wanted), "somebody else's code", UNSEEN, why)
    found = holds(fact)
    return Finding(str(fact), _yes(wanted), _yes(found), OK if found is wanted else DRIFTED, why)


def _compare_requirement(requirement: Requirement, patched: frozenset[str]) -> Finding:
    expected = f"({', '.join(requirement.names)})" if requirement.kind == "takes" else _yes(True)
    missing = _first_missing(requirement.target)
    if missing:
        return Finding(missing, "there", "not there", DRIFTED, requirement.why)
    found = None if _somebody_elses(requirement.target, patched) else _look(requirement)
    if found is None:
        return Finding(str(requirement), expected, "somebody else's code", UNSEEN, requirement.why)
    return Finding(str(requirement), expected, found, OK if found == expected else DRIFTED, requirement.why)


def _somebody_elses(target: str, patched: frozenset[str]) -> bool:
    return any(f"{target}.".startswith(f"{path}.") for path in patched)


# ------------------------------------------------------------------------------------------------ importing


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
        if isinstance(error, ModuleNotFoundError) and missing:
            raise ContractError(_dependency_missing(name, missing, error)) from error
        raise ContractError(f"{name} cannot be imported: {error}") from error
    except Exception as error:  # a library that Megatron needs and that breaks while it loads
        raise ContractError(f"{name} cannot be imported: {error}") from error


def _dependency_missing(name: str, missing: str, error: ModuleNotFoundError) -> str:
    """Say which module is missing, which one asked for it, and what to do."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    asking = [module for module in frames if not module.startswith(("importlib", "mindspeed_moe."))]
    remedy = _REMEDIES.get(missing.partition(".")[0], "install what provides it")
    return (
        f"{name} cannot be imported: there is no module {missing!r}, which {asking[-1] if asking else name} needs: "
        f"{remedy}, or use a release of megatron-core that does without it"
    )


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


# ------------------------------------------------------------------------------------------------ facts


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
    module_name = next(name for name in _MODULES if dotted.startswith(name + "."))
    target: Any = import_whole(module_name)
    for part in dotted.removeprefix(module_name + ".").split("."):
        if not hasattr(target, part):
            return None
        target = getattr(target, part)
    return target


# ------------------------------------------------------------------------------------------------ requirements


def _first_missing(dotted: str) -> str | None:
    """Return the part of a path that is not there, a module or what is inside of one; None when all of it is."""
    module = next(name for name in _MODULES if dotted.startswith(name + "."))
    if importlib.util.find_spec(module) is None:
        return module
    paths = [path for path in _parents(dotted) if path.startswith(module + ".")]
    return next((path for path in paths if _resolve(path) is None), None)


def _look(requirement: Requirement) -> str | None:
    """Return what was found, in the words of what is expected; None for code that is somebody else's."""
    kind, names = requirement.kind, requirement.names
    target = _resolve(requirement.target)
    if kind in ("has", "leaves"):
        defined = hasattr(target, names[0])
        if kind == "leaves":
            standing = inspect.getattr_static(target, names[0], None)
            # Planned beside a session that is active: what the plugin itself has put there does not speak of Megatron.
            ours = isinstance(standing, property) and not _foreign_to(standing.fget, {"mindspeed_moe.patches.waiting"})
            return _yes(ours or not defined)
        return _yes(True) if defined else _set_by_constructors(target, names[0])
    function = inspect.unwrap(target)
    if _is_foreign(function, requirement.target):
        return None
    code = getattr(function, "__code__", None)
    if code is None:
        return "no Python code to look at"
    if kind == "takes":
        return f"({', '.join(inspect.signature(function).parameters)})"
    if kind == "accepts":
        return _yes(names[0] in inspect.signature(function).parameters)
    return _yes(names[0] in _IN_CODE[kind](code))


def _set_by_constructors(owner: type, name: str) -> str | None:
    seen_all = True
    for base in owner.__mro__[:-1]:
        function = inspect.unwrap(vars(base).get("__init__", _nothing))
        code = getattr(function, "__code__", None)
        if code is not None and name in _sets(code):
            return _yes(True)
        seen_all = seen_all and (function is _nothing or not _foreign_to(function, {base.__module__}))
    return _yes(False) if seen_all else None


def _nothing() -> None:
    """Stand where a class has no constructor of its own."""


def _is_foreign(function: Any, path: str) -> bool:
    """Return whether a function runs in the namespace of no module that the class is made of: somebody put it there."""
    owner = _resolve(path.rpartition(".")[0]) if path.rpartition(".")[0] not in _MODULES else None
    homes = {base.__module__ for base in owner.__mro__} if isinstance(owner, type) else {path.rpartition(".")[0]}
    return _foreign_to(function, homes)


def _foreign_to(function: Any, homes: set[str]) -> bool:
    namespace = getattr(function, "__globals__", None)
    return namespace is not None and namespace.get("__name__") not in homes


def _reads(code: CodeType) -> set[str]:
    return {str(step.argval) for one in _nested(code) for step in dis.get_instructions(one) if _loads(step)}


def _loads(step: dis.Instruction) -> bool:
    return step.opname.startswith("LOAD_") and isinstance(step.argval, str) and "CONST" not in step.opname


def _sets(code: CodeType) -> set[str]:
    steps = (step for one in _nested(code) for step in dis.get_instructions(one))
    return {str(step.argval) for step in steps if step.opname == "STORE_ATTR"}


def _says(code: CodeType) -> set[str]:
    return {value for one in _nested(code) for value in one.co_consts if isinstance(value, str)}


_IN_CODE = {"reads": _reads, "sets": _sets, "says": _says}


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _nested(value)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
