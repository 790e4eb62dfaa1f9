"""Find what a dotted path names, tell whose code stands there, and put something else in its place."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodType, ModuleType, WrapperDescriptorType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from mindspeed_moe.errors import PatchError

AnyFunction = TypeVar("AnyFunction")
MISSING: Any = type("Missing", (), {"__repr__": lambda self: "<missing>"})()

_BUILT_IN = (BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType)  # nobody patches with those


@dataclass(frozen=True)
class Slot:
    """One place that can be patched: an attribute of a module or class.

    raw: the object in the defining `__dict__`, descriptors included; MISSING when the name does not exist.
    own: whether it stands in the owner's own `__dict__`; an inherited name is deleted again on restore.
    module: the module that the path names.
    """

    path: str
    module: str
    owner: Any
    name: str
    raw: Any
    own: bool

    @property
    def place(self) -> tuple[int, str]:
        """What tells two slots apart, whatever paths lead to them."""
        return id(self.owner), self.name

    def current(self) -> Any:
        """Return what stands in the owner's own `__dict__` now, or MISSING."""
        return vars(self.owner).get(self.name, MISSING)

    def put(self, value: Any) -> None:
        """Put `value` there."""
        setattr(self.owner, self.name, value)

    def restore(self) -> None:
        """Put back the very object that was there, or delete what was not."""
        if self.own:
            setattr(self.owner, self.name, self.raw)
        else:
            delattr(self.owner, self.name)


class Switch:
    """Turns a function of ours off for whoever has kept it, such as somebody's wrapper that was put around it.

    to: what a call is passed on to; None while the function's own patch is in force. path: the target of that patch. A
    patch whose function asks this first can be taken out under somebody's wrapper.
    """

    __slots__ = ("path", "to")

    def __init__(self) -> None:
        self.to: Any = None
        self.path = ""

    def of(self, function: AnyFunction) -> AnyFunction:
        """Return the function, known from now on as one that asks this switch."""
        _SWITCHES[function] = self
        return function


_SWITCHES: WeakKeyDictionary[Any, Switch] = WeakKeyDictionary()
_LOOKED_AT = 256  # objects at most, in search of a function of ours


def switch_of(value: Any) -> Switch | None:
    """Return the switch of a function of ours, None for anything else."""
    return _SWITCHES.get(value) if type(value) is FunctionType else None


def beneath(function: Any, owner: Any) -> Switch | None:
    """Return the switch of a function of ours that a callable can reach; None when none is found.

    Followed are what a callable wraps, binds, closes over, and names: globals, and attributes of `owner`, the class or
    module that it stands in. Code that finds the function in another way is not seen through.
    """
    seen: set[int] = set()
    waiting = [unwrap(function)]
    while waiting and len(seen) < _LOOKED_AT:
        one = waiting.pop(0)
        if id(one) in seen or isinstance(one, (type, ModuleType)) or not callable(one):
            continue
        seen.add(id(one))
        switch = switch_of(one)
        if switch is not None:
            return switch
        waiting += _reached(one, owner)
    return None


