"""The launcher itself: results in rank order, every failure told by name, and nothing left running."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from distributed import launcher
from distributed import launcher_jobs as jobs
from distributed.launcher import RankPool, RanksFailed, World

GROUP = World()


@pytest.fixture(scope="module")
def pair() -> Iterator[RankPool]:
    """Two ranks of this module's own, to be killed at will."""
    pool = RankPool(2)
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "GRACE", 1.0)


def ended(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def test_results_come_in_rank_order(pair: RankPool):
    assert pair.run(jobs.gather, "from", world=GROUP) == [["from 0", "from 1"]] * 2


def test_processes_are_kept_between_jobs(pair: RankPool):
    before = pair.run(jobs.pid)
    assert pair.run(jobs.pid, world=World(timeout=300.0)) == before  # with another process group, too
    assert pair.run(jobs.gather, "still", world=GROUP) == [["still 0", "still 1"]] * 2


def test_a_failing_rank_shows_its_own_traceback(pair: RankPool):
    before = pair.run(jobs.pid)
    with pytest.raises(RanksFailed) as failure:
        pair.run(jobs.raise_in_a_group, 1, world=GROUP)
    told = str(failure.value)
    assert "rank 0 ended well" in told
    assert "rank 1 failed" in told
    assert "in raise_in_a_group" in told
    assert "ValueError: a broken rank 1" in told
    assert pair.run(jobs.pid) == before  # all had ended, so none was killed
    assert pair.run(jobs.gather, "again", world=GROUP) == [["again 0", "again 1"]] * 2


def test_what_a_failing_rank_wrote_is_shown(pair: RankPool):
    with pytest.raises(RanksFailed, match="rank 0 wrote: last words"):
        pair.run(jobs.speak_and_raise)


def test_a_result_that_cannot_travel_is_told(pair: RankPool):
    with pytest.raises(RanksFailed, match=r"(?i)pickle"):
        pair.run(jobs.no_pickle)


def test_a_job_must_not_leave_the_plugin_enabled(pair: RankPool):
    with pytest.raises(RanksFailed, match="left the plugin enabled"):
        pair.run(jobs.leave_enabled)


def test_a_rank_that_waits_for_a_failed_one_is_killed(pair: RankPool):
    processes = pair.run(jobs.pid)
    with pytest.raises(RanksFailed, match=r"(?s)rank 0 was not done.*collective_without.*rank 1 failed.*did not come"):
        pair.run(jobs.collective_without, 1, world=GROUP)
    assert all(ended(one) for one in processes)


def test_a_rank_out_of_time_says_where_it_stands(pair: RankPool):
    processes = pair.run(jobs.pid)
    with pytest.raises(RanksFailed, match=r"(?s)rank 0 ended well.*rank 1 was not done.*waiting_for_godot.*hang_one"):
        pair.run(jobs.hang_one_of, processes, limit=2.0)
    assert all(ended(one) for one in processes)


def test_a_dead_process_is_told(pair: RankPool):
    processes = pair.run(jobs.pid)
    with pytest.raises(RanksFailed, match="rank 1 failed:\nthe process died with exit code 7"):
        pair.run(jobs.kill_one_of, processes)
    assert all(ended(one) for one in processes)


def test_closing_ends_all_processes():
    pool = RankPool(2)
    assert pool.run(jobs.has_torch) == [False, False]
    processes = pool.pids
    pool.close()
    assert all(ended(one) for one in processes)
    assert pool.pids == []
