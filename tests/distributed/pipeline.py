"""Jobs that train a small GPT of Megatron's in two pipeline stages, as its own training loop would call them."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

import mindspeed_moe.verify
from distributed.layers import enabled, give_own_experts

STAGES, EP = 2, 2
LAYERS, HIDDEN, VOCABULARY, SEQUENCE, EXPERTS, TOPK = 4, 16, 32, 8, 4, 2
MICRO_BATCHES, STEPS, FIRST_STEP = 4, 3, 40  # training goes on from a checkpoint


@dataclass(frozen=True)
class Pipeline:
    """moe: which of the layers are MoE layers. chunks: model chunks of each stage; with two stages alternate."""

    moe: tuple[int, ...]
    chunks: int = 1
    recompute: bool = False


def train(pipeline: Pipeline, config: Mapping[str, Any]) -> dict[str, Any]:
    """Train, with an evaluation after each step; returns this rank's losses, as hexadecimal, and what was compared."""
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel import get_forward_backward_func

    parallel_state.initialize_model_parallel(
        pipeline_model_parallel_size=STAGES,
        virtual_pipeline_model_parallel_size=pipeline.chunks if pipeline.chunks > 1 else None,
        expert_model_parallel_size=EP,
    )
    try:
        with enabled(config), megatrons_loop() as loop, as_in_a_new_process():
            chunks = build_chunks(pipeline)
            optimizer = torch.optim.SGD([one for chunk in chunks for one in chunk.parameters()], lr=0.05)
            schedule = get_forward_backward_func()
            losses: list[str] = []

            def run(forward_only: bool, seed: int) -> None:
                found = schedule(
                    forward_step_func=_forward,
                    data_iterator=[_data(seed) for _ in chunks] if len(chunks) > 1 else _data(seed),
                    model=chunks if len(chunks) > 1 else chunks[0],
                    num_microbatches=MICRO_BATCHES,
                    seq_length=SEQUENCE,
                    micro_batch_size=1,
                    forward_only=forward_only,
                )
                losses.extend(one["loss"].hex() for one in found)

            for step in range(STEPS):
                loop.curr_iteration = FIRST_STEP + step
                optimizer.zero_grad(set_to_none=True)
                run(forward_only=False, seed=step)
                optimizer.step()
                with torch.no_grad():
                    run(forward_only=True, seed=100 + step)
        compared = mindspeed_moe.verify.compared()
        return {"losses": losses, "compared": None if compared is None else asdict(compared)}
    finally:
        parallel_state.destroy_model_parallel()


@contextlib.contextmanager
def as_in_a_new_process() -> Iterator[None]:
    """Other jobs have left a scale of the auxiliary loss, of another shape; and no accelerator is here."""
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    scale = mock.patch.object(MoEAuxLossAutoScaler, "main_loss_backward_scale", None)
    with scale, mock.patch.object(torch, "zeros", _zeros_on_the_host):
        yield


@contextlib.contextmanager
def megatrons_loop() -> Iterator[SimpleNamespace]:
    """What Megatron's training loop tells of itself."""
    args = SimpleNamespace(iteration=FIRST_STEP)
    module: Any = SimpleNamespace(_GLOBAL_ARGS=args)
    with mock.patch.dict(sys.modules, {"megatron.training.global_vars": module}):
        yield args


def build_chunks(pipeline: Pipeline) -> list[Any]:
    """Return this rank's part of the model, in one chunk or more; the same weights every time."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer.transformer_config import TransformerConfig

    recomputation = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    config = TransformerConfig(
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        num_attention_heads=2,
        ffn_hidden_size=24,
        moe_ffn_hidden_size=24,
        num_moe_experts=EXPERTS,
        moe_router_topk=TOPK,
        moe_layer_freq=list(pipeline.moe),
        moe_token_dispatcher_type="alltoall",
        pipeline_model_parallel_size=STAGES,
        virtual_pipeline_model_parallel_size=pipeline.chunks if pipeline.chunks > 1 else None,
        expert_model_parallel_size=EP,
        pipeline_dtype=torch.float32,
        params_dtype=torch.float32,
        normalization="RMSNorm",
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        gradient_accumulation_fusion=False,
        **(recomputation if pipeline.recompute else {}),
    )
    torch.manual_seed(parallel_state.get_pipeline_model_parallel_rank())
    model_parallel_cuda_manual_seed(0)
    chunks = []
    for chunk in range(pipeline.chunks):
        at: dict[str, Any] = {}
        if pipeline.chunks > 1:
            if "vp_stage" in inspect.signature(parallel_state.is_pipeline_first_stage).parameters:
                at["vp_stage"] = chunk
            else:  # up to 0.12 the chunk is a global
                parallel_state.set_virtual_pipeline_model_parallel_rank(chunk)
        pre = parallel_state.is_pipeline_first_stage(ignore_virtual=False, **at)
        post = parallel_state.is_pipeline_last_stage(ignore_virtual=False, **at)
        spec = get_gpt_decoder_block_spec(config, use_transformer_engine=False, **at)
        model = GPTModel(
            config, spec, VOCABULARY, SEQUENCE, pre_process=pre, post_process=post,
            share_embeddings_and_output_weights=False, **at,
        )  # fmt: skip
        model.model_type = _model_type()
        give_own_experts(model)
        chunks.append(model)
    return chunks


_zeros = torch.zeros


def _zeros_on_the_host(*size: Any, device: Any = None, **more: Any) -> torch.Tensor:
    """The schedule counts tokens on "cuda" by that name."""
    return _zeros(*size, device="cpu" if device == "cuda" else device, **more)


def _model_type() -> Any:
    from megatron.core.enums import ModelType

    return ModelType.encoder_or_decoder


def _data(seed: int) -> Iterator[torch.Tensor]:
    for number in range(MICRO_BATCHES):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        yield torch.randint(VOCABULARY, (1, SEQUENCE + 1), generator=generator)


def _forward(data: Iterator[torch.Tensor], model: Any) -> tuple[torch.Tensor, Any]:
    """One micro-batch, as the schedule asks for it."""
    tokens = next(data)
    future = torch.ones(1, 1, SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1)
    output = model(tokens[:, :-1], torch.arange(SEQUENCE).expand(1, -1), future, labels=tokens[:, 1:].contiguous())

    def loss(output: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        mean = output.mean()
        return mean, {"loss": mean.item()}

    return output, loss
