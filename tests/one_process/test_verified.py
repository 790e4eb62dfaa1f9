"""A verified program on a rank without peers, whose copies are late: what is compared, when, and what is kept of it."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import mindspeed_moe
from mindspeed_moe import lifetime
from mindspeed_moe.contract import GENERATIONS
from mindspeed_moe.errors import VerificationError
from mindspeed_moe.preprocess.packed_async import PackedOnAccelerator
from mindspeed_moe.preprocess.steps import Steps
from mindspeed_moe.verify import verification as verification_module
from mindspeed_moe.verify.dump import read_dump
from mindspeed_moe.verify.public import Compared, compared, now_comparing
from mindspeed_moe.verify.replay import replay
from mindspeed_moe.verify.verification import Schedule, Verification
from mindspeed_moe.verify.verified import Verified
from one_process.accelerator import LateAccelerator
from one_process.group import Dispatcher, Layout
from one_process.test_packed_async import POINTS, make

OLD, NEW = (one for one in GENERATIONS if one.name in ("hook_event_wait_graphs", "hook_event_wait_nccl_stream"))
ALONE = Layout(1, 1, 4)

Run = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "dumps"


@pytest.fixture
def build(folder: Path) -> Iterator[Callable[..., tuple[Verified, LateAccelerator]]]:
    def build(kind: type[PackedOnAccelerator] = PackedOnAccelerator) -> tuple[Verified, LateAccelerator]:
        inner, accelerator = make(kind, "all_to_all", on_host=True)
        verification = Verification(Schedule(None), Steps(), folder, {"verify": "always"}, {"mindspeed_moe": "0.1.0"})
        return Verified(inner, None, verification, "packed, all_to_all"), accelerator

    yield build
    lifetime.end()


def routing_map(*experts: int) -> torch.Tensor:
    """A token for each; top-1."""
    return torch.nn.functional.one_hot(torch.tensor(experts), 4).bool()


def call(program: Verified, dispatcher: Dispatcher, given: torch.Tensor) -> Any:
    counts = program.preprocess(dispatcher, given)
    for point in POINTS:
        counts = program.host_copies(dispatcher, point, counts)
    return counts


def test_a_right_call_is_compared_and_passes(build: Any, folder: Path) -> None:
    program, _ = build()
    dispatcher = Dispatcher(ALONE, 0, 1)
    for experts in ((0, 1, 1, 3), (2,), (3, 3)):
        counts = call(program, dispatcher, routing_map(*experts))
        assert counts.tolist() == [experts.count(at) for at in range(4)]
        found = program._layers[dispatcher].record.found
        assert found["tokens_per_local_expert"].tolist() == counts.tolist()
        assert found.keys() >= {"num_out_tokens", "input_splits", "chunk table"}
    assert not folder.exists()
    assert program._verification.compared() == Compared(calls=3, layers=1)


def test_what_was_equal_is_told_at_the_end(build: Any, caplog: pytest.LogCaptureFixture) -> None:
    program, _ = build()
    with caplog.at_level("INFO", logger="mindspeed_moe"):
        for dispatcher in (Dispatcher(ALONE, 0, 1), Dispatcher(ALONE, 0, 1)):
            call(program, dispatcher, routing_map(1))
            program.preprocess(dispatcher, routing_map(2))  # nobody reads it
        lifetime.end()
        lifetime.end()
    assert caplog.messages == ["verify: rank 0: nothing differed; calls compared: 2, layers: 2"]


def test_a_forked_child_says_nothing_of_it(build: Any, tmp_path: Path) -> None:
    program, _ = build()
    call(program, Dispatcher(ALONE, 0, 1), routing_map(1))

    def leave_a_trace(*told: Any) -> None:
        (tmp_path / "told").touch()

    child = os.fork()
    if child == 0:
        with mock.patch.object(verification_module.logger, "info", side_effect=leave_a_trace):
            lifetime.end()
        os._exit(0)
    os.waitpid(child, 0)
    assert not (tmp_path / "told").exists()


def test_nothing_is_said_when_another_rank_found_something(build: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Its main thread may have ended by something else, such as a lost connection."""
    program, _ = build()
    call(program, Dispatcher(ALONE, 0, 1), routing_map(1))
    program._verification._alarm._heard = {"text": "verification failed on rank 1", "dump": ""}
    with caplog.at_level("INFO", logger="mindspeed_moe"):
        lifetime.end()
    assert "nothing differed" not in caplog.text


