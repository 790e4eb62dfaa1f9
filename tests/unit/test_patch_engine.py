"""Collect, check, apply, undo: on a stub module, so that every kind of target and every conflict can be had."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from helpers_upstream import UPSTREAM, USER, make_upstream
from mindspeed_moe.errors import PatchConflictError, PatchError
from mindspeed_moe.patching import PatchSet, PatchSpec, Switch, collect, patched_by_others
from mindspeed_moe.patching.target import Slot, require

MISSING = object()
CONTEXT = "context"


@pytest.fixture
def upstream() -> Iterator[ModuleType]:
    with make_upstream() as module:
        yield module


def spec(name: str, kind: Any = "replace", build: Callable[..., Any] | None = None, **fields: Any) -> PatchSpec:
    return PatchSpec(
        target=f"{UPSTREAM}.{name}",
        kind=kind,
        build=build or (lambda original, context: lambda *args: ("ours", context, args)),
        **{"unit": "unit", "why": "-", "how": "-", "upstream": "-", "remove_when": "-", **fields},
    )


def wrapping(original: Callable[..., Any], context: object) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(*args: Any) -> Any:
        return ("wrapped", original(*args))

    return wrapper


def collected(*specs: PatchSpec, on_conflict: Any = "error") -> PatchSet:
    return collect([(one, CONTEXT) for one in specs], on_conflict)


def refused(*specs: PatchSpec, error: type[PatchError] = PatchError, on_conflict: Any = "error") -> str:
    with pytest.raises(error) as caught:
        collected(*specs, on_conflict=on_conflict)
    assert type(caught.value) is error
    return str(caught.value)


def state(module: ModuleType) -> dict[str, int]:
    """The identity of everything in the module, its user and its classes."""
    import sys

    owners = {"": module, "Worker.": module.Worker, "Base.": module.Base, "Inner.": module.Worker.Inner}
    owners["user."] = sys.modules[USER]
    return {prefix + name: id(value) for prefix, owner in owners.items() for name, value in vars(owner).items()}


# One of each kind of target, in one set.
def every_kind() -> tuple[PatchSpec, ...]:
    return (
        spec("scale", aliases=(f"{USER}.scale",)),
        spec("Worker.run", parameters=("self", "values", "factor"), build=lambda o, c: lambda self, values, factor: 0),
        spec("Worker.inherited", "wrap", wrapping),
        spec("Worker.make"),
        spec("Worker.check", "wrap", wrapping),
        spec("absent", "supply", lambda original, context: None),
        spec("Worker.absent", "supply"),
        spec("Worker.Inner", build=lambda original, context: type("Inner", (), {})),
        spec("LIMIT", build=lambda original, context: 4),
    )


# ------------------------------------------------------------------------------------------------ what it does


def test_a_function_is_replaced(upstream: ModuleType) -> None:
    patches = collected(spec("scale"))
    assert upstream.scale([1]) == [2], "collecting changes nothing"
    patches.apply()
    assert upstream.scale([1]) == ("ours", "context", ([1],))
    patches.revert()
    assert upstream.scale([1]) == [2]


def test_a_method_is_replaced_for_instances_that_exist(upstream: ModuleType) -> None:
    worker = upstream.Worker()
    patches = collected(spec("Worker.run"))
    patches.apply()
    assert worker.run([1]) == ("ours", "context", (worker, [1]))
    patches.revert()
    assert worker.run([1]) == ("run", [2])


def test_static_and_class_methods_stay_what_they_are(upstream: ModuleType) -> None:
    patches = collected(spec("Worker.make"), spec("Worker.check"))
    patches.apply()
    assert isinstance(vars(upstream.Worker)["make"], classmethod)
    assert isinstance(vars(upstream.Worker)["check"], staticmethod)
    assert upstream.Worker.make(1) == ("ours", "context", (upstream.Worker, 1))
    assert upstream.Worker().check(1) == ("ours", "context", (1,))
    patches.revert()
    assert upstream.Worker().check(1) == ("check", 1)
    assert upstream.Worker.make(1) == (upstream.Worker, 1)


def test_an_inherited_method_is_patched_in_the_class_that_is_named(upstream: ModuleType) -> None:
    patches = collected(spec("Worker.inherited", "wrap", wrapping))
    patches.apply()
    assert upstream.Worker().inherited(1) == ("wrapped", ("base", 1))
    assert upstream.Base().inherited(1) == ("base", 1)
    patches.revert()
    assert "inherited" not in vars(upstream.Worker)
    assert upstream.Worker().inherited(1) == ("base", 1)


def test_a_name_that_does_not_exist_is_supplied_and_taken_away(upstream: ModuleType) -> None:
    patches = collected(spec("absent", "supply", lambda original, context: None), spec("Worker.absent", "supply"))
    patches.apply()
    assert upstream.absent is None
    assert upstream.Worker().absent(1)[0] == "ours"
    patches.revert()
    assert not hasattr(upstream, "absent")
    assert not hasattr(upstream.Worker, "absent")


def test_a_name_that_exists_need_not_be_supplied(upstream: ModuleType) -> None:
    before = upstream.scale
    patches = collected(spec("scale", "supply"))
    assert patches.unnecessary == (f"{UPSTREAM}.scale",)
    assert patches.swaps == ()
    patches.apply()
    assert upstream.scale is before
    patches.revert()
    assert upstream.scale is before


def test_a_wrapper_gets_the_function_and_not_the_descriptor(upstream: ModuleType) -> None:
    got: list[Any] = []

    def build(original: Any, context: object) -> Any:
        got.append(original)
        return wrapping(original, context)

    collected(spec("Worker.check", "wrap", build), spec("Worker.run", "wrap", build))
    assert got == [vars(upstream.Worker)["check"].__func__, vars(upstream.Worker)["run"]]


def test_an_alias_is_rebound_with_its_target(upstream: ModuleType) -> None:
    import sys

    user = sys.modules[USER]
    before = upstream.scale
    patches = collected(spec("scale", build=lambda original, context: lambda values: [0], aliases=(f"{USER}.scale",)))
    patches.apply()
    assert upstream.scale is user.scale is not before
    assert user.twice([1]) == [0]
    patches.revert()
    assert upstream.scale is user.scale is before


def test_an_alias_that_is_not_named_is_left_alone(upstream: ModuleType) -> None:
    """There is no blind scan of modules: what is rebound is written in the specification."""
    import sys

    patches = collected(spec("scale"))
    patches.apply()
    assert sys.modules[USER].twice([1]) == [4]
    patches.revert()


def test_a_build_gets_its_own_context(upstream: ModuleType) -> None:
    patches = collect([(spec("scale"), "first"), (spec("Worker.check"), "second")], "error")
    patches.apply()
    assert (upstream.scale()[1], upstream.Worker.check()[1]) == ("first", "second")
    patches.revert()


def test_generations_of_a_specification() -> None:
    assert spec("scale").is_for("anything")
    assert spec("scale", generations=("a", "b")).is_for("b")
    assert not spec("scale", generations=("a", "b")).is_for("c")


# ------------------------------------------------------------------------------------------------ refusals


def test_a_missing_target_is_refused_with_the_nearest_name(upstream: ModuleType) -> None:
    message = refused(spec("Worker.runn"))
    assert message.startswith(f"patch target {UPSTREAM}.Worker.runn: {UPSTREAM}.Worker has no 'runn'")
    assert message.endswith("the nearest name there is 'run'")


def test_a_missing_alias_is_refused(upstream: ModuleType) -> None:
    assert "has no 'scael'" in refused(spec("scale", aliases=(f"{USER}.scael",)))


def test_a_supplied_name_needs_an_owner(upstream: ModuleType) -> None:
    assert "has no 'Wroker'; the nearest name there is 'Worker'" in refused(spec("Wroker.absent", "supply"))


def test_a_changed_signature_is_refused(upstream: ModuleType) -> None:
    message = refused(spec("Worker.run", parameters=("self", "values")))
    assert message == (
        f"{UPSTREAM}.Worker.run has the parameters (self, values, factor); this patch was written for (self, values)"
    )


def test_a_changed_signature_of_a_class_method_is_refused(upstream: ModuleType) -> None:
    assert "(cls, size)" in refused(spec("Worker.make", parameters=("cls", "length")))


def test_a_signature_below_a_wrapper_of_upstream_is_the_one_that_counts(upstream: ModuleType) -> None:
    collected(spec("decorated", parameters=("values",), build=lambda original, context: lambda values: 0))


def test_a_replacement_with_another_signature_is_refused(upstream: ModuleType) -> None:
    parameters = ("self", "values", "factor")
    message = refused(spec("Worker.run", parameters=parameters, build=lambda o, c: lambda self, values: 0))
    assert message == f"{UPSTREAM}.Worker.run: the replacement takes ('self', 'values'), not {parameters}"


def test_a_wrapper_must_name_what_it_wraps(upstream: ModuleType) -> None:
    message = refused(spec("scale", "wrap"))
    assert message == f"{UPSTREAM}.scale: the wrapper does not name the original as __wrapped__"
    wrong = functools.wraps(upstream.decorate)(lambda *args: None)
    assert "as __wrapped__" in refused(spec("scale", "wrap", lambda original, context: wrong))


def test_two_specifications_of_one_target_are_refused(upstream: ModuleType) -> None:
    message = refused(spec("scale", unit="one"), spec("scale", unit="two"), error=PatchConflictError)
    assert message == f"{UPSTREAM}.scale is claimed twice, by the units 'one' and 'two'"


def test_an_alias_of_one_that_is_the_target_of_another_is_refused(upstream: ModuleType) -> None:
    other = spec("decorated", unit="two", aliases=(f"{UPSTREAM}.scale",))
    assert "is claimed twice" in refused(spec("scale", unit="one"), other, error=PatchConflictError)


def test_one_target_under_two_names_is_refused(upstream: ModuleType) -> None:
    upstream.Same = upstream.Worker
    message = refused(spec("Worker.run", unit="one"), spec("Same.run", unit="two"), error=PatchConflictError)
    assert "claimed twice" in message


def test_nothing_changes_when_something_is_refused(upstream: ModuleType) -> None:
    before = state(upstream)
    refused(*every_kind(), spec("no_such_name"))
    assert state(upstream) == before


def test_a_build_that_fails_changes_nothing(upstream: ModuleType) -> None:
    def build(original: Any, context: object) -> Any:
        raise RuntimeError("cannot be built")

    before = state(upstream)
    with pytest.raises(RuntimeError, match="cannot be built"):
        collected(*every_kind(), spec("decorated", build=build))
    assert state(upstream) == before


# ------------------------------------------------------------------------------------------------ conflicts


def somebody_elses(*args: Any) -> Any:
    return ("theirs", args)


# Before Python 3.11 the code of a function knows its bare name only.
THEIR_NAME = "their_wrapper.<locals>.<lambda>" if sys.version_info >= (3, 11) else "<lambda>"


def their_wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(original)(lambda *args: ("theirs", original(*args)))


THEIRS = {
    "a function": lambda original: somebody_elses,
    "functools.wraps": their_wrapper,
    "functools.partial": lambda original: functools.partial(somebody_elses, original),
}


@pytest.mark.parametrize("how", THEIRS)
def test_a_patch_of_somebody_else_is_an_error_that_tells_whose(upstream: ModuleType, how: str) -> None:
    upstream.scale = THEIRS[how](upstream.scale)
    before = state(upstream)
    message = refused(spec("scale"), error=PatchConflictError)
    assert message.startswith(f"{UPSTREAM}.scale is patched already: ")
    assert __name__ in message
    assert "set `on_conflict: skip` to leave it, `replace` to patch over it, or disable the other" in message
    assert state(upstream) == before


@pytest.mark.parametrize("how", THEIRS)
def test_a_patch_of_somebody_else_can_be_left_alone(upstream: ModuleType, how: str) -> None:
    upstream.scale = THEIRS[how](upstream.scale)
    theirs = upstream.scale
    one = spec("scale")
    patches = collected(one, on_conflict="skip")
    assert patches.swaps == ()
    ((skipped, why),) = patches.skipped
    assert skipped is one
    assert why.startswith(f"{UPSTREAM}.scale is patched already: ")
    patches.apply()
    assert upstream.scale is theirs
    patches.revert()
    assert upstream.scale is theirs


@pytest.mark.parametrize("how", THEIRS)
def test_a_patch_of_somebody_else_can_be_patched_over(upstream: ModuleType, how: str) -> None:
    upstream.scale = THEIRS[how](upstream.scale)
    theirs = upstream.scale
    patches = collected(spec("scale", "wrap", wrapping), on_conflict="replace")
    patches.apply()
    assert upstream.scale([1])[0] == "wrapped"
    assert upstream.scale([1])[1][0] == "theirs", "the wrapper calls what it found"
    patches.revert()
    assert upstream.scale is theirs


def test_the_signature_of_somebody_elses_patch_does_not_matter_when_it_is_patched_over(upstream: ModuleType) -> None:
    upstream.scale = somebody_elses
    build = lambda original, context: lambda values, factor=2: "ours"  # noqa: E731
    patches = collected(spec("scale", parameters=("values", "factor"), build=build), on_conflict="replace")
    patches.apply()
    assert upstream.scale([1]) == "ours"
    patches.revert()
    assert upstream.scale is somebody_elses


@pytest.mark.parametrize("name", ["Worker.run", "Worker.inherited", "Worker.make", "Worker.check"])
def test_every_kind_of_method_is_guarded(upstream: ModuleType, name: str) -> None:
    slot = require(f"{UPSTREAM}.{name}")
    kind = type(slot.raw) if isinstance(slot.raw, (staticmethod, classmethod)) else lambda function: function
    setattr(upstream.Worker, slot.name, kind(somebody_elses))
    assert f"{__name__}.somebody_elses (" in refused(spec(name), error=PatchConflictError)


def test_an_inherited_method_that_somebody_patched_in_the_base_is_guarded(upstream: ModuleType) -> None:
    upstream.Base.inherited = somebody_elses
    assert "somebody_elses" in refused(spec("Worker.inherited"), error=PatchConflictError)


class Theirs:
    """A class that somebody puts in the place of upstream's, methods and all."""

    def run(self, values: Any, factor: int = 2) -> Any:
        return "theirs"


