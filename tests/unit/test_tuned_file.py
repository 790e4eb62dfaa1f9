"""Tuned files: read, refused, written whole, and what they do to a configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers_tuned import DATA
from mindspeed_moe.config import load_config
from mindspeed_moe.config.tuned import Machine, Tuned, Versions, read_tuned, require_fit, require_writable, write_tuned
from mindspeed_moe.errors import ConfigError, GroupError

HERE = Machine(device="cpu", name="Turbo, 2 cores", cpu="Turbo, 2 cores", world_size=2)
VERSIONS = Versions(mindspeed_moe="0.1.0", megatron_core="0.16.1", torch="2.13.0", torch_npu="")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tuned.yaml"
    path.write_text(yaml.safe_dump(DATA))
    return path


def broken(file: Path, *path: str, value: Any = None) -> str:
    """Change (or, with None, remove) a key; returns the message."""
    data = yaml.safe_load(file.read_text())
    section = data
    for part in path[:-1]:
        section = section[part]
    if value is None:
        del section[path[-1]]
    else:
        section[path[-1]] = value
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError) as caught:
        read_tuned(file)
    return str(caught.value)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tuned = Tuned.model_validate(DATA)
    write_tuned(tuned, tmp_path / "again.yaml")
    assert read_tuned(tmp_path / "again.yaml") == tuned
    assert [path.name for path in tmp_path.iterdir()] == ["again.yaml"], "no temporary file is left"


def test_a_file_has_the_rights_that_the_user_gives_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_tuned(Tuned.model_validate(DATA), tmp_path / "tuned.yaml")
    finally:
        os.umask(before)
    assert (tmp_path / "tuned.yaml").stat().st_mode & 0o777 == 0o640


def test_an_interrupted_write_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def interrupt(number: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_tuned(Tuned.model_validate({**DATA, "rounds": 1}), file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_a_failed_write_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def no_space(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(ConfigError, match="cannot be written: No space left"):
        write_tuned(Tuned.model_validate({**DATA, "rounds": 1}), file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("where", ["nowhere/tuned.yaml", "file/tuned.yaml", "."])
def test_a_place_that_cannot_be_written_to_is_found_beforehand(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    for attempt in (require_writable, lambda path: write_tuned(Tuned.model_validate(DATA), path)):
        with pytest.raises(ConfigError, match=r"cannot be written: (No such file|Not a directory|Is a directory)"):
            attempt(tmp_path / where)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_looking_whether_a_place_can_be_written_to_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "tuned.yaml").write_text("old")
    require_writable(tmp_path / "tuned.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["tuned.yaml"]
    assert (tmp_path / "tuned.yaml").read_text() == "old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written: Permission denied"):
        require_writable(tmp_path / "tuned.yaml")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere/tuned\.yaml: cannot be written: No such file"):
        write_tuned(Tuned.model_validate(DATA), tmp_path / "nowhere" / "tuned.yaml")


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("mindspeed_moe_tuned",), 2, "mindspeed_moe_tuned: 2"),
        (("choices", "counts"), "bincount", "choices.counts: 'bincount'"),
        (("machine", "device"), "tpu", "machine.device: 'tpu'"),
        (("machine", "world_size"), "two", "machine.world_size: 'two'"),
        (("machine", "extra"), 1, "machine.extra: 1"),
        (("shape", "experts"), 0, "shape.experts: 0"),
        (("costs_us", "kernel"), -1.0, "costs_us.kernel: -1.0"),
        (("costs_us", "kernel"), float("nan"), "costs_us.kernel: nan"),
        (("timings_us", "defaults", "p50"), float("inf"), "timings_us.defaults.p50: inf"),
        (("settled",), "no", "settled: 'no'"),
        (("shape",), "x" * 200, f"shape: '{'x' * 79}...: "),
        (("versions",), None, "versions: "),
    ],
)
def test_a_broken_file_names_file_key_and_value(file: Path, path: tuple[str, ...], value: Any, told: str) -> None:
    message = broken(file, *path, value=value)
    assert str(file) in message
    assert told in message
    assert message.startswith("tuned: ")
    assert message.endswith("expected a file that `mindspeed-moe tune` of this version wrote, unchanged")


@pytest.mark.parametrize("text", ["", "- a list", "just words", "machine: !!python/object:os.system {}", "a: [1"])
def test_a_file_of_another_kind(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"^tuned: {file}.*expected a file that `mindspeed-moe tune`"):
        read_tuned(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^tuned: .*gone\.yaml: no such configuration file; expected a file that"):
        read_tuned(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    ("here", "versions", "told"),
    [
        (HERE.model_copy(update={"device": "npu"}), VERSIONS, "machine.device: 'cpu', here 'npu'"),
        (HERE.model_copy(update={"name": "another"}), VERSIONS, "machine.name: 'Turbo, 2 cores', here 'another'"),
        (HERE.model_copy(update={"cpu": "another"}), VERSIONS, "machine.cpu: 'Turbo, 2 cores', here 'another'"),
        (HERE.model_copy(update={"world_size": 4}), VERSIONS, "machine.world_size: 2, here 4"),
        (HERE, VERSIONS.model_copy(update={"torch": "2.9.0"}), "versions.torch: '2.13.0', here '2.9.0'"),
        (HERE, VERSIONS.model_copy(update={"mindspeed_moe": "9"}), "versions.mindspeed_moe: '0.1.0', here '9'"),
    ],
)
def test_stale_and_foreign_files_are_refused(here: Machine, versions: Versions, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        require_fit(Tuned.model_validate(DATA), "moe/tuned.yaml", here, versions)
    assert told in str(caught.value)
    assert str(caught.value).startswith("tuned: moe/tuned.yaml: measured elsewhere")


def test_a_fitting_file_is_taken() -> None:
    require_fit(Tuned.model_validate(DATA), "tuned.yaml", HERE, VERSIONS)


# ------------------------------------------------------------------------------------------------ in a configuration


def test_the_path_is_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "moe.yaml").write_text("tuned: sub/tuned.yaml\n")
    assert load_config(tmp_path / "moe.yaml").tuned == str(tmp_path / "sub/tuned.yaml")
    (tmp_path / "moe.yaml").write_text(f"tuned: {tmp_path}/tuned.yaml\n")
    assert load_config(tmp_path / "moe.yaml").tuned == f"{tmp_path}/tuned.yaml"
    assert load_config({"tuned": "tuned.yaml"}).tuned == "tuned.yaml"


@pytest.mark.parametrize("value", ["3", "[a]", "true"])
def test_the_path_must_be_text(tmp_path: Path, value: str) -> None:
    (tmp_path / "moe.yaml").write_text(f"tuned: {value}\n")
    with pytest.raises(ConfigError, match=r"moe\.yaml:1: tuned: .*the path of a file that `mindspeed-moe tune` wrote"):
        load_config(tmp_path / "moe.yaml")


def test_choices_fill_in_what_is_auto() -> None:
    config = load_config({"preprocess": {"exchange": "all_to_all"}})
    filled = config.with_choices(Tuned.model_validate(DATA).chosen())
    assert (filled.preprocess.counts, filled.preprocess.exchange) == ("sum", "all_to_all")
    assert filled.preprocess.stream == "auto"


def test_a_layer_of_another_shape_is_refused_at_run_time() -> None:
    from mindspeed_moe.contract import GENERATIONS
    from mindspeed_moe.preprocess.adapters import attributes_of
    from mindspeed_moe.preprocess.groups import Groups
    from mindspeed_moe.preprocess.sites import Choices, Sites
    from one_process.group import Dispatcher, Layout

    dispatcher = Dispatcher(Layout(1, 1, 2), 0, 1)

    def sites(measured_for: tuple[int, int, int] | None) -> Sites:
        choices = Choices("cpu", "all_to_all", Groups("auto"), "host", measured_for=measured_for)
        return Sites(attributes_of("alltoall", GENERATIONS[-2]), choices, {})

    sites((2, 1, 1)).of(dispatcher)
    with pytest.raises(GroupError, match=r"tuned: the file was measured for E, EP, TP = \(8, 2, 1\); this layer has"):
        sites((8, 2, 1)).of(dispatcher)
