"""Stand-ins for what MindSpeed imports and this machine cannot have: compilers and kernels of CANN.

Modules are inert: they import, and nothing of them is called. Kernels are plain torch on the simulated device: they
compute what the kernels of the same name compute, not what those cost. MindSpeed itself is untouched.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch

INERT = ("torchair", "acl")


class _InertFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of INERT packages that are not there."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in self._names:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        inert = MagicMock(name=spec.name)
        for driver in (inert, inert.driver, inert.runtime.driver):  # asked of triton, however it is imported
            driver.active.get_current_target.return_value.backend = "npu"

        def attribute(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return getattr(inert, name)

        module.__getattr__ = attribute  # type: ignore[method-assign]
        module.__version__ = "3.4.0"  # Megatron compares triton's
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def install_modules(*, triton: bool) -> None:
    """Make the INERT packages importable; after torch and torch_npu, which look for some of them themselves.

    triton: that too, for a MindSpeed that cannot be imported without it.
    """
    inert = (*INERT, "triton") if triton else INERT
    for name in [name for name in sys.modules if name.partition(".")[0] in inert]:
        del sys.modules[name]  # torch_npu leaves a torchair there that raises when it is touched
    sys.meta_path.insert(0, _InertFinder(inert))


# ---------------------------------------------------------------------------------------------- grouped matmul


def _rows_of(group_list: torch.Tensor, rows: int, cumulative: bool) -> torch.Tensor:
    """Return the group of each row, [N], on the device; the host reads nothing."""
    ends = group_list if cumulative else group_list.cumsum(0)
    numbers = torch.arange(rows, device=ends.device)
    return (numbers.unsqueeze(1) >= ends.unsqueeze(0)).sum(1)


class GroupedMatmul:
    """Stands for the compiled extension of `mindspeed/ops/csrc/cann/gmm*.cpp`."""

    def __init__(self, cumulative: bool) -> None:
        self._cumulative = cumulative

    def _one_hot(self, x: torch.Tensor, weight: torch.Tensor, group_list: Any) -> torch.Tensor:
        groups = torch.as_tensor(group_list, device=x.device)
        rows = _rows_of(groups, x.shape[0], self._cumulative)
        return (rows.unsqueeze(1) == torch.arange(weight.shape[0], device=x.device)).to(x.dtype)  # [N, G]

    def npu_gmm(self, x: Any, weight: Any, bias: Any, group_list: Any, *unused: Any) -> list[torch.Tensor]:
        (rows,), (weights,) = x, weight
        chosen = self._one_hot(rows, weights, group_list)
        return [(torch.matmul(rows, weights) * chosen.t().unsqueeze(2)).sum(0)]

    def npu_gmm_backward(self, grad: Any, x: Any, weight: Any, group_list: Any, *unused: Any) -> tuple[Any, Any, Any]:
        (dy,), (rows,), (weights,) = grad, x, weight
        chosen = self._one_hot(rows, weights, group_list).t().unsqueeze(2)  # [G, N, 1]
        dx = (torch.matmul(dy, weights.transpose(1, 2)) * chosen).sum(0)
        dw = torch.matmul((rows * chosen).transpose(1, 2), dy)
        return [dx], [dw], []


def install_grouped_matmul() -> None:
    """Put the stand-in where MindSpeed would compile its own."""
    from mindspeed.op_builder.builder import MindSpeedOpBuilder

    def load(self: Any, verbose: bool = True) -> Any:
        kinds = {"GMMOpBuilder": True, "GMMV2OpBuilder": False}
        if type(self).__name__ not in kinds:
            raise RuntimeError(f"{type(self).__name__}: there is no stand-in for this kernel")
        return GroupedMatmul(kinds[type(self).__name__])

    MindSpeedOpBuilder.load = load


# ---------------------------------------------------------------------------------------------- permutation


def _order(routing_map: torch.Tensor, rows: int) -> torch.Tensor:
    """Return the token of each permuted row, by expert and then by token, [N]."""
    experts, tokens = routing_map.t().contiguous().nonzero(as_tuple=True)
    del experts
    assert tokens.shape[0] >= rows
    return tokens[:rows]


def permute_with_routing_map(
    tokens: torch.Tensor, routing_map: torch.Tensor, *, probs: Any = None, num_out_tokens: Any = None, **unused: Any
) -> tuple[Any, Any, torch.Tensor]:
    """Stands for torch_npu.npu_moe_token_permute_with_routing_map, dropless."""
    sorted_indices = _order(routing_map, int(num_out_tokens))
    permuted_probs = None
    if probs is not None:
        permuted_probs = probs.t().contiguous().masked_select(routing_map.t().contiguous())
    return tokens.index_select(0, sorted_indices), permuted_probs, sorted_indices


def permute_with_routing_map_grad(
    grad: torch.Tensor,
    probs_grad: Any,
    sorted_indices: torch.Tensor,
    routing_map: torch.Tensor,
    experts: int,
    tokens: int,
    *unused: Any,
) -> tuple[torch.Tensor, Any]:
    """Stands for its gradient."""
    found = torch.zeros(tokens, grad.shape[1], dtype=grad.dtype, device=grad.device).index_add_(0, sorted_indices, grad)
    if probs_grad is None:
        return found, None
    spread = torch.zeros(experts, tokens, dtype=probs_grad.dtype, device=probs_grad.device)
    spread[routing_map.t()] = probs_grad
    return found, spread.t().contiguous()


def unpermute_with_routing_map(
    permuted: torch.Tensor, sorted_indices: torch.Tensor, restore_shape: Any, *, probs: Any = None, **unused: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
    """Stands for torch_npu._npu_moe_token_unpermute_with_routing_map, with probs applied elsewhere."""
    assert probs is None
    found = torch.zeros(tuple(restore_shape), dtype=permuted.dtype, device=permuted.device)
    return found.index_add_(0, sorted_indices, permuted), sorted_indices, sorted_indices, None


def unpermute_with_routing_map_grad(
    grad: torch.Tensor, sorted_indices: torch.Tensor, *unused: Any, **more: Any
) -> tuple[torch.Tensor, None]:
    """Stands for its gradient."""
    return grad.index_select(0, sorted_indices), None


def install_permutation() -> None:
    """Put the stand-ins where torch_npu would call kernels that the simulation does not have."""
    import torch_npu

    torch_npu.npu_moe_token_permute_with_routing_map = permute_with_routing_map
    torch_npu.npu_moe_token_permute_with_routing_map_grad = permute_with_routing_map_grad
    torch_npu._npu_moe_token_unpermute_with_routing_map = unpermute_with_routing_map
    torch_npu.npu_moe_token_unpermute_with_routing_map = lambda *args, **more: unpermute_with_routing_map(
        *args, **more
    )[0]
    torch_npu.npu_moe_token_unpermute_with_routing_map_grad = unpermute_with_routing_map_grad


# ---------------------------------------------------------------------------------------------- sorting of chunks

# Where MindSpeed has its triton kernels; a tree has one of them or none.
_SORTING = ("mindspeed.lite.ops.triton.sort_chunks_by_idx", "mindspeed.ops.triton.sort_chunks_by_idx")


def _sort(rows: torch.Tensor, splits: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Move chunks of rows; all on the device, the host reads nothing."""
    assert splits.device.type == "npu", "fused sorting reads the chunk table on the device"
    splits, order = splits.reshape(-1), order.to(splits.device)
    ends, sorted_splits = splits.cumsum(0), splits.index_select(0, order)
    sorted_ends = sorted_splits.cumsum(0)
    numbers = torch.arange(rows.shape[0], device=splits.device)
    chunk = (numbers.unsqueeze(1) >= sorted_ends.unsqueeze(0)).sum(1)
    start = (ends - splits).index_select(0, order)
    source = start.index_select(0, chunk) + numbers - (sorted_ends - sorted_splits).index_select(0, chunk)
    return rows.index_select(0, source)


def _sort_chunks(rows: torch.Tensor, splits: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return _sort(rows, splits, order)


def _sort_chunks_with_probs(
    rows: torch.Tensor, probs: torch.Tensor, splits: torch.Tensor, order: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return _sort(rows, splits, order), _sort(probs.unsqueeze(1), splits, order).squeeze(1)


def install_sorting() -> None:
    """Put the stand-ins where MindSpeed has triton kernels; nothing in a tree, or without triton, that has none."""
    for name in _SORTING:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        module.moe_sort_chunks_by_index = _sort_chunks
        module.moe_sort_chunks_by_index_with_probs = _sort_chunks_with_probs
