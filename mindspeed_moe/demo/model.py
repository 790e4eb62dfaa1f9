"""Megatron's GPTModel with MoE layers, from the local layer spec, with weights that do not depend on the layout."""

from __future__ import annotations

import importlib
import math
import re
import zlib
from typing import Any

import torch

from mindspeed_moe.demo.settings import Settings

_STD = 0.02
_TO_RESIDUAL = ("linear_proj.weight", "linear_fc2.weight")  # smaller at the start, as in GPT-2
_EXPERT = re.compile(r"(?<=\.local_experts\.)\d+(?=\.)")


class Norm(torch.nn.LayerNorm):
    """LayerNorm for the layer spec: Megatron's torch norm refuses sequence parallelism, which tp > 1 brings."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        for parameter in self.parameters():
            # Each rank norms a part of the sequence; finalize_model_grads adds the parts of marked parameters.
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def build_model(settings: Settings) -> torch.nn.Module:
    """Return this rank's part of the model, wrapped in Megatron's DistributedDataParallel.

    Megatron's groups must be initialised. Gradients arrive in `main_grad`, averaged over data-parallel ranks.
    """
    core = importlib.import_module("megatron.core")
    gpt = importlib.import_module("megatron.core.models.gpt")
    specs = importlib.import_module("megatron.core.models.gpt.gpt_layer_specs")
    block = importlib.import_module("megatron.core.transformer.transformer_block")
    transformer_config = importlib.import_module("megatron.core.transformer.transformer_config")
    distributed = importlib.import_module("megatron.core.distributed")

    size = settings.model
    core.tensor_parallel.model_parallel_cuda_manual_seed(size.seed)
    config = transformer_config.TransformerConfig(
        num_layers=size.layers,
        hidden_size=size.hidden,
        num_attention_heads=size.heads,
        ffn_hidden_size=size.ffn,
        moe_ffn_hidden_size=size.ffn,
        num_moe_experts=size.experts,
        moe_router_topk=size.topk,
        moe_router_load_balancing_type="aux_loss",
        moe_aux_loss_coeff=size.aux_loss,
        moe_token_dispatcher_type=settings.dispatcher,
        tensor_model_parallel_size=settings.tp,
        expert_model_parallel_size=settings.ep,
        expert_tensor_parallel_size=settings.etp,
        sequence_parallel=settings.tp > 1,
        params_dtype=torch.float32,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        gradient_accumulation_fusion=False,
    )
    layer = specs.get_gpt_layer_local_spec(num_experts=size.experts, moe_grouped_gemm=False)
    layer.submodules.input_layernorm = Norm
    layer.submodules.pre_mlp_layernorm = Norm
    model = gpt.GPTModel(
        config,
        block.TransformerBlockSubmodules(layer_specs=[layer] * size.layers, layer_norm=Norm),
        vocab_size=size.vocabulary,
        max_sequence_length=size.sequence,
    )
    _set_weights(model, settings, core.parallel_state)
    _move(model, settings.device)
    for name, parameter in model.named_parameters():
        if _is_expert(name):
            # Megatron marks experts only if ep > 1, yet with etp != tp their groups differ from the dense ones too.
            parameter.allreduce = False
    wrapped: torch.nn.Module = distributed.DistributedDataParallel(
        config,
        distributed.DistributedDataParallelConfig(overlap_grad_reduce=False, use_distributed_optimizer=False),
        model,
    )
    return wrapped


def _move(model: torch.nn.Module, device: str) -> None:
    """Move the model; for some devices torch makes new parameters, and Megatron's marks must stay on them."""
    marks = {name: dict(vars(parameter)) for name, parameter in model.named_parameters()}
    model.to(device)
    for name, parameter in model.named_parameters():
        vars(parameter).update(marks[name])


def _is_expert(name: str) -> bool:
    return ".local_experts." in name


def _set_weights(model: torch.nn.Module, settings: Settings, groups: Any) -> None:
    """Draw every matrix whole, from the seed and its name, and keep this rank's part.

    Megatron draws what a rank holds, so that weights would differ from layout to layout.
    """
    first_expert = groups.get_expert_model_parallel_rank() * (settings.model.experts // settings.ep)
    shards = {
        True: (settings.etp, groups.get_expert_tensor_parallel_rank()),
        False: (settings.tp, groups.get_tensor_model_parallel_rank()),
    }
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:  # norms start as ones and zeros
            continue
        sharded: Any = parameter
        ranks, rank = shards[_is_expert(name)] if getattr(sharded, "tensor_model_parallel", False) else (1, 0)
        dim = sharded.partition_dim if ranks > 1 else 0
        shape = list(parameter.shape)
        shape[dim] *= ranks
        whole = _EXPERT.sub(lambda found: str(int(found.group()) + first_expert), name)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{settings.model.seed} {whole}".encode()))
        std = _STD / math.sqrt(2 * settings.model.layers) if name.endswith(_TO_RESIDUAL) else _STD
        with torch.no_grad():
            parameter.copy_(torch.empty(shape).normal_(0.0, std, generator=generator).chunk(ranks, dim)[rank])
