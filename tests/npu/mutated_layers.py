"""The job that runs seeded mistakes through whole layers: does a token reach the expert that the router chose?

Each rank has experts of its own, so that a token at the wrong rank, or in the wrong order, changes what comes out.
Several layers are begun before the first of them goes on, as schedules that overlap micro-batches do it.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch

import mindspeed_moe
from distributed.layers import HIDDEN, Layer, build_layer
from mindspeed_moe.selftest.dispatchers import combine, dispatch, token_dispatcher
from npu import layer, mutations
from npu.mutating import BUSY_KERNELS, BYSTANDERS, DELAY_US, HOLD_US

LAYERS, EXPERTS = 3, 8
Given = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # hidden states, probabilities, routing map
PINNED = "asynchronous copies into pinned memory"


def mutated_layers(rank: int, where: str, stream: str, name: str, seeds: int) -> dict[int, list[str]]:
    """Return, by seed, the tensors that are not what they are with stock; name: of the mistake, or "" for none."""
    from tests.ascend_sim.schedule import set_schedule

    ep, tp, known = mutations.EP_TP[where]
    mindspeed_moe.enable({"device": "npu", "dispatchers": {"alltoall": "stock"}})
    layer.groups(ep, tp)
    wanted = [_run(ep, tp, rank, seed, _layers(ep, tp)) for seed in range(seeds)]
    mindspeed_moe.disable()
    found: dict[int, list[str]] = {}
    with known[stream][name]() if name else nullcontext():
        preprocess = {"stream": stream, "exchange": "all_to_all", "tokens_per_expert": "device"}
        mindspeed_moe.enable({"device": "npu", "preprocess": preprocess})
        layers = _layers(ep, tp)
        _run(ep, tp, rank, 0, layers)  # makes slots
        for seed, expected in enumerate(wanted):
            set_schedule(seed, delay_us=DELAY_US, hold_us=HOLD_US)
            tensors = _run(ep, tp, rank, seed, layers)
            set_schedule(0, delay_us=0, hold_us=0)
            found[seed] = [at for at, one in expected.items() if at != PINNED and not torch.equal(one, tensors[at])]
            if int(tensors[PINNED]) != 2 * LAYERS + 1:  # two micro-batches, and the call that was given up
                found[seed].append(f"{int(tensors[PINNED])} {PINNED}")
        mindspeed_moe.disable()
    return found


def _layers(ep: int, tp: int) -> list[Any]:
    return [build_layer(Layer(ep=ep, tp=tp, experts=EXPERTS, topk=2)).to("npu") for _ in range(LAYERS)]


def _run(ep: int, tp: int, rank: int, seed: int, layers: list[Any]) -> dict[str, torch.Tensor]:
    """Begin all layers on a busy device, then finish one after the other, and go back; everything on the host."""
    from tests.ascend_sim import ledger

    generator = torch.Generator().manual_seed(1000 * seed + rank)
    maps = [layer.routing_maps(100 * (seed + 1) + at, ep * tp, EXPERTS)[rank] for at in range(LAYERS + 2)]
    given = [_input(one, generator) for one in maps]
    weights = [torch.randn(len(one), 1, HIDDEN, generator=generator).npu() for one in maps]
    torch.npu.synchronize()  # making inputs waits for the device: from here on nothing does but what is under test
    found: dict[str, torch.Tensor] = {}
    with mock.patch.object(token_dispatcher(), "permute", _permute), ledger.record() as counts:
        busy = torch.zeros(1, device="npu")
        for _ in range(BUSY_KERNELS):
            busy += 1
        _give_up_on_one_rank(rank, layers[0], given[LAYERS])
        begun = [
            dispatch(one.token_dispatcher, hidden, probs, routing_map)
            for one, (hidden, probs, routing_map) in zip(layers, given[:LAYERS], strict=True)
        ]
        bystanders = [torch.full((EXPERTS,), at, dtype=torch.int64, device="npu") for at in range(BYSTANDERS)]
        outputs = []
        for one, rest in zip(layers, begun, strict=True):
            rows, tokens_per_expert, probs = rest()
            results = one.experts(rows, tokens_per_expert, probs)[0]
            _start_another_micro_batch(one.token_dispatcher, given[LAYERS + 1])
            outputs.append(combine(one.token_dispatcher, results))
        for output, weight in zip(outputs, weights[:LAYERS], strict=True):
            (output.view_as(weight) * weight).sum().backward()
    torch.npu.synchronize()
    for at, (output, (hidden, probs, _)) in enumerate(zip(outputs, given[:LAYERS], strict=True)):
        found |= {
            f"output {at}": output,
            f"gradient of hidden {at}": hidden.grad,
            f"gradient of probs {at}": probs.grad,
        }
    for at, one in enumerate(layers):
        for name, weight in one.experts.named_parameters():
            found[f"gradient of {name} {at}"] = weight.grad
        one.zero_grad()
    found["bystanders"] = torch.stack(bystanders)
    found = {name: one.detach().cpu().clone() for name, one in found.items()}
    found[PINNED] = torch.tensor(counts.copy_count("device_to_host", asynchronous=True, pinned=True))
    return found


def _give_up_on_one_rank(rank: int, one: Any, given: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    """An exception on rank 0 only, after preprocess: its peers still read the counts of that call."""
    counts = one.token_dispatcher.preprocess(given[2])
    if rank > 0:
        layer.pass_points(one.token_dispatcher, counts)


def _start_another_micro_batch(dispatcher: Any, given: Given) -> None:
    """As schedules that overlap micro-batches do: what the dispatcher holds is kept, and put back for combine."""
    kept = dict(vars(dispatcher))
    layer.pass_points(dispatcher, dispatcher.preprocess(given[2]))
    vars(dispatcher).update(kept)


def _permute(
    tokens: torch.Tensor, routing_map: torch.Tensor, probs: Any = None, num_out_tokens: Any = None, **unused: Any
) -> tuple[torch.Tensor, Any, torch.Tensor]:
    """Stands for a fused permutation: Megatron's own asks the device twice, and hides what is read too early.

    The rows are known to the host, so that the positions of the true entries, expert after expert, need no question.
    """
    true_first = (~routing_map.T.contiguous()).to(torch.float32).reshape(-1).argsort(stable=True)
    places = true_first[: int(num_out_tokens)]
    of_tokens = places % len(routing_map)
    of_probs = None if probs is None else probs.T.contiguous().reshape(-1).index_select(0, places)
    return tokens.index_select(0, of_tokens), of_probs, of_tokens


def _input(
    routing_map: list[list[bool]], generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return hidden states [T, 1, H] and probabilities [T, E], which want gradients, and the routing map [T, E]."""
    on_host = torch.tensor(routing_map, dtype=torch.bool)
    hidden = torch.randn(len(routing_map), 1, HIDDEN, generator=generator).npu().requires_grad_()
    probs = (torch.rand(on_host.shape, generator=generator) * on_host).npu().requires_grad_()
    return hidden, probs, on_host.npu()


JOBS = {"mutated_layers": mutated_layers}
