"""Jobs that use a MoE layer as special schedules do: stages apart, with other work between; padding on and off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from distributed.layers import HIDDEN, PREPROCESS, Layer, build_layer, enabled, settings

Tensors = dict[str, torch.Tensor]
SWITCHES = (False, True, False, True, True, False)


def differences(layer: Layer, job: str) -> dict[str, list[str]]:
    """Implementation -> names of the tensors that are not bit-identical to stock's; `control` is stock run twice."""
    run = {"stages": in_stages, "padding": switched}[job]
    expected = run(layer, settings("stock", layer.dispatcher))
    found = {name: run(layer, settings(name, layer.dispatcher)) for name in PREPROCESS}
    found["control"] = run(layer, settings("stock", layer.dispatcher))
    assert len(expected) > 5
    return {
        name: [key for key, value in expected.items() if not torch.equal(value, one[key])]
        for name, one in found.items()
    }


def in_stages(layer: Layer, config: Mapping[str, Any]) -> Tensors:
    """One layer's stages as 1F1B overlap runs them: other layers' forwards and backwards come between them."""
    with enabled(config):
        first, other = build_layer(layer), build_layer(layer)
        inputs = [_input(layer, number) for number in range(3)]
        waiting = other(inputs[1])[0]
        dispatcher = first.token_dispatcher
        probs, routing_map = first.router(inputs[0])
        rows, row_probs = dispatcher.dispatch_preprocess(inputs[0], routing_map, probs)
        waiting.square().sum().backward()  # between the compute node and the communication node
        last = other(inputs[2])[0]
        rows, row_probs = dispatcher.token_dispatch(rows, row_probs)
        rows, counts, row_probs = dispatcher.dispatch_postprocess(rows, row_probs)
        rows, _ = first.experts(rows, counts, row_probs)
        rows = dispatcher.token_combine(dispatcher.combine_preprocess(rows))
        output = dispatcher.combine_postprocess(rows)
        (output.square().sum() + last.square().sum()).backward()
    found = {"output": output.detach(), "waiting": waiting.detach(), "last": last.detach()}
    found |= {f"gradient of input {at}": one.grad for at, one in enumerate(inputs) if one.grad is not None}
    for name, weight in [*first.named_parameters(), *other.named_parameters(prefix="other")]:
        if weight.grad is not None:
            found[f"gradient of {name}"] = weight.grad
    return found


def switched(layer: Layer, config: Mapping[str, Any]) -> Tensors:
    """Inference's padding, switched on and off on a live dispatcher by Megatron's own function."""
    from megatron.core.inference import utils

    with enabled(config):
        module = build_layer(layer)
        utils.moe_layer_cache = [module]
        found = {}
        for number, on in enumerate(SWITCHES):
            utils.set_decode_expert_padding(module, on, layer.experts // layer.topk if on else None)
            with torch.no_grad():
                found[f"output {number}, padding {on}"] = module(_input(layer, number))[0]
        utils.moe_layer_cache = None
    return found


def _input(layer: Layer, number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * number + dist.get_rank())
    return torch.randn(6, layer.batch, HIDDEN, generator=generator).requires_grad_()
