"""A MoE layer and a GPT on a device, the same weights and data on each; every tensor that training depends on."""

from __future__ import annotations

import torch
import torch.distributed as dist

import mindspeed_moe
from distributed.layers import HIDDEN, Layer, build_layer
from mindspeed_moe.demo.data import load_text
from mindspeed_moe.demo.settings import settle
from mindspeed_moe.demo.training import train

IMPLEMENTATIONS = ("stock", "reference", "packed")
EXPERTS = 8
STEPS = 3


def run(device: str, ep: int, tp: int) -> dict[str, torch.Tensor]:
    """Return name -> tensor on the host, for every implementation; Megatron's groups are made here."""
    from megatron.core import parallel_state

    found: dict[str, torch.Tensor] = {}
    for number, implementation in enumerate(IMPLEMENTATIONS):
        mindspeed_moe.enable({"device": device, "dispatchers": {"alltoall": implementation}})
        if number == 0:
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=tp, expert_model_parallel_size=ep, expert_tensor_parallel_size=tp
            )
        tensors = {**_layer(device, ep, tp), **_gpt(device, ep, tp)}
        found |= {f"{implementation}: {name}": one for name, one in tensors.items()}
        assert mindspeed_moe.disable() == ()
    return found


def _layer(device: str, ep: int, tp: int) -> dict[str, torch.Tensor]:
    """One MoE layer: output, gradients of input and weights, with two micro-batches in flight."""
    module = build_layer(Layer(ep=ep, tp=tp, experts=EXPERTS, topk=2)).to(device)
    generator = torch.Generator().manual_seed(dist.get_rank())
    shape = (12, 2, HIDDEN)
    inputs = [torch.randn(shape, generator=generator).to(device).requires_grad_() for _ in range(2)]
    outputs = [module(one)[0] for one in inputs]
    for output in outputs:
        (output * torch.randn(output.shape, generator=generator).to(device)).sum().backward()
    found = {f"layer output {at}": one.detach().cpu() for at, one in enumerate(outputs)}
    found |= {f"layer input gradient {at}": one.grad.cpu() for at, one in enumerate(inputs) if one.grad is not None}
    for name, weight in module.named_parameters():
        if weight.grad is not None:
            found[f"layer gradient of {name}"] = weight.grad.cpu()
    return found


def _gpt(device: str, ep: int, tp: int) -> dict[str, torch.Tensor]:
    """A few steps of the demo's GPT with AdamW: the losses."""
    settings = settle(tp=tp, ep=ep, etp=tp, steps=STEPS, device=device)
    losses = train(settings, load_text(None, settings.model.sequence), lambda *told: None).losses
    return {"gpt losses": torch.tensor(losses, dtype=torch.float64)}
