"""Cases: concatenation, gather and scatter, sorting, selection, sequences, embedding."""

# mypy: disable-error-code="no-untyped-call"
# (torch.npu exists once torch_npu is loaded; some functions of torch and Megatron have no types)

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from operators_inputs import BF16, BOOL, F32, I32, I64, Inputs, case


@case(F32, BF16, I64, BOOL)
def joining(x: Inputs) -> Any:
    a, b = x.randn(3, 4), x.randn(2, 4)
    parts = [torch.empty(n, 4, dtype=x.dtype, device=x.device) for n in (1, 2)]
    torch.split_with_sizes_copy(a, [1, 2], out=parts)
    return (
        torch.cat([a, b]),
        torch.cat([a.t(), b.t()], 1),
        torch.cat([a, a[:0], b]),
        torch.stack([a, a], 1),
        torch.cat([a]),
        torch.cat([a, b], out=torch.empty(5, 4, dtype=x.dtype, device=x.device)),
        torch.split(a, [1, 2]),
        torch.chunk(a, 2, 1),
        a.repeat(2, 3),
        a.flip(0),
        a.roll(1, 0),
        a.permute(1, 0).contiguous(),
        parts,
    )


@case(F32, BF16, I64)
def padding(x: Inputs) -> Any:
    return functional.pad(x.randn(3, 4), (1, 2)), functional.pad(x.randn(3, 4), (0, 0, 2, 1), value=3)


@case(F32, BF16, I64)
def gather_and_scatter(x: Inputs) -> Any:
    a, index = x.randn(6, 4), x.ints(0, 6, 3, 4)
    unique = torch.stack([x.permutation(6)[:3] for _ in range(4)], 1)
    source = x.randn(3, 4)
    results = [
        a.gather(0, index),
        a.scatter(0, unique, source),
        a.scatter(0, unique, 1),
        a.clone().scatter_(0, unique, source),
        a.clone().scatter_(0, unique, 2),
        a.scatter_add(0, index, source),
        a.clone().scatter_add_(0, unique, source),
        a.gather(0, index[:0]),
        a.t().gather(1, index.t()),
    ]
    results += [
        a.clone().scatter_(0, unique, source, reduce="add"),
        torch.scatter(a, 0, unique, source, reduce="multiply"),
    ]
    return results


@case(BOOL)
def routing_map_from_topk(x: Inputs) -> Any:
    scores = x.randn(16, 8, dtype=F32)
    values, indices = scores.topk(2, 1)
    empty = torch.zeros(16, 8, dtype=BOOL, device=x.device)
    return values, indices, empty.scatter(1, indices, True), torch.zeros_like(scores).scatter(1, indices, values)


@case(F32, BF16, I64)
def indexing(x: Inputs) -> Any:
    a = x.randn(6, 4, 3)
    rows, columns, mask = x.ints(0, 6, 5), x.ints(0, 4, 5), x.randn(6, 4, dtype=BOOL)
    return (
        a[rows],
        a[rows, columns],
        a[:, columns],
        a[mask],
        a[rows, :, 1],
        a[1:5:2],
        a[..., 0],
        a[rows[:0]],
        a[mask[:, 0]],
        a[rows.reshape(5, 1), columns],
        a[None, 2],
    )


@case(F32, BF16, I64)
def index_assignment(x: Inputs) -> Any:
    a = x.randn(6, 4)
    rows, mask = x.permutation(6)[:3], x.randn(6, 4, dtype=BOOL)
    one, two, three, four = a.clone(), a.clone(), a.clone(), a.clone()
    five, six, seven = a.clone(), a.clone(), a.clone()
    five[mask & ~mask] = 9
    six[rows[:0]] = 9
    seven[:, mask[0] & ~mask[0]] = 9
    one[rows] = x.randn(3, 4)
    two[mask] = 7
    three[rows, x.ints(0, 4, 3)] = 2
    four.index_put_((rows,), x.randn(3, 4), accumulate=True)
    return (
        one,
        two,
        three,
        four,
        five,
        six,
        seven,
        a.index_select(0, rows),
        a.index_select(1, rows[:2] % 4),
        a.index_add(0, rows, x.randn(3, 4)),
        a.index_copy(0, rows, x.randn(3, 4)),
        a.clone().index_copy_(0, rows, x.randn(3, 4)),
        a.index_fill(0, rows, 3),
        a.clone().index_fill_(0, rows, 3),
        a.clone().index_add_(0, rows, x.randn(3, 4), alpha=2),
        a.index_select(0, rows[:0]),
    )


@case(F32, BF16, I64)
def selection(x: Inputs) -> Any:
    a, mask = x.randn(6, 4), x.randn(6, 4, dtype=BOOL)
    return (
        a.masked_select(mask),
        mask.nonzero(),
        mask.nonzero(as_tuple=True),
        a.nonzero(),
        mask[0].nonzero().flatten(),
        a.masked_select(torch.zeros_like(mask)),
        torch.argwhere(mask),
    )


