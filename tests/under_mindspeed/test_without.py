"""Without MindSpeed nothing of this is imported; a folder that only has its name is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers_process import python
from under_mindspeed.launching import search_path

_PROGRAM = """
import json, sys
import mindspeed_moe
mindspeed_moe.enable({"device": "cpu"})
print(json.dumps([name for name in sys.modules if "moe.mindspeed" in name or name == "mindspeed"]))
mindspeed_moe.disable()
"""


def megatron() -> tuple[Path, ...]:
    return tuple(Path(folder) for folder in search_path().split(":")[2:])


@pytest.mark.megatron
@pytest.mark.parametrize("folder", [None, "mindspeed"])
def test_nothing_of_it_is_imported(tmp_path: Path, folder: str | None) -> None:
    if folder:
        (tmp_path / folder).mkdir()  # as when a checkout's parent is on the path
    done = python(
        "-W", "ignore", "-c", _PROGRAM, path=(tmp_path, *megatron()), variables={"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


@pytest.mark.megatron
def test_the_program_sees_it_where_it_is() -> None:
    """Otherwise the test above could not fail."""
    path = tuple(Path(folder) for folder in search_path().split(":"))
    done = python("-W", "ignore", "-c", _PROGRAM, path=path, variables={"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"})
    assert done.returncode == 0, done.stderr
    assert "mindspeed_moe.mindspeed.attach" in json.loads(done.stdout)
