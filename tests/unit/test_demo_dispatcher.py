"""The demo's option --dispatcher: what is configured, what sizes it allows, and where it is refused."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from mindspeed_moe import environment
from mindspeed_moe.cli import main
from mindspeed_moe.config import load_config
from mindspeed_moe.contract.generations import LEGACY
from mindspeed_moe.demo.settings import SEQ, settle
from mindspeed_moe.demo.timing import PreprocessTimer
from mindspeed_moe.environment import Found, Probes
from mindspeed_moe.errors import ConfigError

real_probe = environment.probe_environment


def megatron_is(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    found_here = real_probe(Probes(megatron_core=lambda: Found(release)))
    monkeypatch.setattr(environment, "probe_environment", lambda: found_here)


@pytest.mark.parametrize("implementation", ["stock", "reference", "packed"])
def test_the_other_dispatcher_stays_stock(implementation: str) -> None:
    for chosen, other in (("alltoall", SEQ), (SEQ, "alltoall")):
        settings = settle(etp=1, dispatcher=chosen)
        config = load_config(settings.configuration(implementation))
        assert config.get(f"dispatchers.{chosen}") == implementation
        assert config.get(f"dispatchers.{other}") == "stock"
        assert settings.to_dict()["dispatcher"] == chosen


def test_experts_are_shared_as_the_dense_part() -> None:
    with pytest.raises(ConfigError, match=r"--etp 2: --dispatcher alltoall_seq .*; allowed: 1 \(--tp\)"):
        settle(tp=1, etp=2, dispatcher=SEQ)
    assert settle(tp=2, etp=2, dispatcher=SEQ).processes == 4


@pytest.mark.parametrize("implementations", ["stock,packed", "packed"])
@pytest.mark.parametrize("release", ["0.13.1", "0.16.1", "0.19.0"])
def test_releases_without_it_refuse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], release: str, implementations: str
) -> None:
    megatron_is(monkeypatch, release)
    assert main(["demo", "--dispatcher", SEQ, "--implementations", implementations]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip() == (
        f"mindspeed-moe: --dispatcher alltoall_seq: megatron-core {release} has no such dispatcher; allowed: alltoall"
    )


class Inline:
    """Copies inside of preprocess: there is no hook."""

    def preprocess(self, routing_map: Any) -> Any:
        return routing_map


def test_without_a_hook_preprocess_alone_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    module_name, _, class_name = LEGACY.rpartition(".")
    module = ModuleType(module_name)
    setattr(module, class_name, Inline)
    parts = module_name.split(".")
    for end in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    monkeypatch.setitem(sys.modules, module_name, module)
    before = Inline.preprocess
    with PreprocessTimer(SEQ) as timer:
        assert Inline().preprocess("map") == "map"
        assert not hasattr(Inline, "_maybe_dtoh_and_synchronize")
    assert Inline.preprocess is before
    assert timer.summary()["calls"] == 1
