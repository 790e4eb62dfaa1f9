"""Train a small Megatron model with MoE layers for a few steps on one device and save what came out.

Run once with ``--device cpu`` and once, on the simulated runtime, with ``--device npu``; both start from the same
weights and read the same data, so that losses, gradients and weights can be compared. Megatron-Core must be importable.
"""

# mypy: disable-error-code="attr-defined,no-any-return,no-untyped-call"
# (torch.npu exists once torch_npu is loaded; some functions of torch and Megatron have no types)

from __future__ import annotations

import argparse
import contextlib
import os
from typing import Any

import torch
import torch.distributed as dist


class _NoStream:
    """A stream or event of a device that has none."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self


def stand_in_for_cuda() -> None:
    """Let Megatron run on the CPU: streams that do nothing, and host tensors where it expects device tensors."""
    cuda: Any = torch.cuda
    cuda.Stream = cuda.Event = _NoStream
    cuda.current_stream = lambda *args: _NoStream()
    cuda.stream = lambda stream: contextlib.nullcontext()
    cuda.current_device = lambda: "cpu"
    cuda.set_device = lambda device: None
    tensor: Any = torch.Tensor
    tensor.cuda = lambda self, *args, **kwargs: self
    cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    cuda.manual_seed = lambda seed: torch.default_generator.manual_seed(int(seed))
    cuda.is_initialized = lambda: False
    cuda._lazy_call = lambda function, **kwargs: function()


def settings(dtype: torch.dtype) -> dict[str, Any]:
    """The configuration of the model: 2 layers, hidden size 64, 8 experts of which each token takes 2."""
    return {
        "num_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "ffn_hidden_size": 128,
        "moe_ffn_hidden_size": 128,
        "num_moe_experts": 8,
        "moe_router_topk": 2,
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": False,
        "moe_aux_loss_coeff": 0.01,
        "moe_router_load_balancing_type": "aux_loss",
        "add_bias_linear": False,
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "normalization": "LayerNorm",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "masked_softmax_fusion": False,
        "bias_dropout_fusion": False,
        "gradient_accumulation_fusion": False,
        "use_cpu_initialization": True,
        "params_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
    }


def prepare(device: str) -> None:
    """Start the process group of this one process and Megatron's groups and random states."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    if device == "npu":
        import torch_npu  # noqa: F401
        from torch_npu.contrib import transfer_to_npu  # noqa: F401

        torch.npu.set_device(0)
    else:
        stand_in_for_cuda()
    dist.init_process_group("hccl" if device == "npu" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    import megatron.core.tensor_parallel.random as random
    import megatron.core.transformer.moe.moe_utils as moe_utils
    import megatron.core.transformer.moe.token_dispatcher as token_dispatcher
    from megatron.core import parallel_state

    utils: Any = moe_utils
    utils.te_general_gemm = getattr(moe_utils, "te_general_gemm", None)
    if device == "cpu":
        dispatcher: Any = token_dispatcher
        dispatcher.maybe_move_tensor_to_cpu = lambda tensor, as_numpy=False, record_stream=False: (
            (tensor.numpy() if as_numpy else tensor) if isinstance(tensor, torch.Tensor) else tensor
        )
        tracker: Any = random
        tracker._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
        tracker._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    parallel_state.initialize_model_parallel()
    random.model_parallel_cuda_manual_seed(0)
    torch.manual_seed(0)


def build(what: str, dtype: torch.dtype) -> torch.nn.Module:
    """The whole GPT model, or one MoE layer."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(**settings(dtype))
    if what == "gpt":
        from megatron.core.models.gpt import GPTModel
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

        spec = get_gpt_layer_local_spec(num_experts=8, moe_grouped_gemm=False)
        return GPTModel(config, spec, vocab_size=256, max_sequence_length=32)
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.transformer.moe.moe_layer import MoELayer

    return MoELayer(config, get_moe_module_spec(use_te=False, num_experts=8, moe_grouped_gemm=False).submodules)


def gpt_loss(model: torch.nn.Module, step: int, device: str) -> torch.Tensor:
    """The mean loss of 2 sequences of 32 tokens of a periodic text (scalar)."""
    text = (torch.arange(4096) * 37 % 251 + torch.arange(4096) // 64 % 5).to(torch.long)
    start = torch.tensor([step * 67, step * 67 + 1000])[:, None] + torch.arange(33)
    data = text[start].to(device)
    position = torch.arange(32, device=device).expand(2, 32)
    mask = torch.ones(1, 1, 32, 32, dtype=torch.bool, device=device).triu(1)
    return model(data[:, :-1], position, mask, labels=data[:, 1:]).float().mean()


def moe_loss(model: torch.nn.Module, step: int, device: str, dtype: torch.dtype) -> torch.Tensor:
    """The mean square of the layer's output for [16, 2, 64] inputs (scalar)."""
    generator = torch.Generator().manual_seed(step)
    hidden = torch.randn(16, 2, 64, generator=generator).to(dtype).to(device).requires_grad_()
    return model(hidden)[0].float().square().mean()


def main() -> None:
    """Run the steps and write losses, gradients of each step and the final weights to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "npu"), required=True)
    parser.add_argument("--what", choices=("gpt", "moe"), default="gpt")
    parser.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    prepare(arguments.device)
    dtype = getattr(torch, arguments.dtype)
    # As Megatron does with a model of 16 bits: all of it, norms too.
    model = build(arguments.what, dtype).to(dtype).to(arguments.device)
    make: Any = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[arguments.optimizer]
    more = {"momentum": 0.9} if arguments.optimizer == "sgd" else {}
    optimizer = make(model.parameters(), 3e-3, **more)
    result: dict[str, Any] = {"losses": [], "gradients": [], "norms": []}
    for step in range(arguments.steps):
        optimizer.zero_grad()
        if arguments.what == "gpt":
            loss = gpt_loss(model, step, arguments.device)
        else:
            loss = moe_loss(model, step, arguments.device, dtype)
        loss.backward()
        result["losses"].append(loss.detach().cpu())
        result["gradients"].append(
            {name: p.grad.detach().cpu().clone() for name, p in model.named_parameters() if p.grad is not None}
        )
        result["norms"].append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).detach().cpu().clone())
        optimizer.step()
    result["weights"] = {name: p.detach().cpu() for name, p in model.named_parameters()}
    torch.save(result, arguments.out)
    print(
        f"{arguments.what} on {'the simulated npu' if arguments.device == 'npu' else 'the cpu'}:",
        [round(float(loss), 6) for loss in result["losses"]],
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
