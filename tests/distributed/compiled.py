"""A layer under torch.compile, on every rank."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist

from distributed.layers import HIDDEN, Layer, build_layer, enabled, settings

COMPILED = ("packed, all_to_all, byte_lanes", "reference")


def stock_compiles(layer: Layer) -> str:
    """Return why torch cannot compile this release's layer without the plugin either; empty where it can."""
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    torch._dynamo.reset()
    with enabled(settings("stock", layer.dispatcher)):
        try:
            _run(torch.compile(build_layer(layer), backend="aot_eager"), layer.tokens[0][0], layer)
        except (torch._dynamo.exc.TorchDynamoException, GuardOnDataDependentSymNode) as error:
            return type(error).__name__
    return ""


def compiled(layer: Layer) -> dict[str, list[bool]]:
    """Compile the layer under each implementation; returns whether output and gradient are those without compiler."""
    found = {}
    for name in COMPILED:
        with enabled(settings(name, layer.dispatcher)):
            torch._dynamo.reset()
            module = build_layer(layer)
            results = [_run(module, tokens, layer) for tokens in layer.tokens[0]]
            graphs: list[torch.fx.GraphModule] = []
            again = torch.compile(module, backend=functools.partial(_aot_eager, graphs))
            results_again = [_run(again, tokens, layer) for tokens in layer.tokens[0]]
            traced = [str(node.stack_trace) for graph in graphs for node in graph.graph.nodes]
            assert any("token_dispatcher.py" in one for one in traced), "hardly anything was compiled"
            ours = [one for one in traced if "/preprocess/" in one]
            assert not ours, f"{name}: compiled, {ours[0]}"
        found[name] = [
            torch.equal(one, other)
            for before, after in zip(results, results_again, strict=True)
            for one, other in zip(before, after, strict=True)
        ]
    return found


def _aot_eager(graphs: list[torch.fx.GraphModule], graph: torch.fx.GraphModule, inputs: Any) -> Any:
    graphs.append(graph)
    return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


def _run(module: Any, tokens: int, layer: Layer) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7 * tokens + dist.get_rank())
    hidden = torch.randn(tokens, layer.batch, HIDDEN, generator=generator).requires_grad_()
    output = module(hidden)[0]
    output.square().sum().backward()
    assert hidden.grad is not None
    return [output.detach(), hidden.grad]
