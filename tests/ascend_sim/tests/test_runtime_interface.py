"""The C interface of the simulated libascendcl: events, streams, copies, limits, error codes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ascend_sim.tests.running import results

INVALID_PARAMETER, INVALID_TIMESTAMP, INVALID_HANDLE = 107000, 107006, 107017
NOT_SUPPORTED, HOST_TO_HOST, OUT_OF_MEMORY = 200001, 207000, 207001
DMA_ERROR, TASK_TIMEOUT, SYNC_TIMEOUT = 507013, 507014, 507046


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    return results("runtime_acl.py", task_timeout_s=1)


def test_fresh_memory_is_poison(seen: dict[str, Any]) -> None:
    assert seen["fresh device memory is poison"]
    assert seen["fresh pinned memory is poison"]
    assert seen["pinned memory is aligned to 64"]


def test_event_never_recorded_is_complete(seen: dict[str, Any]) -> None:
    assert seen["never recorded"] == [True, 0, 0, 0]


def test_wait_waits_for_the_record_it_saw(seen: dict[str, Any]) -> None:
    assert seen["a wait keeps its record"] == [0, True, True, False]
    assert seen["synchronising reaches through the latest record"] == [0, True, True]


def test_query_does_not_wait(seen: dict[str, Any]) -> None:
    assert seen["query before it is done"] is False


def test_elapsed_time(seen: dict[str, Any]) -> None:
    code, milliseconds = seen["elapsed ms"]
    assert code == 0
    assert 20 <= milliseconds < 10_000
    assert seen["elapsed, never recorded"] == INVALID_TIMESTAMP
    code, message = seen["elapsed, no time line"]
    assert code == INVALID_TIMESTAMP
    assert "enable_timing" in message
    assert seen["wait without sync flag"] == INVALID_PARAMETER


def test_destroying_streams_and_events_with_work_queued(seen: dict[str, Any]) -> None:
    assert seen["destroy waits"] == [0, True]
    assert seen["force drops"] == [0, True]
    assert seen["nobody waits for what was dropped"]
    assert seen["a destroyed event's wait holds"] == [0, True]


def test_stale_handles_are_named(seen: dict[str, Any]) -> None:
    stream_code, stream_message, event_code, event_message = seen["stale handles"]
    assert stream_code == event_code == INVALID_HANDLE
    assert "no stream" in stream_message
    assert "no event" in event_message


def test_copies_by_direction_and_memory(seen: dict[str, Any]) -> None:
    assert seen["pinned copy"] == [True, True]
    assert seen["pageable copy waits"] == [0, True]
    assert seen["host to host"] == HOST_TO_HOST
    assert seen["refused copies"] == [INVALID_PARAMETER] * 4
    assert seen["default kind"] == 0


def test_source_is_read_late(seen: dict[str, Any]) -> None:
    assert seen["a source overwritten too early"]


def test_memory_freed_before_its_copy_ran(seen: dict[str, Any]) -> None:
    code, message = seen["freed source"]
    assert code == DMA_ERROR
    assert "source of a copy" in message
    assert "freed" in message
    assert seen["the error stays"] == DMA_ERROR
    code, message = seen["freed pinned target"]
    assert code == DMA_ERROR
    assert "pinned host memory" in message
    assert seen["who waits for a failed stream fails"] == DMA_ERROR


def test_free_twice(seen: dict[str, Any]) -> None:
    first, second, message = seen["free twice"]
    assert (first, second) == (0, INVALID_PARAMETER)
    assert "not the start of a live allocation" in message
    assert seen["message is cleared when read"] == ""


def test_limits_and_their_faults(seen: dict[str, Any]) -> None:
    code, pointer, message = seen["device out of memory"]
    assert code == OUT_OF_MEMORY
    assert pointer is None
    assert "out of memory" in message
    assert seen["pinned out of memory"] == [OUT_OF_MEMORY, None]
    assert "no_such_fault" in seen["unknown fault"]
    assert "device_memory" in seen["unknown fault"]


def test_second_pinned_allocation_fails(seen: dict[str, Any]) -> None:
    # The one that was too large for the limit was the first, this list begins with the second.
    assert seen["second pinned allocation"] == [OUT_OF_MEMORY, 0]


def test_event_that_never_completes_ends_in_timeouts(seen: dict[str, Any]) -> None:
    assert seen["stream timeout"] == [SYNC_TIMEOUT, True]
    code, message = seen["task timeout"]
    assert code == TASK_TIMEOUT
    assert "event_never_completes" in message


def test_what_is_not_simulated_names_itself(seen: dict[str, Any]) -> None:
    code, message, launch = seen["not simulated"]
    assert code == launch == NOT_SUPPORTED
    assert "aclrtMapMem" in message
    code, message = seen["missing operator"]
    assert code == NOT_SUPPORTED
    assert "Sinh" in message
