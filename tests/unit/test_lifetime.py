"""What ends with the plugin ends once, the last started first, whatever fails."""

from __future__ import annotations

import logging

import pytest

from helpers_process import python
from mindspeed_moe import lifetime


def test_the_last_started_ends_first_and_each_once() -> None:
    ended: list[str] = []
    for name in ("folder", "file", "thread"):
        lifetime.at_end(lambda name=name: ended.append(name))
    lifetime.end()
    lifetime.end()
    assert ended == ["thread", "file", "folder"]


def test_one_that_fails_is_told_and_keeps_no_other_from_its_end(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[str] = []

    def fail() -> None:
        raise OSError("the disk is gone")

    lifetime.at_end(lambda: ended.append("first"))
    lifetime.at_end(fail)
    lifetime.at_end(lambda: ended.append("last"))
    with caplog.at_level(logging.ERROR, logger="mindspeed_moe"):
        lifetime.end()
    assert ended == ["last", "first"]
    assert "the disk is gone" in caplog.text


def test_an_ending_may_ask_for_another() -> None:
    ended: list[str] = []

    def outer() -> None:
        ended.append("outer")
        lifetime.at_end(lambda: ended.append("inner"))

    lifetime.at_end(outer)
    lifetime.end()
    assert ended == ["outer", "inner"]


def test_the_end_of_the_process_is_an_end_too() -> None:
    done = python("-c", "from mindspeed_moe import lifetime; lifetime.at_end(lambda: print('ended'))")
    assert (done.returncode, done.stdout) == (0, "ended\n")
