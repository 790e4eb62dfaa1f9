"""From the configuration to what looks on: folders as they were meant, settings that ranks have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_moe.config import load_config
from mindspeed_moe.environment import probe_environment
from mindspeed_moe.watching import common_settings, watched_as


def test_nothing_looks_on_by_default() -> None:
    watched = watched_as(load_config(), probe_environment(), "cpu", {})
    assert (watched.verification, watched.collector) == (None, None)


def test_a_folder_stays_where_the_launch_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some launchers change the working directory afterwards."""
    monkeypatch.chdir(tmp_path)
    config = load_config({"verify": "first", "dumps": "left", "telemetry": {"enabled": True}})
    watched = watched_as(config, probe_environment(), "cpu", {})
    monkeypatch.chdir("/")
    assert watched.verification is not None
    assert watched.verification._folder == tmp_path / "left"


def test_ranks_have_in_common_what_decides_and_not_where_files_go() -> None:
    one = load_config({"verify": {"every": 3}, "dumps": "a", "telemetry": {"enabled": True, "folder": "a"}})
    other = load_config({"verify": {"every": 3}, "dumps": "b"})
    assert common_settings(one) == common_settings(other)
    assert common_settings(one)["verify.every"] == "3"
    assert common_settings(one) != common_settings(load_config({"verify": "always"}))
    assert common_settings(one)["preprocess.exchange"] == "auto"
