"""What all tests share: real Megatron is asked for or skipped with a reason, and no test leaves the plugin enabled."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers_megatron import WORKING_DISPATCHER, forget_megatron, write_stub_megatron

MISSING = "megatron-core is not importable: install it or put a release on PYTHONPATH"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-megatron",
        action="store_true",
        help="end with an error instead of skipping the tests that need megatron-core when it is not importable",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if megatron_is_importable():
        return
    if config.getoption("--require-megatron"):
        raise pytest.UsageError(f"--require-megatron: {MISSING}")
    for item in items:
        if item.get_closest_marker("megatron"):
            item.add_marker(pytest.mark.skip(reason=MISSING))


def megatron_is_importable() -> bool:
    try:
        return importlib.util.find_spec("megatron.core") is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(autouse=True)
def _plugin_is_off_afterwards() -> Iterator[None]:
    """A test that leaves the plugin enabled would change the ones after it."""
    yield
    api = sys.modules.get("mindspeed_moe.api")
    if api is not None and api.status() is not None:
        api.disable()
        pytest.fail("the test left the plugin enabled")


@pytest.fixture
def stub_megatron(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `megatron` on disk, first on the path, with what the patches of 0.12 need; yields its parent folder."""
    folder = write_stub_megatron(tmp_path / "stub", dispatcher=WORKING_DISPATCHER)
    monkeypatch.syspath_prepend(folder)
    with forget_megatron():
        yield folder
