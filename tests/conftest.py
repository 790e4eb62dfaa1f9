"""What all tests share: real Megatron is asked for or skipped with a reason, and no test leaves the plugin enabled."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from helpers_megatron import WORKING_DISPATCHER, forget_megatron, write_stub_megatron
from mindspeed_moe.dispatch_table import DISPATCHERS, IMPLEMENTATIONS

# How long examples take to draw is no property of the code: a busy machine must not fail a test.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# What a marker needs: marker -> (module or program, why its tests are skipped without it).
NEEDS = {
    "megatron": ("megatron.core", "megatron-core is not importable: install it or put a release on PYTHONPATH"),
    "simulated": ("torch_npu", "torch_npu is not importable: put a release that fits torch on PYTHONPATH"),
    "browser": ("chromium", f"no Chromium is on PATH ({', '.join(CHROMIUM)}), or playwright is not importable"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    for marker, (needed, _) in NEEDS.items():
        parser.addoption(
            f"--require-{marker}",
            action="store_true",
            help=f"end with an error instead of skipping the tests that need {needed} when it is not there",
        )
    parser.addoption("--record-faults", type=Path, metavar="FILE", help="write what tests/faults saw, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    # A background job of a script ignores it, and so would everything that a test starts in order to interrupt it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        item.user_properties += [("proves", one) for one in proves(item)]  # read by ci/table.py from the JUnit file
    for marker, (needed, reason) in NEEDS.items():
        if (chromium() and is_importable("playwright")) if marker == "browser" else is_importable(needed):
            continue
        if config.getoption(f"--require-{marker}"):
            raise pytest.UsageError(f"--require-{marker}: {reason}")
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def proves(item: pytest.Item) -> Iterator[str]:
    """Yield "DEVICE DISPATCHER IMPLEMENTATION" of all that a test runs and compares, as its marks `proves` say.

    The closer mark wins, and a parameter of the same name over all. Without an implementation: all but stock.
    """
    said = {"dispatcher": DISPATCHERS[0], "implementation": ""}
    for mark in reversed([*item.iter_markers("proves")]):
        said |= mark.kwargs
    parameters = getattr(item, "callspec", None)
    said |= {name: parameters.params[name] for name in said if parameters and name in parameters.params}
    if said.get("device"):
        for one in (said["implementation"],) if said["implementation"] else IMPLEMENTATIONS:
            if one in IMPLEMENTATIONS:
                yield f"{said['device']} {said['dispatcher']} {one}"


def chromium() -> str | None:
    return next((path for path in map(shutil.which, CHROMIUM) if path), None)


def is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
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
