"""A notebook reloads modules of the package while the plugin is enabled: nothing is lost, and nobody is blamed."""

from __future__ import annotations

from pathlib import Path

from helpers_megatron import WORKING_DISPATCHER, write_stub_megatron
from helpers_process import python

SCRIPT = """
import importlib, sys
import mindspeed_moe

CONFIG = {"device": "cpu", "mindspeed": "off", "verify": "first", "telemetry": {"enabled": True}}
dispatcher = importlib.import_module("megatron.core.transformer.moe.token_dispatcher").MoEAlltoAllTokenDispatcher
stock = dispatcher.preprocess
mindspeed_moe.enable(CONFIG)
mindspeed_moe.disable()
names = sorted(name for name in sys.modules if name.split(".")[0] == "mindspeed_moe")
for name in names + names[::-1]:
    ended = []
    plan = mindspeed_moe.enable(CONFIG)
    sys.modules["mindspeed_moe.lifetime"].at_end(lambda: ended.append(True))
    unsubscribe = sys.modules["mindspeed_moe.telemetry.public"].subscribe(print)
    importlib.reload(sys.modules[name])
    assert mindspeed_moe.status() is plan, name
    assert mindspeed_moe.enable(CONFIG) is plan, name
    assert dispatcher.preprocess is not stock, name
    assert sys.modules["mindspeed_moe.telemetry.public"].subscribers() == (print,), name
    assert sys.modules["mindspeed_moe.verify.public"].compared() is not None, name
    unsubscribe()
    left = mindspeed_moe.disable()
    assert left == (), (name, left)
    assert dispatcher.preprocess is stock, name
    assert mindspeed_moe.status() is None and ended, name
print(len(names))
"""


def test_any_module_while_the_plugin_is_enabled(tmp_path: Path) -> None:
    stub = write_stub_megatron(tmp_path / "stub", dispatcher=WORKING_DISPATCHER)
    ended = python("-W", "ignore", "-c", SCRIPT, path=(stub,))
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 50
