"""Importing the package has no effect: proved in clean interpreters."""

from __future__ import annotations

import json
from pathlib import Path

from helpers_megatron import write_stub_megatron
from helpers_process import python

HEAVY = ("torch", "torch_npu", "numpy", "megatron", "mindspeed", "matplotlib", "rich", "click", "pydantic", "yaml")


def test_import_mindspeed_moe_imports_nothing_else(tmp_path: Path) -> None:
    stub = write_stub_megatron(tmp_path)
    done = python("-c", f"import sys, mindspeed_moe; print([n for n in {HEAVY!r} if n in sys.modules])", path=(stub,))
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    assert "mindspeed_moe" not in done.stderr, "nothing of ours warns"


def test_import_needs_none_of_them(tmp_path: Path) -> None:
    """Not even a broken installation of one is touched."""
    for name in HEAVY:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise AssertionError('{name} was imported')")
    done = python("-c", "import mindspeed_moe; print(sorted(mindspeed_moe.__all__))", path=(tmp_path,))
    assert done.returncode == 0, done.stderr


_IMPORT_ALL = """
import importlib, json, pkgutil, sys
import torch, torch.distributed
import megatron.core.transformer.moe.token_dispatcher, megatron.core.tensor_parallel.random

OWNERS = [torch.cuda, torch.Tensor, torch.distributed, torch.distributed.distributed_c10d]
OWNERS += [module for name, module in sys.modules.items() if name.startswith("megatron.")]
OWNERS += [megatron.core.transformer.moe.token_dispatcher.MoEAlltoAllTokenDispatcher]

def standing():
    # What importing a submodule adds to its package is no patch.
    return {
        (index, name): value
        for index, owner in enumerate(OWNERS)
        for name, value in vars(owner).items()
        if not isinstance(value, type(sys))
    }

before = standing()
import mindspeed_moe
skipped = ("mindspeed_moe.adaptor", "mindspeed_moe.__main__")
names = [one.name for one in pkgutil.walk_packages(mindspeed_moe.__path__, "mindspeed_moe.")]
import mindspeed_moe.patches
names += [one.name for one in pkgutil.walk_packages(mindspeed_moe.patches.__path__, "mindspeed_moe.patches.")]
for name in names:
    if name not in skipped:
        importlib.import_module(name)
after = standing()
print(json.dumps({
    "imported": len([name for name in sys.modules if name.startswith("mindspeed_moe")]),
    "changed": [name for (_, name), value in before.items() if after.get((_, name), None) is not value],
    "added": sorted(name for _, name in after.keys() - before.keys()),
    "loaded": [name for name in ("torch_npu", "matplotlib", "mindspeed") if name in sys.modules],
    "enabled": mindspeed_moe.status() is not None,
}))
"""


def test_importing_every_module_but_the_adaptor_patches_nothing(tmp_path: Path) -> None:
    done = python("-c", _IMPORT_ALL, path=(write_stub_megatron(tmp_path),))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told.pop("imported") > 30
    assert told == {"changed": [], "added": [], "loaded": [], "enabled": False}


def test_the_folder_of_patches_is_no_package_of_its_own(tmp_path: Path) -> None:
    done = python("-c", "import patches", path=(Path(__file__).parents[2],))
    assert done.returncode == 1
    assert "install the project and import it by that name" in done.stderr
