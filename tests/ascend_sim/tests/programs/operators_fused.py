"""Cases: the fused Ascend operators against plain Python loops, which are what the CPU runs."""

# mypy: disable-error-code="no-untyped-call"
# (torch.npu exists once torch_npu is loaded; some functions of torch and Megatron have no types)

from __future__ import annotations

from typing import Any

import torch
from operators_inputs import BF16, F32, I32, I64, Inputs, case

COUNTS = [3, 0, 5, 2]


def _starts(counts: list[int]) -> list[int]:
    return [sum(counts[:i]) for i in range(len(counts))]


def _npu() -> Any:
    import torch_npu

    return torch_npu


@case(F32, BF16, relative=1e-6, bf16=1e-2)
def grouped_matmul_rows(x: Inputs) -> Any:
    """x [10, 8] in groups of 3, 0, 5 and 2 rows, each with its own weight [8, 6]; the group list lies on the device."""
    tokens, weights = x.randn(10, 8), [x.randn(8, 6) for _ in COUNTS]
    ends, counts = x.like([3, 3, 8, 10], I64), x.like(COUNTS, I64)
    if x.device == "cpu":
        rows = [
            tokens[begin : begin + n] @ weights[i]
            for i, (begin, n) in enumerate(zip(_starts(COUNTS), COUNTS, strict=True))
        ]
        return [torch.cat(rows)] * 4
    grouped = _npu().npu_grouped_matmul
    stacked = torch.stack(weights)
    transposed = torch.stack([weight.t() for weight in weights]).transpose(1, 2)
    return [
        grouped([tokens], weights, group_list=ends, split_item=2, group_type=0)[0],
        grouped([tokens], [stacked], group_list=ends, split_item=3, group_type=0)[0],
        grouped([tokens], [stacked], group_list=counts, split_item=3, group_type=0, group_list_type=1)[0],
        grouped([tokens], [transposed], group_list=ends, split_item=3, group_type=0)[0],
    ]


@case(F32, relative=1e-6)
def grouped_matmul_host_list(x: Inputs) -> Any:
    """The same with the group list on the host: one output, and one for each group."""
    tokens, weights, bias = x.randn(10, 8), [x.randn(8, 6) for _ in COUNTS], [x.randn(6) for _ in COUNTS]
    if x.device == "cpu":
        rows = [
            tokens[begin : begin + n] @ weights[i]
            for i, (begin, n) in enumerate(zip(_starts(COUNTS), COUNTS, strict=True))
        ]
        return (
            torch.cat(rows),
            [row + bias[i] for i, row in enumerate(rows)],
            tokens @ weights[0],
            tokens[:4] @ weights[1],
        )
    grouped = _npu().npu_grouped_matmul
    pair = grouped([tokens, tokens[:4]], weights[:2], split_item=0, group_type=-1)
    return (
        grouped([tokens], weights, group_list=[3, 3, 8, 10], split_item=3)[0],
        grouped([tokens], weights, bias=bias, group_list=[3, 3, 8, 10], split_item=0),
        *pair,
    )


@case(F32, BF16, relative=1e-6, bf16=1e-2)
def grouped_matmul_inner(x: Inputs) -> Any:
    """The gradient of the experts' weights: x^T [8, 10] and grad [10, 6] give [4, 8, 6]; an empty group gives zeros."""
    tokens, grads, ends = x.randn(10, 8), x.randn(10, 6), x.like([3, 3, 8, 10], I64)
    if x.device == "cpu":
        return torch.stack(
            [tokens[b : b + n].t() @ grads[b : b + n] for b, n in zip(_starts(COUNTS), COUNTS, strict=True)]
        )
    return _npu().npu_grouped_matmul([tokens.t()], [grads], group_list=ends, split_item=3, group_type=2)[0]


@case(F32, BF16, relative=1e-6, bf16=1e-6)
def grouped_matmul_add(x: Inputs) -> Any:
    """The same added to fp32 main gradients in place."""
    tokens, grads, ends, main = x.randn(10, 8), x.randn(10, 6), x.like([3, 3, 8, 10], I64), x.randn(4, 8, 6, dtype=F32)
    if x.device == "cpu":
        for i, (begin, n) in enumerate(zip(_starts(COUNTS), COUNTS, strict=True)):
            for row in range(begin, begin + n):
                main[i] += torch.outer(tokens[row].float(), grads[row].float())
        return main
    _npu().npu_grouped_matmul_add_(main, tokens, grads, ends, transpose_x=True, transpose_weight=False, group_type=2)
    return main


def _places(experts: list[list[int]]) -> list[int]:
    """Where each choice of each token stands in the stable order by expert."""
    choices = [expert for token in experts for expert in token]
    order = sorted(range(len(choices)), key=lambda choice: choices[choice])
    places = [0] * len(choices)
    for place, choice in enumerate(order):
        places[choice] = place
    return places


