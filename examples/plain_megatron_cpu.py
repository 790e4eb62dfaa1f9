"""A Megatron-Core GPT with MoE layers on two cpu processes, with the plugin: no MindSpeed, no accelerator.

torchrun --nproc-per-node 2 examples/plain_megatron_cpu.py [--steps N]
"""

import argparse

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_config import TransformerConfig

import mindspeed_moe.adaptor  # the plugin: before or after Megatron's import, and before the layers run

VOCABULARY, SEQUENCE, BATCH, EXPERTS = 64, 32, 4, 4


def build_model() -> DistributedDataParallel:
    config = TransformerConfig(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        ffn_hidden_size=64,
        moe_ffn_hidden_size=64,
        num_moe_experts=EXPERTS,
        moe_router_topk=2,
        moe_token_dispatcher_type="alltoall",  # what the plugin accelerates
        expert_model_parallel_size=dist.get_world_size(),
        params_dtype=torch.float32,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        gradient_accumulation_fusion=False,
    )
    spec = get_gpt_layer_local_spec(num_experts=EXPERTS, moe_grouped_gemm=False)
    model = GPTModel(config, spec, vocab_size=VOCABULARY, max_sequence_length=SEQUENCE)
    return DistributedDataParallel(config, DistributedDataParallelConfig(), model)


def batch(step: int) -> torch.Tensor:
    """Counting sequences, [BATCH, SEQUENCE + 1]: each token is the last one plus a stride."""
    generator = torch.Generator().manual_seed(1000 * step + dist.get_rank())
    start, stride = torch.randint(1, 8, (2, BATCH, 1), generator=generator)
    return (start + stride * torch.arange(SEQUENCE + 1)) % VOCABULARY


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps

    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel(expert_model_parallel_size=dist.get_world_size())
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    torch.manual_seed(1)
    model = build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    positions = torch.arange(SEQUENCE).expand(BATCH, SEQUENCE)
    future = torch.ones(1, 1, SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1)
    for step in range(steps):
        tokens = batch(step)
        model.zero_grad_buffer()
        loss = model(tokens[:, :-1], positions, future, labels=tokens[:, 1:].contiguous()).mean()
        loss.backward()
        finalize_model_grads([model])
        for parameter in model.parameters():
            parameter.grad = parameter.main_grad
        optimizer.step()
        if dist.get_rank() == 0 and (step % 5 == 0 or step == steps - 1):
            print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
    if dist.get_rank() == 0:
        print(f"preprocess: {mindspeed_moe.status().implementation('alltoall')}")  # what is in force now


if __name__ == "__main__":
    main()
