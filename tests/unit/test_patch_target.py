"""Finding what a dotted path names, and telling whose code stands there."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers_upstream import UPSTREAM, make_upstream
from mindspeed_moe.errors import PatchError
from mindspeed_moe.patching.target import MISSING, describe, find, foreign, locate, parameters, require, rewrap, unwrap


@pytest.fixture
def upstream() -> Iterator[ModuleType]:
    with make_upstream() as module:
        yield module


def refused(path: str, resolve: Callable[[str], object] = require) -> str:
    with pytest.raises(PatchError) as caught:
        resolve(path)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ resolving


def test_a_function_of_a_module(upstream: ModuleType) -> None:
    slot = require(f"{UPSTREAM}.scale")
    assert (slot.owner, slot.name, slot.own) == (upstream, "scale", True)
    assert slot.raw is upstream.scale


def test_a_method_is_taken_raw(upstream: ModuleType) -> None:
    slot = require(f"{UPSTREAM}.Worker.run")
    assert (slot.owner, slot.own) == (upstream.Worker, True)
    assert slot.raw is vars(upstream.Worker)["run"]


@pytest.mark.parametrize(("name", "kind"), [("make", classmethod), ("check", staticmethod)])
def test_descriptors_survive(upstream: ModuleType, name: str, kind: type) -> None:
    slot = require(f"{UPSTREAM}.Worker.{name}")
    assert isinstance(slot.raw, kind)
    assert slot.raw is vars(upstream.Worker)[name]
    assert isinstance(rewrap(slot.raw, len), kind)
    assert unwrap(rewrap(slot.raw, len)) is len


def test_an_inherited_method_belongs_to_its_base(upstream: ModuleType) -> None:
    slot = require(f"{UPSTREAM}.Worker.inherited")
    assert (slot.owner, slot.own) == (upstream.Worker, False)
    assert slot.raw is vars(upstream.Base)["inherited"]
    assert slot.current() is MISSING


def test_a_class_in_a_class(upstream: ModuleType) -> None:
    assert require(f"{UPSTREAM}.Worker.Inner.deep").raw is vars(upstream.Worker.Inner)["deep"]


def test_a_name_that_is_missing_can_be_looked_for(upstream: ModuleType) -> None:
    slot = find(f"{UPSTREAM}.absent")
    assert (slot.raw, slot.own, slot.owner) == (MISSING, False, upstream)


def test_a_missing_name_tells_the_path_and_the_nearest_name(upstream: ModuleType) -> None:
    assert refused(f"{UPSTREAM}.scael") == (
        f"patch target {UPSTREAM}.scael: {UPSTREAM} has no 'scael'; the nearest name there is 'scale'"
    )
    assert refused(f"{UPSTREAM}.Worker.runs") == (
        f"patch target {UPSTREAM}.Worker.runs: {UPSTREAM}.Worker has no 'runs'; the nearest name there is 'run'"
    )


def test_a_missing_class_tells_the_nearest_class(upstream: ModuleType) -> None:
    message = refused(f"{UPSTREAM}.Wroker.run", find)
    assert message.endswith(f"{UPSTREAM} has no 'Wroker'; the nearest name there is 'Worker'")


def test_a_name_like_no_other_has_no_nearest_name(upstream: ModuleType) -> None:
    assert refused(f"{UPSTREAM}.qqqqqq").endswith("has no 'qqqqqq'")


@pytest.mark.parametrize("path", ["no_such_package.module.name", "no_such_package.name"])
def test_a_missing_module_is_named(path: str) -> None:
    assert refused(path) == f"{path}: there is no module 'no_such_package'"


def test_a_path_of_one_part_names_no_attribute() -> None:
    assert refused("scale") == "scale: there is no module 'scale'"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import no_such_dependency", "No module named 'no_such_dependency'"),
        ("from json import no_such_name", "cannot import name 'no_such_name'"),
        ("raise OSError('libcudart.so.12')", "libcudart.so.12"),
    ],
)
def test_a_module_that_breaks_on_import_tells_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    (tmp_path / "broken_upstream.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    message = refused("broken_upstream.function")
    assert message.startswith("broken_upstream.function: broken_upstream cannot be imported: ")
    assert told in message
    sys.modules.pop("broken_upstream", None)


def test_an_attribute_of_something_that_has_none(upstream: ModuleType) -> None:
    """A number has no namespace of its own in which a name could be patched."""
    assert "LIMIT" in refused(f"{UPSTREAM}.LIMIT.name")


# ------------------------------------------------------------------------------------------------ whose code


def somebody_elses(*args: Any, **kwargs: Any) -> Any:
    return None


class CallableObject:
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return None


class Proxy:
    """Forwards everything to what it wraps, as wrapt's FunctionWrapper does."""

    def __init__(self, wrapped: Any) -> None:
        self.__wrapped__ = wrapped

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)