def test_a_class_that_somebody_replaced_is_a_conflict(upstream: ModuleType) -> None:
    upstream.Worker = Theirs
    message = refused(spec("Worker.run"), error=PatchConflictError)
    assert "Theirs" in message


@pytest.mark.parametrize("body", [{"run": somebody_elses}, {}])
def test_a_subclass_that_somebody_put_there_is_a_conflict(upstream: ModuleType, body: dict[str, Any]) -> None:
    upstream.Worker = type("TheirWorker", (upstream.Worker,), body)
    assert f"{__name__}.TheirWorker stands there" in refused(spec("Worker.run"), error=PatchConflictError)


def test_an_alias_that_holds_something_else_is_a_conflict(upstream: ModuleType) -> None:
    import sys

    sys.modules[USER].scale = somebody_elses  # type: ignore[attr-defined]
    one = spec("scale", aliases=(f"{USER}.scale",))
    message = refused(one, error=PatchConflictError)
    assert message.startswith(f"{USER}.scale should be {UPSTREAM}.scale, but {__name__}.somebody_elses (")
    patches = collected(one, on_conflict="replace")
    patches.apply()
    assert sys.modules[USER].scale is upstream.scale
    patches.revert()
    assert sys.modules[USER].scale is somebody_elses


def test_a_unit_is_skipped_as_a_whole_and_others_are_not(upstream: ModuleType) -> None:
    upstream.Worker.check = staticmethod(somebody_elses)
    before = state(upstream)
    first, second = spec("Worker.run", unit="pair"), spec("Worker.check", unit="pair")
    third, other = spec("absent", "supply", unit="pair"), spec("scale", unit="other")
    patches = collected(first, second, third, other, on_conflict="skip")
    assert [swap.spec for swap in patches.swaps] == [other]
    assert [one for one, _ in patches.skipped] == [first, second, third]
    assert len({why for _, why in patches.skipped}) == 1
    patches.apply()
    changed = {name for name, identity in state(upstream).items() if identity != before.get(name)}
    assert changed == {"scale"}
    patches.revert()
    assert state(upstream) == before