@case(F32, I64)
def sorting(x: Inputs) -> Any:
    a = x.permutation(60).reshape(10, 6).to(x.dtype)
    repeated = x.ints(0, 4, 40)
    return (
        a.sort(0),
        a.sort(1, descending=True),
        a.topk(3),
        a.topk(3, dim=0, largest=False),
        a.argsort(1),
        a.t().sort(1),
        repeated.sort(stable=True),
        torch.argsort(repeated, stable=True),
        a[:, :0].sort(1),
        a.topk(2, sorted=True),
    )


@case(I64)
def searching(x: Inputs) -> Any:
    edges = x.like([1, 3, 5, 7])
    return (
        torch.searchsorted(edges, x.ints(0, 9, 12)),
        torch.searchsorted(edges, x.ints(0, 9, 12), right=True),
        torch.searchsorted(edges, 4),
    )


@case(I64)
def uniques(x: Inputs) -> Any:
    return torch.unique(x.ints(0, 9, 40)), torch.unique(x.ints(0, 9, 40), return_inverse=True, return_counts=True)


@case(F32, BF16, BOOL)
def triangles(x: Inputs) -> Any:
    a = x.randn(5, 6)
    results = [a.triu(), a.tril(-1), a.triu(1), torch.ones(4, 4, dtype=x.dtype, device=x.device).tril()]
    return results if x.dtype == BOOL else [*results, a.clone().triu_(1), a.clone().tril_()]


@case(F32, I64, I32)
def sequences(x: Inputs) -> Any:
    options: Any = {"dtype": x.dtype, "device": x.device}
    return (
        torch.arange(7, **options),
        torch.arange(2, 9, 3, **options),
        torch.arange(0, **options),
        torch.range(1, 4, **options),
        torch.eye(3, 4, **options),
        torch.linspace(0, 1, 5, device=x.device),
        torch.arange(5, device=x.device),
        torch.arange(5, device=x.device).expand(3, -1),
    )


@case(F32, BF16, I64)
def repetition(x: Inputs) -> Any:
    a, counts = x.randn(4, 3), x.ints(0, 3, 4)
    return (
        a.repeat_interleave(2, 0),
        a.repeat_interleave(counts, 0),
        a.repeat_interleave(2),
        torch.repeat_interleave(counts),
        a.repeat_interleave(counts, 0, output_size=int(counts.sum())),
        a.flatten().repeat_interleave(x.ints(0, 2, 12)),
    )


@case(F32)
def repetition_gradient(x: Inputs) -> Any:
    a = x.randn(4, 3).requires_grad_()
    result = a.repeat_interleave(x.ints(0, 3, 4), 0)
    result.backward(x.randn(*result.shape))
    other = x.randn(4, 3).requires_grad_()
    other.repeat_interleave(2, 0).backward(x.randn(8, 3))
    return result, a.grad, other.grad


@case(I64)
def one_hot(x: Inputs) -> Any:
    return functional.one_hot(x.ints(0, 5, 4, 3), 5), functional.one_hot(x.ints(0, 5, 7), 8)


@case(F32, BF16)
def embedding(x: Inputs) -> Any:
    weight = x.randn(10, 4).requires_grad_()
    result = functional.embedding(x.ints(0, 10, 3, 5), weight)
    result.backward(x.randn(3, 5, 4))
    return result, weight.grad


@case(F32, BF16)
def moe_permutation(x: Inputs) -> Any:
    """What Megatron's unfused permute and unpermute do, with gradients: select the tokens of each expert, add back."""
    tokens, probs = x.randn(16, 4).requires_grad_(), x.rand(16, 8).requires_grad_()
    chosen = torch.zeros(16, 8, dtype=BOOL, device=x.device).scatter(1, x.rand(16, 8).topk(2, 1).indices, True)
    order = torch.arange(16, device=x.device).unsqueeze(0).expand(8, -1).masked_select(chosen.t().contiguous())
    permuted = tokens.index_select(0, order)
    weighted = permuted * probs.t().contiguous().masked_select(chosen.t().contiguous()).unsqueeze(-1)
    back = torch.zeros(16, 4, dtype=x.dtype, device=x.device).scatter_add_(
        0, order.unsqueeze(1).expand(-1, 4), weighted
    )
    back.sum().backward()
    return permuted, back, tokens.grad, probs.grad


@case(I32)
def int32_indices(x: Inputs) -> Any:
    a, index = x.randn(6, 4, dtype=F32), x.ints(0, 6, 3, dtype=I32)
    return a.index_select(0, index), a[index.long()], functional.embedding(index, a)
