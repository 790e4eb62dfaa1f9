"""A reason is logged once a process."""

from __future__ import annotations

import logging
import threading

import pytest

from mindspeed_moe import log


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_said", set())


def test_a_message_is_logged_the_first_time(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mindspeed_moe"):
        for _ in range(3):
            log.once(logging.WARNING, "a reason")
        log.once(logging.INFO, "another")
    assert caplog.record_tuples == [
        ("mindspeed_moe", logging.WARNING, "a reason"),
        ("mindspeed_moe", logging.INFO, "another"),
    ]


def test_a_percent_sign_is_no_placeholder(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mindspeed_moe"):
        log.once(logging.INFO, "50% of %s")
    assert caplog.messages == ["50% of %s"]


def test_many_threads_log_it_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(set):  # type: ignore[type-arg]
        """Gives other threads time between the look and the entry."""

        def __contains__(self, message: object) -> bool:
            found = super().__contains__(message)
            threading.Event().wait(0.01)
            return found

    monkeypatch.setattr(log, "_said", Slow())
    threads = [threading.Thread(target=log.once, args=(logging.WARNING, "a reason")) for _ in range(4)]
    with caplog.at_level(logging.INFO, logger="mindspeed_moe"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert caplog.messages == ["a reason"]