def test_what_was_compared_is_asked_of_what_was_enabled_last(build: Any) -> None:
    program, _ = build()
    now_comparing(program._verification.compared)
    before = compared()
    call(program, Dispatcher(ALONE, 0, 1), routing_map(1))
    assert (before, compared()) == (Compared(0, 0), Compared(1, 1))
    mindspeed_moe.enable({"enabled": False})
    assert compared() is None
    mindspeed_moe.disable()


def test_after_a_difference_nothing_is_called_equal(
    build: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, _ = build()
    monkeypatch.setattr(program.sites.attributes, "due", lambda *given: frozenset(("before_finish",)))
    with caplog.at_level("INFO", logger="mindspeed_moe"):
        with pytest.raises(VerificationError):
            call(program, Dispatcher(ALONE, 0, 1), routing_map(2, 2))
        lifetime.end()
    assert "nothing differed" not in caplog.text


def test_micro_batches_are_counted_for_each_kind_of_pass(build: Any) -> None:
    """Under recomputation each forward pass comes twice, the first time without gradients, and kinds alternate."""
    program, _ = build()
    dispatcher = Dispatcher(ALONE, 0, 1)
    seen = []
    for _ in range(3):
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients):
                call(program, dispatcher, routing_map(1))
            moment = program._layers[dispatcher].record.moment
            seen.append((moment.gradients, moment.micro_batch))
    assert seen == [(False, 0), (True, 0), (False, 1), (True, 1), (False, 2), (True, 2)]


def test_a_layer_that_is_gone_is_not_kept(build: Any) -> None:
    program, _ = build()
    dispatcher = Dispatcher(ALONE, 0, 1)
    call(program, dispatcher, routing_map(1))
    gone = weakref.ref(dispatcher)
    del dispatcher
    gc.collect()
    assert gone() is None
    assert len(program._layers) == 0


def test_a_call_that_is_not_due_lets_go_of_the_last_record(folder: Path) -> None:
    """`first` must not hold pinned memory for the rest of a run; one call longer, for ranks that ask for a dump."""
    inner, _ = make(PackedOnAccelerator, "all_to_all", on_host=True)
    verification = Verification(Schedule(2), Steps(), folder, {}, {})
    program = Verified(inner, None, verification, "packed, all_to_all")
    dispatcher = Dispatcher(ALONE, 0, 1)
    kept = []
    for _ in range(5):
        call(program, dispatcher, routing_map(1))
        kept.append(program._layers[dispatcher].record is not None)
    assert kept == [True, True, True, False, False]