def _reached(function: Any, owner: Any) -> Iterator[Any]:
    for name in ("__wrapped__", "__func__", "__self__", "func"):  # of wrappers, bound methods, functools.partial
        yield getattr(function, name, None)
    if isinstance(function, functools.partial):
        yield from (*function.args, *function.keywords.values())
    yield from getattr(function, "__defaults__", None) or ()
    yield from (getattr(function, "__kwdefaults__", None) or {}).values()
    for cell in getattr(function, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    for name in getattr(getattr(function, "__code__", None), "co_names", ()):
        yield function.__globals__.get(name)
        for base in owner.__mro__ if isinstance(owner, type) else (owner,):  # a method of the same name, behind super()
            yield unwrap(vars(base).get(name))
    if not isinstance(function, FunctionType):  # an object that is called: what it holds
        yield from getattr(function, "__dict__", {}).values()


def find(path: str) -> Slot:
    """Resolve a dotted path; the last name may be missing (raw is MISSING), anything before it may not.

    Raises PatchError naming the path and the part that is not there, or a module that cannot be imported.
    """
    module, rest = _import_longest(path)
    owner: Any = module
    for position, part in enumerate(rest[:-1]):
        inner = getattr(owner, part, MISSING)
        if inner is MISSING:
            raise PatchError(_not_there(path, ".".join((module.__name__, *rest[:position])), owner, part))
        owner = inner
    name = rest[-1]
    if not hasattr(owner, "__dict__"):
        raise PatchError(f"patch target {path}: {path.rpartition('.')[0]} is {owner!r}, which has no names to patch")
    return Slot(path, module.__name__, owner, name, _raw(owner, name), name in vars(owner))


def require(path: str) -> Slot:
    """Resolve a dotted path whose last name must exist too; PatchError names the nearest name that does."""
    slot = find(path)
    if slot.raw is MISSING:
        raise PatchError(_not_there(path, path.rpartition(".")[0], slot.owner, slot.name))
    return slot


def rewrap(raw: Any, function: Any) -> Any:
    """Put a function into the kind of descriptor that `raw` is, so that a static method stays one."""
    if isinstance(raw, (staticmethod, classmethod)):
        return type(raw)(function)
    return function


def unwrap(raw: Any) -> Any:
    """Return the function inside a static or class method, else the object itself."""
    return raw.__func__ if isinstance(raw, (staticmethod, classmethod)) else raw


def foreign(slot: Slot, home: tuple[str, ...]) -> str | None:
    """Return who stands at the slot when it is not code of the home modules, else None.

    A function belongs to the module whose namespace it runs in; that survives functools.wraps, which copies
    `__module__` from the function that it hides.
    """
    if foreign_owner(slot, home):
        return describe(slot.owner)
    for function in _chain(unwrap(slot.raw)):
        # type(), not isinstance(): a proxy such as wrapt's claims to be the function that it hides.
        if isinstance(function, type):
            at_home = function.__module__ in home
        elif type(function) in (FunctionType, MethodType):
            at_home = any(function.__globals__ is getattr(sys.modules.get(name), "__dict__", None) for name in home)
        else:
            at_home = not callable(function) or type(function) in _BUILT_IN or type(function).__module__ in home
        if not at_home:
            return locate(function)
    return None


def foreign_owner(slot: Slot, home: tuple[str, ...]) -> bool:
    """Return whether somebody has put a class of theirs in the place of the whole class."""
    return isinstance(slot.owner, type) and slot.owner.__module__ not in home


def describe(value: Any) -> str:
    """Name a callable for a person: module and qualified name; anything else as it prints."""
    value = unwrap(value)
    if value is MISSING:
        return "nothing"
    if isinstance(value, functools.partial):
        return f"partial of {describe(value.func)}"
    if not callable(value):
        return repr(value)
    code: Any = getattr(value, "__code__", None)
    runs_in = getattr(value, "__globals__", {}).get("__name__", getattr(value, "__module__", None))
    name = getattr(code, "co_qualname", None)  # Python 3.11 and newer
    if name is None:  # a wrapper calls itself as what it wraps, but for its code
        name = code.co_name if hasattr(value, "__wrapped__") and code else getattr(value, "__qualname__", repr(value))
    return f"{runs_in}.{name}" if runs_in else str(name)


def locate(value: Any) -> str:
    """Like `describe`, with file and line where they are known."""
    code = getattr(unwrap(value), "__code__", None)
    return f"{describe(value)} ({code.co_filename}:{code.co_firstlineno})" if code else describe(value)


def parameters(value: Any, *, through_wrappers: bool) -> tuple[str, ...]:
    """Return the names of a callable's parameters, in order; of a wrapper its own, or those of what it wraps."""
    return tuple(inspect.signature(unwrap(value), follow_wrapped=through_wrappers).parameters)


def _chain(function: Any) -> Iterator[Any]:
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)


def _import_longest(path: str) -> tuple[ModuleType, list[str]]:
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:end])
        try:
            return importlib.import_module(name), parts[end:]
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
                continue
            raise PatchError(f"{path}: {name} cannot be imported: {error}") from error
        except Exception as error:  # whatever a module raises while it loads
            raise PatchError(f"{path}: {name} cannot be imported: {error}") from error
    raise PatchError(f"{path}: there is no module {parts[0]!r}")


def _raw(owner: Any, name: str) -> Any:
    if isinstance(owner, type):
        for base in owner.__mro__:
            if name in vars(base):
                return vars(base)[name]
        return MISSING
    return vars(owner).get(name, MISSING)


def _not_there(path: str, owner_path: str, owner: Any, name: str) -> str:
    near = difflib.get_close_matches(name, dir(owner), n=1)
    hint = f"; the nearest name there is {near[0]!r}" if near else ""
    return f"patch target {path}: {owner_path} has no {name!r}{hint}"