def test_a_conflict_later_in_a_unit_skips_what_came_before(upstream: ModuleType) -> None:
    upstream.scale = somebody_elses
    patches = collected(spec("Worker.run", unit="pair"), spec("scale", unit="pair"), on_conflict="skip")
    assert patches.swaps == ()


def test_home_names_where_the_original_may_come_from(upstream: ModuleType) -> None:
    """`from elsewhere import name` at the target is no patch when the specification says so."""
    upstream.scale = somebody_elses
    collected(spec("scale", home=(__name__,)))
    refused(spec("scale", home=("json",)), error=PatchConflictError)


def test_patches_of_others_can_be_listed(upstream: ModuleType) -> None:
    upstream.scale = somebody_elses
    listed = patched_by_others([spec("scale"), spec("Worker.run"), spec("no_such_name"), spec("absent", "supply")])
    assert listed == frozenset({f"{UPSTREAM}.scale"})
    upstream.Worker = Theirs
    assert patched_by_others([spec("Worker.run")]) == frozenset({f"{UPSTREAM}.Worker.run", f"{UPSTREAM}.Worker"})


# ------------------------------------------------------------------------------------------------ all or nothing


def test_revert_restores_the_very_same_objects(upstream: ModuleType) -> None:
    before = state(upstream)
    patches = collected(*every_kind())
    patches.apply()
    changed = {name for name, identity in state(upstream).items() if identity != before.get(name)}
    methods = {f"Worker.{name}" for name in ("run", "inherited", "make", "check", "absent", "Inner")}
    assert {name for name in changed if not name.startswith("Inner.")} == methods | {
        "scale",
        "user.scale",
        "absent",
        "LIMIT",
    }
    assert patches.revert() == ()
    assert state(upstream) == before


