"""Stubs of megatron-core: just what the plugin looks at, in memory for the probes and on disk for `enable`.

FEATURES_OF is written by hand from the sources of the releases; the tests compare the package's own table with it.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Set
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from helpers_contract import MOE, contents, module_source

DISPATCHER_MODULE = f"{MOE}.token_dispatcher"
LEGACY_MODULE = f"{MOE}.legacy_a2a_token_dispatcher"

# What a release's dispatcher has -> what an error about it must contain.
FEATURES = {
    "cpu_table": "num_global_tokens_per_local_expert_cpu",
    "hook": "has '_maybe_dtoh_and_synchronize'",
    "stages": "has 'token_dispatch'",
    "event": "'d2h_event'",
    "class_stream": "'cuda_dtoh_stream'",
    "group_collection": "'pg_collection'",
    "graphs": "'cudagraph_attrs'",
    "nccl_stream": "'use_nccl_stream'",
    "legacy": LEGACY_MODULE,
}

_FROM_0_14 = {"hook", "stages", "event", "class_stream"}
FEATURES_OF: dict[str, frozenset[str]] = {
    "0.10.0": frozenset({"cpu_table", "legacy"}),
    "0.11.0": frozenset({"legacy"}),
    "0.12.1": frozenset({"hook", "legacy"}),
    "0.13.1": frozenset({"hook", "stages", "event"}),
    "0.14.0": frozenset(_FROM_0_14),
    "0.15.3": frozenset(_FROM_0_14 | {"group_collection"}),
    "0.16.1": frozenset(_FROM_0_14 | {"group_collection", "graphs"}),
    "0.17.1": frozenset(_FROM_0_14 | {"group_collection", "graphs"}),
    "0.18.2": frozenset(_FROM_0_14 | {"group_collection", "graphs", "nccl_stream"}),
    "0.19.0": frozenset(_FROM_0_14 | {"group_collection", "graphs", "nccl_stream"}),
}


def dispatcher_source(features: Set[str]) -> str:
    """Return the text of a token_dispatcher module whose all-to-all dispatcher has these features."""
    text = module_source(contents(features), "token_dispatcher")
    if "class_stream" in features:
        head = "class MoEAlltoAllTokenDispatcher(MoETokenDispatcher):\n"
        text = text.replace(head, f"{head}    cuda_dtoh_stream = None\n")
    return text


def changed(features: frozenset[str], feature: str) -> frozenset[str]:
    """Return the features with one of them added or removed; what cannot be without it goes or comes too."""
    lives_in = {"event": "hook", "nccl_stream": "stages"}
    if feature in features:
        return frozenset(one for one in features if feature not in (one, lives_in.get(one)))
    return features | {feature, lives_in.get(feature, feature)}


_OTHERS = ("moe_utils", "moe_layer", "legacy_a2a_token_dispatcher")


def stub_in_memory(monkeypatch: pytest.MonkeyPatch, source: str, *, legacy: bool, **others: str) -> ModuleType:
    """Put stub modules in the place of megatron until the test ends; returns the dispatcher module.

    others: texts of further modules of the MoE package, in the place of those of 0.12.1.
    """
    for name in [name for name in sys.modules if name == "megatron" or name.startswith("megatron.")]:
        monkeypatch.delitem(sys.modules, name)
    parts = MOE.split(".")
    for end in range(1, len(parts) + 1):
        package = _module(".".join(parts[:end]))
        package.__path__ = []  # a package, so that nothing beyond the stub is found
        monkeypatch.setitem(sys.modules, package.__name__, package)
    texts = {**{name: module_source(contents(FEATURES_OF["0.12.1"]), name) for name in _OTHERS}, **others}
    if not legacy:
        del texts["legacy_a2a_token_dispatcher"]
    for name, text in {**texts, "token_dispatcher": source}.items():
        module = _module(f"{MOE}.{name}")
        exec(text, vars(module))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return sys.modules[DISPATCHER_MODULE]


def stub_release(monkeypatch: pytest.MonkeyPatch, features: Set[str]) -> ModuleType:
    """Like stub_in_memory, for a set of features."""
    return stub_in_memory(monkeypatch, dispatcher_source(features), legacy="legacy" in features)


def _module(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    return module


# ------------------------------------------------------------------------------------------------ on disk

WORKING_DISPATCHER = (
    "from megatron.core.transformer.moe.moe_utils import maybe_move_tensor_to_cpu\n"
    + dispatcher_source(FEATURES_OF["0.12.1"])
)

_STUB = contents(FEATURES_OF["0.12.1"])

_MOE_UTILS = f"""
{module_source(_STUB, "moe_utils")}
def maybe_move_tensor_to_cpu(tensor, as_numpy=False, record_stream=False):
    return tensor
"""

_RANDOM = """
def _get_cuda_rng_state(device="cuda", clone=False, graph_safe=False):
    raise AssertionError("there is no GPU")

def _set_cuda_rng_state(new_state, device=-1, graph_safe=False):
    raise AssertionError("there is no GPU")
"""


def package_info(release: str = "0.12.1", pre_release: str = "") -> str:
    """Return the text of a package_info.py."""
    major, minor, patch = release.split(".")
    return f"MAJOR = {major}\nMINOR = {minor}\nPATCH = {patch}\nPRE_RELEASE = {pre_release!r}\n"


def write_stub_megatron(
    folder: Path, *, info: str | None = None, core: str = "", dispatcher: str = WORKING_DISPATCHER
) -> Path:
    """Write a stub of megatron-core 0.12.1 below `folder`, which belongs on the path; returns `folder`.

    info, core, dispatcher: other texts for package_info.py, core/__init__.py and token_dispatcher.py.
    """
    files = {
        "__init__.py": "",
        "core/__init__.py": core,
        "core/package_info.py": package_info() if info is None else info,
        "core/models/__init__.py": "",
        "core/models/gpt/__init__.py": "",
        "core/models/gpt/gpt_layer_specs.py": "",
        "core/tensor_parallel/__init__.py": "",
        "core/tensor_parallel/random.py": _RANDOM,
        "core/transformer/__init__.py": "",
        "core/transformer/moe/__init__.py": "",
        "core/transformer/moe/moe_utils.py": _MOE_UTILS,
        "core/transformer/moe/token_dispatcher.py": dispatcher,
        "core/transformer/moe/moe_layer.py": module_source(_STUB, "moe_layer"),
        "core/transformer/moe/legacy_a2a_token_dispatcher.py": module_source(_STUB, "legacy_a2a_token_dispatcher"),
    }
    for name, text in files.items():
        path = folder / "megatron" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


@contextlib.contextmanager
def forget_megatron() -> Iterator[None]:
    """Within the block, megatron is imported anew; afterwards what was there before is back."""
    before = _take_megatron()
    importlib.invalidate_caches()
    try:
        yield
    finally:
        _take_megatron()
        sys.modules.update(before)


def _take_megatron() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name == "megatron" or name.startswith("megatron.")]
    return {name: sys.modules.pop(name) for name in names}
