"""Jobs that run Megatron's MoE layer on every rank, under stock and under the plugin, and compare to the last bit."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_moe.contract import generation_of

HIDDEN = 16

ALLTOALL, SEQ = "alltoall", "alltoall_seq"

PREPROCESS: dict[str, Mapping[str, Any]] = {
    "reference": {},
    **{
        f"packed, {exchange}, {counts}": {"exchange": exchange, "counts": counts}
        for exchange in ("all_to_all", "all_gather")
        for counts in ("byte_lanes", "sum")
    },
}


def settings(implementation: str, dispatcher: str) -> dict[str, Any]:
    """The configuration: this dispatcher under an implementation, the other one untouched."""
    kind, other = implementation.partition(",")[0], SEQ if dispatcher == ALLTOALL else ALLTOALL
    return {"dispatchers": {dispatcher: kind, other: "stock"}, "preprocess": PREPROCESS.get(implementation, {})}


STOCK = settings("stock", ALLTOALL)
PLUGIN = {name: settings(name, ALLTOALL) for name in PREPROCESS}


@dataclass(frozen=True)
class Layer:
    """One MoE layer and what runs through it.

    tokens: sequence lengths of the two micro-batches, by EP-group member (ranks that share their sequence through
    tensor parallelism have the same length). overlap: shared experts run between the dispatcher's stages.
    recompute: the layer runs again in backward. dispatcher: as Megatron's configuration names it.
    """

    ep: int
    tp: int
    experts: int
    topk: int = 1
    mode: str = "dropless"
    tokens: tuple[tuple[int, int], ...] = ((8, 8), (8, 8), (8, 8), (8, 8))
    batch: int = 2
    overlap: bool = False
    recompute: bool = False
    router: str = "megatron"
    dispatcher: str = ALLTOALL


class GivenRouter(torch.nn.Module):
    """Stands for Megatron's router, which cannot do without tokens; `one expert` sends all tokens to expert 0."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.topk, self.one_expert = layer.topk, layer.router == "one expert"
        self.weight = torch.nn.Parameter(torch.randn(HIDDEN, layer.experts))

    def forward(self, hidden: torch.Tensor, *unused: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return probabilities [T, E] and the routing map [T, E] bool."""
        scores = (hidden.reshape(-1, HIDDEN) @ self.weight).softmax(dim=-1)
        chosen = scores.topk(self.topk, dim=1).indices
        if self.one_expert:
            chosen = torch.zeros_like(chosen)
        routing_map = torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, chosen, True)
        return scores * routing_map, routing_map


def compare_with_stock(layer: Layer) -> dict[str, Any]:
    """Run the layer under every implementation; returns this rank's findings.

    differences: what is not bit-identical to stock, by implementation. control: the same for stock run twice.
    rows: rows after the first permutation of the last micro-batch, and `T * topk`.
    """
    stock = settings("stock", layer.dispatcher)
    expected = run_layer(layer, stock)
    control = _differences(expected, run_layer(layer, stock))
    found = {name: run_layer(layer, settings(name, layer.dispatcher)) for name in PREPROCESS}
    differences = {name: _differences(expected, one) for name, one in found.items()}
    return {
        "differences": {name: bad for name, bad in differences.items() if bad},
        "control": control,
        "compared": len(expected["tensors"]),
        "experts": [one.tolist() for one in expected["experts"]],
        "norm": float(sum(one.norm() for one in expected["tensors"].values())),
        "rows": expected["rows"],
    }


def run_layer(layer: Layer, config: Mapping[str, Any]) -> dict[str, Any]:
    """Two forwards, then two backwards, in a freshly made layer; returns outputs and gradients by name."""
    with enabled(config):
        module = build_layer(layer)
        member = dist.get_rank() // layer.tp
        generator = torch.Generator().manual_seed(1000 + dist.get_rank())
        inputs = [
            torch.randn(tokens, layer.batch, HIDDEN, generator=generator).requires_grad_()
            for tokens in layer.tokens[member % len(layer.tokens)]
        ]
        outputs = [module(one)[0] for one in inputs]
        rows = (int(module.token_dispatcher.num_out_tokens), inputs[-1].shape[0] * layer.batch * layer.topk)
        for output in outputs:
            weights = torch.randn(output.shape, generator=generator)
            (output * weights).sum().backward()
    tensors = {f"output {at}": one.detach() for at, one in enumerate(outputs)}
    tensors |= {f"gradient of input {at}": one.grad for at, one in enumerate(inputs)}
    for name, weight in module.named_parameters():
        if weight.grad is not None:
            tensors[f"gradient of {name}"] = weight.grad
    return {"tensors": tensors, "rows": rows, "experts": [one.norm() for one in module.experts.parameters()]}


@contextlib.contextmanager
def enabled(config: Mapping[str, Any]) -> Iterator[None]:
    """The plugin's patches for the time of a block."""
    import mindspeed_moe

    mindspeed_moe.enable(config)
    try:
        yield
    finally:
        assert mindspeed_moe.disable() == ()


def build_layer(layer: Layer) -> Any:
    """Return Megatron's MoELayer; the same weights every time."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer.moe.moe_layer import MoELayer
    from megatron.core.transformer.transformer_config import TransformerConfig

    model_parallel_cuda_manual_seed(0)
    torch.manual_seed(0)
    wanted: dict[str, Any] = {}
    if layer.mode in ("drop", "pad"):
        wanted["moe_expert_capacity_factor"] = 0.75
        wanted["moe_pad_expert_input_to_capacity"] = layer.mode == "pad"
    if layer.overlap:
        wanted |= {"moe_shared_expert_intermediate_size": 24, "moe_shared_expert_overlap": True}
    if layer.recompute:
        wanted |= _recomputation(TransformerConfig)
    config = TransformerConfig(
        num_layers=1,
        hidden_size=HIDDEN,
        num_attention_heads=4,
        num_moe_experts=layer.experts,
        moe_router_topk=layer.topk,
        moe_router_pre_softmax=True,  # with top-1 the router would get no gradient otherwise
        moe_router_load_balancing_type="aux_loss",
        moe_aux_loss_coeff=0.01,
        moe_token_dispatcher_type=layer.dispatcher,
        moe_grouped_gemm=False,
        moe_ffn_hidden_size=24,
        ffn_hidden_size=24,  # which 0.11 wants to be the same
        use_cpu_initialization=True,
        params_dtype=torch.float32,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        tensor_model_parallel_size=layer.tp,
        expert_model_parallel_size=layer.ep,
        expert_tensor_parallel_size=layer.tp,
        sequence_parallel=layer.tp > 1,
        **wanted,
    )
    if layer.mode == "router padding":
        # The configuration asks for fp8, which no CPU has; the dispatcher itself only reads this flag.
        setattr(config, str(router_padding()), True)
        config.fp8 = "hybrid"  # from which 0.18 and later take the multiple; no kernel of fp8 is ever reached
    mlp = get_gpt_layer_local_spec(num_experts=layer.experts, moe_grouped_gemm=False).submodules.mlp
    module = mlp(config) if isinstance(mlp, functools.partial) else MoELayer(config, mlp.submodules)
    give_own_experts(module)
    if layer.router != "megatron":
        module.router = GivenRouter(layer)
    return module


def give_own_experts(module: torch.nn.Module) -> None:
    """Make each rank's experts others: one seed gives all ranks the same, and hides a token at a wrong rank."""
    with torch.no_grad():
        for layer in module.modules():
            if hasattr(layer, "token_dispatcher"):
                for weight in layer.experts.parameters():
                    weight.mul_(1 + 0.25 * dist.get_rank())


def has_sequence_dispatcher() -> bool:
    """Whether this release still has MoEAlltoAllSEQTokenDispatcher."""
    return importlib.util.find_spec("megatron.core.transformer.moe.legacy_a2a_token_dispatcher") is not None


def waits_in_a_hook(dispatcher: str) -> bool:
    """Whether this release's dispatcher has a method to wait in."""
    from megatron.core.transformer.moe import token_dispatcher

    return dispatcher == ALLTOALL and hasattr(
        token_dispatcher.MoEAlltoAllTokenDispatcher, "_maybe_dtoh_and_synchronize"
    )


def router_padding() -> str | None:
    """The flag under which this release pads the routing map, spelled out here: the plugin is not asked."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    flags = ("moe_router_padding_for_quantization", "moe_router_padding_for_fp8")  # the newer one stands for both
    return next((flag for flag in flags if hasattr(TransformerConfig, flag)), None)


def _recomputation(config: type) -> dict[str, Any]:
    if hasattr(config, "recompute_modules") or "recompute_modules" in getattr(config, "__dataclass_fields__", {}):
        return {"recompute_granularity": "selective", "recompute_modules": ["moe"]}
    return {"moe_layer_recompute": True}


def _differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    wanted, got = expected["tensors"], found["tensors"]
    if wanted.keys() != got.keys():
        return [f"other tensors: {sorted(wanted.keys() ^ got.keys())}"]
    return [
        f"{name}: {tuple(one.shape)}, expected {tuple(wanted[name].shape)}, "
        f"largest difference {_largest(wanted[name], one)}"
        for name, one in got.items()
        if not torch.equal(wanted[name], one)
    ]


def _largest(wanted: torch.Tensor, got: torch.Tensor) -> Any:
    return float((wanted - got).abs().max()) if wanted.shape == got.shape and wanted.numel() else "none"


# ------------------------------------------------------------------------------------------------- attributes

POINTS = ("before_permutation_1", "before_ep_alltoall", "before_permutation_2", "before_finish")
SPLITS = ("input_splits", "output_splits", "output_splits_tp")


def attributes_of_all(layer: Layer) -> dict[str, dict[str, Any]]:
    """What preprocess and the wait leave on a real dispatcher: by implementation, name -> (form, values)."""
    return {name: attributes(layer, settings(name, layer.dispatcher)) for name in ("stock", *PREPROCESS)}


def attributes(layer: Layer, config: Mapping[str, Any]) -> dict[str, Any]:
    """Run one preprocess, and its four hooks where there are some, on a map of this rank's own."""
    with enabled(config):
        dispatcher = build_layer(layer).token_dispatcher
        counts = dispatcher.preprocess(routing_map_of(layer))
        if hasattr(dispatcher, "_maybe_dtoh_and_synchronize"):
            for point in POINTS:
                counts = dispatcher._maybe_dtoh_and_synchronize(point, counts)
        names = (*(SPLITS if layer.dispatcher == ALLTOALL else SPLITS[:2]), "num_out_tokens", "capacity")
        found = {name: _form(getattr(dispatcher, name)) for name in names}
        found["returned"] = _form(counts)
        found["cuda_sync_point"] = ("str", dispatcher.cuda_sync_point)
        if layer.experts > layer.ep:
            found["chunk table"] = _form(getattr(dispatcher, chunk_table(dispatcher)))
    return found


def chunk_table(dispatcher: Any) -> str:
    """The attribute's name, in the release that is installed."""
    import megatron.core

    if "SEQ" in type(dispatcher).__name__:
        return "num_global_tokens_per_local_expert_cpu"
    return generation_of(megatron.core.__version__).chunk_table


def routing_map_of(layer: Layer) -> torch.Tensor:
    """A routing map [T, E] bool, as a router leaves it in the layer's mode; another one on each rank."""
    rank = dist.get_rank()
    tokens = layer.tokens[rank // layer.tp % len(layer.tokens)][0]
    generator = torch.Generator().manual_seed(rank)
    chosen = torch.rand(tokens, layer.experts, generator=generator).topk(layer.topk, dim=1).indices
    routing_map = torch.zeros(tokens, layer.experts, dtype=torch.bool).scatter_(1, chosen, True)
    noise = torch.rand(routing_map.shape, generator=generator)
    if layer.mode == "drop":
        return routing_map & (noise < 0.6)
    if layer.mode == "router padding":
        return routing_map | (noise < 0.2)
    return routing_map


def _form(value: Any) -> tuple[str, Any]:
    """What a consumer can do with a value, and the value."""
    if value is None:
        return ("None", None)
    if isinstance(value, torch.Tensor):
        assert value.device.type == "cpu"
        if value.dim() == 0:
            return ("number", int(value))
        return (f"{value.dtype} tensor", value.tolist())
    if hasattr(value, "tolist") and value.ndim:
        assert value.dtype.kind == "i"
        return ("numpy integers", value.tolist())
    return ("number", int(value))