def test_apply_and_revert_can_be_repeated(upstream: ModuleType) -> None:
    before = state(upstream)
    patches = collected(*every_kind())
    for _ in range(3):
        patches.apply()
        patches.revert()
        assert state(upstream) == before
    assert patches.revert() == (), "nothing is left to undo"


def test_patches_are_not_applied_twice(upstream: ModuleType) -> None:
    before = state(upstream)
    patches = collected(*every_kind())
    patches.apply()
    with pytest.raises(AssertionError, match="applied already"):
        patches.apply()
    patches.revert()
    assert state(upstream) == before


STEPS = 10  # swaps of every_kind(), the alias included


def test_the_number_of_steps(upstream: ModuleType) -> None:
    assert len(collected(*every_kind()).swaps) == STEPS


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("after_the_change", [False, True])
@pytest.mark.parametrize("step", range(STEPS))
def test_a_failure_at_any_step_puts_everything_back(
    upstream: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    after_the_change: bool,
    error: type[BaseException],
) -> None:
    before = state(upstream)
    patches = collected(*every_kind())
    put, calls = Slot.put, []

    def failing(self: Slot, value: Any) -> None:
        calls.append(self.path)
        last = len(calls) == step + 1
        if not last or after_the_change:
            put(self, value)
        if last:
            raise error("injected")

    monkeypatch.setattr(Slot, "put", failing)
    with pytest.raises(error, match="injected"):
        patches.apply()
    assert len(calls) == step + 1
    assert state(upstream) == before
    monkeypatch.undo()
    patches.apply()  # a failure leaves nothing behind that keeps it from being applied
    assert state(upstream) != before
    patches.revert()
    assert state(upstream) == before