def test_the_last_calls_table_that_is_read_too_early_is_caught(
    build: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there, and the right one comes later: only at the moment of reading it is wrong."""
    program, _ = build()
    dispatcher = Dispatcher(ALONE, 0, 1)
    call(program, dispatcher, routing_map(0, 1, 1, 3))
    monkeypatch.setattr(program.sites.attributes, "due", lambda *given: frozenset(("before_finish",)))
    with pytest.raises(VerificationError, match=r"chunk table\[0, 0\]: found 1, expected 0; implementation packed"):
        call(program, dispatcher, routing_map(2, 2))
    (dump,) = map(read_dump, folder.iterdir())
    assert str(replay([dump]).findings[0].against_maps) == "chunk table[0, 0]: found 1, expected 0"


def test_a_table_that_is_not_there_yet_is_caught(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    program, _ = build()
    monkeypatch.setattr(program.sites.attributes, "due", lambda *given: frozenset(("before_finish",)))
    with pytest.raises(VerificationError, match=r"chunk table: found None, expected shape \[1, 4\]"):
        call(program, Dispatcher(ALONE, 0, 1), routing_map(2, 2))


def test_an_early_value_that_is_right_is_none_of_our_business(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    program, _ = build()
    dispatcher = Dispatcher(ALONE, 0, 1)
    call(program, dispatcher, routing_map(2, 2))
    monkeypatch.setattr(program.sites.attributes, "due", lambda *given: frozenset(("before_finish",)))
    assert call(program, dispatcher, routing_map(2, 2)).tolist() == [0, 0, 2, 0]


@pytest.mark.parametrize(
    ("generation", "fused", "read"), [(OLD, False, False), (OLD, True, True), (NEW, False, True), (NEW, True, True)]
)
def test_a_map_with_other_rows_than_promised_matters_where_the_number_is_read(
    build: Any, generation: Any, fused: bool, read: bool
) -> None:
    """A router that leaves out tokens: T * topk rows are promised, and the permutation until 0.17 goes by the map."""
    program, _ = build()
    program.sites.attributes.generation = generation
    dispatcher = Dispatcher(ALONE, 0, 1)
    dispatcher.config.moe_permute_fusion = fused
    given = routing_map(0, 1, 1, 3)
    given[3] = False
    if not read:
        assert call(program, dispatcher, given).tolist() == [1, 2, 0, 0]
        return
    with pytest.raises(VerificationError, match="sum of the routing map: found 3, expected 4"):
        call(program, dispatcher, given)


class Borrows(PackedOnAccelerator):
    """Hands out counts that stand in a slot."""

    def _unpack(self, dispatcher: Any, site: Any, call: Any) -> torch.Tensor:
        super()._unpack(dispatcher, site, call)
        return call.slot.pinned  # type: ignore[no-any-return]


def test_memory_that_somebody_holds_and_the_next_call_uses_is_caught(build: Any, folder: Path) -> None:
    program, _ = build(Borrows)
    dispatcher = Dispatcher(ALONE, 0, 1)
    held = call(program, dispatcher, routing_map(0, 1))
    told = r"tokens_per_local_expert that call 0 handed out\[0\]: found -\d+, expected 1"
    with pytest.raises(VerificationError, match=told):
        call(program, dispatcher, routing_map(2, 3))
    assert held is not None
    (dump,) = map(read_dump, folder.iterdir())
    assert str(replay([dump]).findings[0].recorded).startswith("tokens_per_local_expert that call 0 handed out[0]")


def test_a_dump_does_not_grow_with_what_backward_still_holds(build: Any, folder: Path) -> None:
    """40 micro-batches in flight: all of them are looked at, and only what differs is told."""
    program, _ = build()
    dispatcher = Dispatcher(ALONE, 0, 1)
    held = []
    for _ in range(40):
        call(program, dispatcher, routing_map(0, 1))
        held.append(vars(dispatcher)["num_global_tokens_per_local_expert"])
    held[7][0, 3] += 5
    with pytest.raises(VerificationError, match=r"chunk table that call 7 handed out\[0, 3\]: found 5, expected 0"):
        program.preprocess(dispatcher, routing_map(2, 3))
    (dump,) = map(read_dump, folder.iterdir())
    assert [name for name in dump.found if "handed out" in name] == ["chunk table that call 7 handed out"]


def test_nothing_is_watched_that_nobody_holds(build: Any) -> None:
    program, _ = build()
    dispatcher = Dispatcher(ALONE, 0, 1)
    for _ in range(10):
        call(program, dispatcher, routing_map(0, 1))
    assert len(list(program._layers[dispatcher].still_held())) <= 2


@pytest.mark.parametrize("broken", ["write", "wait"])
def test_whatever_keeps_a_dump_from_being_written_the_difference_is_told(
    build: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    def fail(*given: Any) -> None:
        raise MemoryError("there is none left")

    program, _ = build()
    dispatcher = Dispatcher(ALONE, 0, 1)
    monkeypatch.setattr(program.sites.attributes, "due", lambda *given: frozenset(("before_finish",)))
    if broken == "write":
        monkeypatch.setattr("mindspeed_moe.verify.verification.write_dump", fail)
    else:
        monkeypatch.setattr("mindspeed_moe.verify.verification.told_shapes", fail)
    told = r"chunk table: found None.*no dump could be written to .*: there is none left"
    with pytest.raises(VerificationError, match=told):
        call(program, dispatcher, routing_map(2, 2))
    assert "chunk table: found None" in caplog.records[0].getMessage(), "before the attempt"
    assert not folder.exists()


def test_layers_keep_their_places_when_others_are_gone(
    build: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers were called before and are gone: this is the third, as it is on ranks where they still live."""
    program, _ = build()
    for _ in range(2):
        call(program, Dispatcher(ALONE, 0, 1), routing_map(0, 1))
    monkeypatch.setattr(program.sites.attributes, "due", lambda *given: frozenset(("before_finish",)))
    with pytest.raises(VerificationError, match="layer number 3 in order of first calls"):
        call(program, Dispatcher(ALONE, 0, 1), routing_map(0, 1))