# Before Python 3.11 the code of a function knows its bare name only.
WRAPPED = "wrapped.<locals>.<lambda>" if sys.version_info >= (3, 11) else "<lambda>"


def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(original)(lambda *args, **kwargs: original(*args, **kwargs))


class Replacement:
    def run(self, values: Any, factor: int = 2) -> Any:
        return values


FOREIGN = {
    "a function": lambda original: somebody_elses,
    "functools.wraps": wrapped,
    "functools.partial": lambda original: functools.partial(original, 1),
    "a callable object": lambda original: CallableObject(),
    "a forwarding proxy": Proxy,
    "a lambda": lambda original: lambda self: original(self),
    "a bound method": lambda original: Replacement().run,
    "a wrapped partial": lambda original: functools.update_wrapper(functools.partial(original, 1), original),
}


@pytest.mark.parametrize("name", ["scale", "Worker.run", "Worker.inherited"])
@pytest.mark.parametrize("how", FOREIGN)
def test_somebody_elses_code_is_seen(upstream: ModuleType, name: str, how: str) -> None:
    owner = upstream.Worker if name.startswith("Worker.") else upstream
    attribute = name.rpartition(".")[2]
    assert foreign(require(f"{UPSTREAM}.{name}"), (UPSTREAM,)) is None
    setattr(owner, attribute, FOREIGN[how](getattr(owner, attribute)))
    assert foreign(require(f"{UPSTREAM}.{name}"), (UPSTREAM,)) is not None


@pytest.mark.parametrize("name", ["make", "check"])
def test_somebody_elses_static_and_class_methods_are_seen(upstream: ModuleType, name: str) -> None:
    slot = require(f"{UPSTREAM}.Worker.{name}")
    assert foreign(slot, (UPSTREAM,)) is None
    setattr(upstream.Worker, name, rewrap(slot.raw, somebody_elses))
    who = foreign(require(f"{UPSTREAM}.Worker.{name}"), (UPSTREAM,))
    assert who is not None
    assert who.startswith(f"{__name__}.somebody_elses (")


def test_somebody_elses_class_is_seen(upstream: ModuleType) -> None:
    assert foreign(require(f"{UPSTREAM}.Worker"), (UPSTREAM,)) is None
    upstream.Worker = Replacement
    assert foreign(require(f"{UPSTREAM}.Worker"), (UPSTREAM,)) == f"{__name__}.Replacement"


def test_a_wrapper_below_a_wrapper_of_home_is_seen(upstream: ModuleType) -> None:
    upstream.Worker.run = wrapped(vars(upstream.Worker)["run"])
    upstream.Worker.run = upstream.decorate(vars(upstream.Worker)["run"])
    assert foreign(require(f"{UPSTREAM}.Worker.run"), (UPSTREAM,)) is not None


def test_a_wrapper_of_home_is_not_foreign(upstream: ModuleType) -> None:
    assert foreign(require(f"{UPSTREAM}.decorated"), (UPSTREAM,)) is None


def test_what_is_built_in_is_not_foreign() -> None:
    assert foreign(require("torch.Tensor.cuda"), ("torch",)) is None


def test_who_stands_there_is_told_with_file_and_line(upstream: ModuleType) -> None:
    upstream.scale = wrapped(upstream.scale)
    who = foreign(require(f"{UPSTREAM}.scale"), (UPSTREAM,))
    assert who is not None
    assert who.startswith(f"{__name__}.{WRAPPED} ({__file__}:")


# ------------------------------------------------------------------------------------------------ describing


def test_descriptions(upstream: ModuleType) -> None:
    assert describe(upstream.scale) == f"{UPSTREAM}.scale"
    assert describe(vars(upstream.Worker)["check"]) == f"{UPSTREAM}.Worker.check"
    assert describe(upstream.Worker) == f"{UPSTREAM}.Worker"
    assert describe(functools.partial(upstream.scale, 2)) == f"partial of {UPSTREAM}.scale"
    assert describe(MISSING) == "nothing"
    assert describe(None) == "None"
    assert describe(3) == "3"


def test_a_description_of_a_wrapper_names_the_wrapper(upstream: ModuleType) -> None:
    """functools.wraps copies the name of what it hides; the code object keeps its own."""
    assert describe(wrapped(upstream.scale)) == f"{__name__}.{WRAPPED}"
    assert locate(wrapped(upstream.scale)).endswith(")")


def test_parameters_of_a_wrapper_are_its_own_or_those_below(upstream: ModuleType) -> None:
    wrapper = wrapped(vars(upstream.Worker)["run"])
    assert parameters(wrapper, through_wrappers=True) == ("self", "values", "factor")
    assert parameters(wrapper, through_wrappers=False) == ("args", "kwargs")
    assert parameters(vars(upstream.Worker)["make"], through_wrappers=False) == ("cls", "size")