def test_a_class_that_refuses_to_be_changed_puts_everything_back(upstream: ModuleType) -> None:
    """A real failure: attributes of built-in types cannot be set."""
    before = state(upstream)
    stubborn = PatchSpec(
        target="builtins.str.upper",
        kind="replace",
        build=lambda original, context: lambda self: self,
        unit="unit",
        why="-",
        how="-",
        upstream="-",
        remove_when="-",
    )
    patches = collected(*every_kind(), stubborn)
    with pytest.raises(TypeError):
        patches.apply()
    assert state(upstream) == before


# ------------------------------------------------------------------------------------------------ later patches


def switched(original: Any, context: object) -> Any:
    """A replacement that can be passed by."""
    switch = Switch()

    def ours(*args: Any) -> Any:
        return ("ours", context, args) if switch.to is None else switch.to(*args)

    return switch.of(ours)


def test_revert_under_a_wrapper_leaves_it_and_turns_the_whole_unit_off(
    upstream: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    before, original = state(upstream), upstream.scale
    patches = collected(spec("scale", build=switched), spec("Worker.run", build=switched))
    patches.apply()
    later = upstream.scale = their_wrapper(upstream.scale)
    assert upstream.scale([1]) == ("theirs", ("ours", "context", ([1],)))
    with caplog.at_level(logging.WARNING):
        (message,) = patches.revert()
    assert upstream.scale is later
    assert upstream.scale([1]) == ("theirs", original([1]))
    assert message.startswith(f"{UPSTREAM}.scale was patched over by {__name__}.{THEIR_NAME} (")
    assert message.endswith("); left as it is")
    assert [record.getMessage() for record in caplog.records] == [message]
    after = state(upstream)
    assert {name for name in after if after[name] != before[name]} == {"scale"}


def test_a_unit_that_cannot_be_passed_by_stays_whole_and_says_so(upstream: ModuleType) -> None:
    before, decorate = state(upstream), upstream.decorate
    patches = collected(spec("scale"), spec("Worker.run"), spec("decorate", unit="another"))
    patches.apply()
    ours = upstream.scale
    later = upstream.scale = their_wrapper(ours)
    (message,) = patches.revert()
    assert message.endswith("); left as it is, and with it all patches of 'unit', which only work together")
    assert upstream.scale is later
    assert upstream.scale([1]) == ("theirs", ("ours", "context", ([1],)))
    assert state(upstream)["Worker.run"] != before["Worker.run"]
    assert upstream.decorate is decorate
    # What was left is known as ours: once they have gone, it can be patched again, and then comes out.
    upstream.scale = ours
    again = collected(spec("scale"), spec("Worker.run"))
    again.apply()
    assert again.revert() == ()
    assert state(upstream) == before


def global_wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
    global their_original
    their_original = original
    return _calls_a_global


def _calls_a_global(*args: Any) -> Any:
    return ("theirs", their_original(*args))


class CallableWrapper:
    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original

    def __call__(self, *args: Any) -> Any:
        return ("theirs", self.original(*args))


their_original: Any = None
AROUND: dict[str, Callable[..., Any]] = {
    "functools.wraps": their_wrapper,
    "a closure": lambda original: lambda *args: ("theirs", original(*args)),
    "a default": lambda original: lambda *args, before=original: ("theirs", before(*args)),
    "a global name": global_wrapper,
    "functools.partial": lambda original: functools.partial(lambda before, *args: ("theirs", before(*args)), original),
    "an object": CallableWrapper,
    "two wrappers": lambda original: their_wrapper(their_wrapper(original)),
}


@pytest.mark.parametrize("how", AROUND)
def test_patches_come_back_beneath_a_wrapper_that_stayed(upstream: ModuleType, how: str) -> None:
    original = upstream.scale
    first = collected(spec("scale", build=switched))
    first.apply()
    ours = upstream.scale
    theirs = upstream.scale = AROUND[how](ours)
    first.revert()
    for context in ("second", "third"):
        again = collect([(spec("scale", build=switched), context)], "error")
        assert "which stays around it" in str(again.swaps[0])
        again.apply()
        assert upstream.scale is theirs
        assert "ours" in str(upstream.scale([1]))
        assert context in str(upstream.scale([1]))
        (message,) = again.revert()
        assert message.endswith("left as it is")
        assert "ours" not in str(upstream.scale([1]))
    upstream.scale = ours  # they take theirs back, and put there what they had found
    assert upstream.scale([1]) == original([1])
    last = collected(spec("scale", build=switched))
    last.apply()
    assert upstream.scale([1]) == ("ours", "context", ([1],))
    assert last.revert() == ()
    assert upstream.scale is original


def test_a_wrapper_that_is_taken_back_while_we_are_beneath_it(upstream: ModuleType) -> None:
    original = upstream.scale
    first = collected(spec("scale", build=switched))
    first.apply()
    ours = upstream.scale
    upstream.scale = their_wrapper(ours)
    first.revert()
    again = collect([(spec("scale", build=switched), "second")], "error")
    again.apply()
    upstream.scale = ours
    assert upstream.scale([1]) == ("ours", "second", ([1],))
    assert again.revert() == ()
    assert upstream.scale is original


def test_a_wrapper_that_never_called_ours_stays_a_conflict(upstream: ModuleType) -> None:
    first = collected(spec("scale", build=switched), spec("decorate", unit="two", build=switched))
    first.apply()
    ours = upstream.scale
    upstream.decorate = functools.partial(somebody_elses, ours)  # ours, but of another target
    first.revert()
    assert "is patched already" in refused(spec("decorate", build=switched), error=PatchConflictError)


def test_a_later_patch_of_an_inherited_method_is_left_alone(upstream: ModuleType) -> None:
    patches = collected(spec("Worker.inherited", "wrap", wrapping))
    patches.apply()
    upstream.Worker.inherited = somebody_elses
    assert len(patches.revert()) == 1
    assert vars(upstream.Worker)["inherited"] is somebody_elses


def test_what_somebody_has_put_back_already_needs_no_word(upstream: ModuleType) -> None:
    before = state(upstream)
    original = upstream.scale
    patches = collected(spec("scale"), spec("Worker.inherited"))
    patches.apply()
    upstream.scale = original
    del upstream.Worker.inherited
    assert patches.revert() == ()
    assert state(upstream) == before


def test_a_name_that_somebody_deleted_stays_deleted(upstream: ModuleType) -> None:
    patches = collected(spec("scale"))
    patches.apply()
    del upstream.scale
    (message,) = patches.revert()
    assert message == f"{UPSTREAM}.scale was patched over by nothing; left as it is"
    assert not hasattr(upstream, "scale")


# ------------------------------------------------------------------------------------------------ the log


def test_each_swap_is_logged_once_from_old_to_new(upstream: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    patches = collected(*every_kind())
    with caplog.at_level(logging.DEBUG):
        patches.apply()
    messages = [record.getMessage() for record in caplog.records]
    patches.revert(log=False)
    assert len(messages) == len(set(messages)) == STEPS
    assert all(record.name.startswith("mindspeed_moe") for record in caplog.records)
    ours = f"{__name__}.spec.<locals>.<lambda>.<locals>.<lambda>"
    assert f"patched {UPSTREAM}.scale: {UPSTREAM}.scale -> {ours}" in messages
    assert f"patched {USER}.scale: {UPSTREAM}.scale -> {ours}" in messages
    assert f"patched {UPSTREAM}.absent: nothing -> None" in messages
    assert f"patched {UPSTREAM}.LIMIT: 3 -> 4" in messages


def test_other_ranks_and_failures_log_nothing(
    upstream: ModuleType, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches = collected(*every_kind())
    with caplog.at_level(logging.DEBUG):
        patches.apply(log=False)
        upstream.scale = somebody_elses
        assert len(patches.revert(log=False)) == 1
        monkeypatch.setattr(Slot, "put", lambda self, value: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            collected(spec("Worker.run")).apply()
    assert caplog.records == []


def test_a_slot_that_cannot_be_restored_does_not_keep_the_others(
    upstream: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name for name, value in vars(upstream).items() if callable(value) and not isinstance(value, type)][:3]
    assert len(names) == 3
    before = {name: getattr(upstream, name) for name in names}
    patches = collect([(spec(name), CONTEXT) for name in names], "error")
    patches.apply()
    restore = Slot.restore

    def stubborn(slot: Slot) -> None:
        if slot.name == names[1]:
            raise RuntimeError("no")
        restore(slot)

    monkeypatch.setattr(Slot, "restore", stubborn)
    with pytest.raises(PatchError, match=rf"{names[1]} could not be restored"):
        patches.revert()
    assert getattr(upstream, names[0]) is before[names[0]]
    assert getattr(upstream, names[2]) is before[names[2]]