def _permute(x: Inputs, kept: int | None) -> Any:
    tokens, experts = x.randn(6, 4), x.ints(0, 4, 6, 2, dtype=I32)
    rows = 12 if kept is None else kept
    grad = x.randn(rows, 4)
    if x.device == "npu":
        tokens.requires_grad_()
        permuted, places = _npu().npu_moe_token_permute(tokens, experts, num_out_tokens=kept)
        permuted.backward(grad)
        return permuted, places, tokens.grad
    where = _places(experts.tolist())
    permuted, summed = torch.empty(rows, 4, dtype=x.dtype), torch.zeros(6, 4)
    for choice, place in enumerate(where):
        if place < rows:
            permuted[place] = tokens[choice // 2]
            summed[choice // 2] += grad[place].float()
    return permuted, torch.tensor(where, dtype=I32), summed.to(x.dtype)


@case(F32, BF16, relative=1e-6, bf16=1e-2)
def token_permute(x: Inputs) -> Any:
    """npu_moe_token_permute of 6 tokens with 2 choices each, with its gradient."""
    return _permute(x, None)


@case(F32, relative=1e-6)
def token_permute_with_dropped_tokens(x: Inputs) -> Any:
    """Only 9 of 12 rows are kept."""
    return _permute(x, 9)


@case(F32, BF16, relative=1e-6, bf16=1e-2)
def token_unpermute(x: Inputs) -> Any:
    """npu_moe_token_unpermute with probabilities, with the gradients of both."""
    permuted, probs, grad = x.randn(12, 4), x.rand(6, 2), x.randn(6, 4)
    places = x.permutation(12).to(I32)
    if x.device == "npu":
        permuted.requires_grad_(), probs.requires_grad_()
        result = _npu().npu_moe_token_unpermute(permuted, places, probs)
        result.backward(grad)
        return result, permuted.grad, probs.grad
    result, to_permuted, to_probs = torch.zeros(6, 4), torch.zeros(12, 4), torch.zeros(6, 2)
    for choice, place in enumerate(places.tolist()):
        token, which = divmod(choice, 2)
        result[token] += permuted[place].float() * probs[token, which].float()
        to_permuted[place] = grad[token].float() * probs[token, which].float()
        to_probs[token, which] = sum(float(grad[token, i]) * float(permuted[place, i]) for i in range(4))
    return result.to(x.dtype), to_permuted.to(x.dtype), to_probs.to(x.dtype)


@case(F32, BF16)
def token_unpermute_without_probabilities(x: Inputs) -> Any:
    """One choice for each token: a permutation and its inverse."""
    permuted, grad, places = x.randn(6, 4), x.randn(6, 4), x.permutation(6).to(I32)
    if x.device == "npu":
        permuted.requires_grad_()
        result = _npu().npu_moe_token_unpermute(permuted, places)
        result.backward(grad)
        return result, permuted.grad
    result, back = torch.empty(6, 4, dtype=x.dtype), torch.empty(6, 4, dtype=x.dtype)
    for token, place in enumerate(places.tolist()):
        result[token], back[place] = permuted[place], grad[token]
    return result, back


@case(F32, BF16, relative=1e-6, bf16=1e-2)
def swiglu(x: Inputs) -> Any:
    """npu_swiglu and its gradient."""
    both, grad = x.randn(5, 8).requires_grad_(), x.randn(5, 4)
    if x.device == "npu":
        result = _npu().npu_swiglu(both, dim=-1)
    else:
        result = torch.nn.functional.silu(both[:, :4]) * both[:, 4:]
    result.backward(grad)
    return result, both.grad


@case(F32, BF16, relative=1e-6, bf16=1e-2)
def rms_norm(x: Inputs) -> Any:
    """npu_rms_norm and its gradients."""
    hidden, gamma, grad = x.randn(5, 3, 8).requires_grad_(), x.rand(8).requires_grad_(), x.randn(5, 3, 8)
    if x.device == "npu":
        result = _npu().npu_rms_norm(hidden, gamma, 1e-6)[0]
    else:
        wide = hidden.float()
        result = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6) * gamma.float()).to(x.dtype)
    result.backward(grad)
    return result, hidden.grad, gamma.grad


@case(F32, relative=1e-6)
def gelu_with_approximation(x: Inputs) -> Any:
    """npu_gelu names its approximation; with its gradient."""
    results = []
    for approximate in ("tanh", "none"):
        a, grad = x.randn(4, 6).requires_grad_(), x.randn(4, 6)
        gelu = _npu().npu_gelu if x.device == "npu" else torch.nn.functional.gelu
        result = gelu(a, approximate=approximate)
        result.backward(grad)
        results += [result, a.grad]
    return results
