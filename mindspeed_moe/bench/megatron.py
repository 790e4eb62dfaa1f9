"""The modules of Megatron that a bench works with, imported at call time."""

from __future__ import annotations

import warnings
from types import ModuleType

from mindspeed_moe.contract.generations import TOKEN_DISPATCHER
from mindspeed_moe.contract.probes import import_whole


def parallel_state() -> ModuleType:
    """Return megatron.core.parallel_state."""
    return _quietly("megatron.core.parallel_state")


def mappings() -> ModuleType:
    """Return megatron.core.tensor_parallel.mappings, which keeps its own name for the all-gather."""
    return _quietly("megatron.core.tensor_parallel.mappings")


def transformer_config() -> ModuleType:
    """Return megatron.core.transformer.transformer_config."""
    return _quietly("megatron.core.transformer.transformer_config")


def token_dispatcher() -> ModuleType:
    """Return the module of the all-to-all dispatcher."""
    return _quietly(TOKEN_DISPATCHER)


def moe_layer() -> ModuleType:
    """Return the module of MoELayer."""
    return _quietly("megatron.core.transformer.moe.moe_layer")


def layer_specs() -> ModuleType:
    """Return the module that says what a layer is made of."""
    return _quietly("megatron.core.models.gpt.gpt_layer_specs")


def _quietly(name: str) -> ModuleType:
    with warnings.catch_warnings():
        # That Transformer Engine and Apex are missing concerns nothing that is measured.
        warnings.simplefilter("ignore", UserWarning)
        return import_whole(name)
