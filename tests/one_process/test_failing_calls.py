"""Calls of `packed` on an accelerator that end half-way, wherever that is: no slot is lost, none is used too early."""

from __future__ import annotations

import contextlib
import gc
import sys
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import Any
from unittest import mock

import pytest

from mindspeed_moe.errors import PreprocessError
from mindspeed_moe.preprocess import packed_async, ring
from mindspeed_moe.preprocess.packed_async import PackedOnAccelerator
from one_process.cases import Case
from one_process.group import Collectives, Layout, in_place_of_torch_distributed
from one_process.test_packed_async import SMALL, check_all, finish, make
from oracle.plan import DROPLESS

ALONE = Case(Layout(1, 1, 4), 2, DROPLESS, None, (((True, True, False, False), (True, False, True, False)),), False)
WAYS = pytest.mark.parametrize(
    ("case", "aside"), [(ALONE, False), (SMALL, False), (SMALL, True)], ids=["alone", "peers", "peers, aside"]
)
FILES = {packed_async.__file__, ring.__file__}


@contextlib.contextmanager
def interrupted(at: int) -> Iterator[list[str]]:
    """Raise KeyboardInterrupt before the line `at` of those that run in the two files; yields the lines so far."""
    lines: list[str] = []

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in FILES or frame.f_code.co_name == "__del__":
            return None
        if event == "line":
            lines.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
            if len(lines) == at:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(None)


def one_call(program: PackedOnAccelerator, case: Case, dispatchers: list[Any], *, sent: Collectives) -> list[Any]:
    """preprocess and the hook on the first rank, whose peers have sent already."""
    with in_place_of_torch_distributed(sent):
        results = [program.preprocess(dispatchers[0], case.tensors()[0])]
    return finish(program, dispatchers[:1], results)


def heard(case: Case, aside: bool) -> Collectives:
    """What all ranks send."""
    collectives = Collectives()
    program, _ = make(PackedOnAccelerator, "all_to_all", True, aside)
    with in_place_of_torch_distributed(collectives):
        for dispatcher, routing_map in zip(case.dispatchers(), case.tensors(), strict=True):
            with contextlib.suppress(Exception):
                program.preprocess(dispatcher, routing_map)
    collectives.delivering = True
    return collectives


# What a `__del__` calls is interrupted too; Python drops that and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@WAYS
@pytest.mark.parametrize("again", [False, True], ids=["first call", "second call"])
def test_an_interrupt_at_any_line_loses_no_slot(case: Case, aside: bool, again: bool) -> None:
    sent = heard(case, aside)
    for at in range(1, 1000):
        program, accelerator = make(PackedOnAccelerator, "all_to_all", True, aside)
        dispatchers = case.dispatchers()
        if again:
            one_call(program, case, dispatchers, sent=sent)
        with interrupted(at) as lines, contextlib.suppress(KeyboardInterrupt):
            one_call(program, case, dispatchers, sent=sent)
        if len(lines) < at:
            break
        buffers = program.sites.of(dispatchers[0]).buffers
        if buffers is not None:
            slots = buffers.ring
            known = [*slots._free, *(one for one, _ in [*slots._given_up, *slots._broken])]
            assert len(known) == len(set(map(id, known))), f"a slot stands in two places after {lines[-1]}"
            known += [buffers.call.slot] if buffers.call is not None else []
            assert len(set(map(id, known))) >= slots._made, f"a slot is lost after {lines[-1]}"
        for copy in accelerator.copies:
            if copy.waits == 0 and at % 2:
                copy.happen()
        results = one_call(program, case, dispatchers, sent=sent)
        accelerator.reuse_memory()
        check_all(dispatchers[:1], results, _first(case))
    assert at > 30, "hardly a line was interrupted"


def _first(case: Case) -> Any:
    """What the first rank must have."""
    return mock.Mock(expected=lambda: case.expected()[:1])


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("when", ["before the copy", "behind the copy"])
def test_a_copy_that_fails_without_peers_leaves_the_dispatcher_in_use(error: BaseException, when: str) -> None:
    program, accelerator = make(PackedOnAccelerator, "all_to_all", True)
    program._max_slots = 2
    dispatchers = ALONE.dispatchers()
    real = program._plain.copy

    def copy(*arguments: Any) -> None:
        if when == "behind the copy":
            real(*arguments)
        raise error

    for _ in range(5):
        with mock.patch.object(program, "_plain", program._plain._replace(copy=copy)), pytest.raises(type(error)):
            program.preprocess(dispatchers[0], ALONE.tensors()[0])
        for late in accelerator.copies:
            late.waits or late.happen()
    check_all(dispatchers, one_call(program, ALONE, dispatchers, sent=Collectives()), ALONE)


def test_where_nothing_tells_any_more_the_message_says_why() -> None:
    program, _ = make(PackedOnAccelerator, "all_to_all", True)
    program._max_slots = 2
    dispatchers = ALONE.dispatchers()
    gone = mock.Mock(side_effect=RuntimeError("the device is gone"))
    with (
        mock.patch.object(program, "_plain", program._plain._replace(copy=gone)),
        mock.patch("one_process.accelerator.LateEvent.record", gone),
    ):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="the device is gone"):
                program.preprocess(dispatchers[0], ALONE.tensors()[0])
    with pytest.raises(PreprocessError, match="2 by calls that failed; preprocess"):
        program.preprocess(dispatchers[0], ALONE.tensors()[0])


@WAYS
def test_a_dispatcher_that_goes_in_the_middle_of_a_call(case: Case, aside: bool) -> None:
    """Nothing is under way any more; but what the device still writes to lives until it is done."""
    program, accelerator = make(PackedOnAccelerator, "all_to_all", False, aside)
    dispatchers = case.dispatchers()
    with in_place_of_torch_distributed(heard(case, aside)):
        program.preprocess(dispatchers[0], case.tensors()[0])
    assert program._under_way
    counts = program.sites.of(dispatchers[0]).buffers.call.counts.data_ptr()
    del dispatchers
    gc.collect()
    assert not program._under_way
    [(_, call)] = program._left[0]._given_up
    assert call.counts.data_ptr() == counts
    del call
    accelerator.copies[-1].happen()
    accelerator.copies.clear()
    other = case.dispatchers()
    check_all(other[:1], one_call(program, case, other, sent=heard(case, aside)), _first(case))
    assert program._left == []


def test_a_dispatcher_that_goes_after_its_call_leaves_nothing() -> None:
    program, _ = make(PackedOnAccelerator, "all_to_all", True)
    dispatchers = ALONE.dispatchers()
    one_call(program, ALONE, dispatchers, sent=Collectives())
    slots = weakref.ref(program.sites.of(dispatchers[0]).buffers.ring)
    del dispatchers
    gc.collect()
    assert slots() is None
    assert not program._under_way
