"""Cases: reductions, scans, softmax, normalisation, losses."""

# mypy: disable-error-code="no-untyped-call"
# (torch.npu exists once torch_npu is loaded; some functions of torch and Megatron have no types)

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from operators_inputs import BF16, BOOL, F32, I32, I64, Inputs, case


@case(F32, BF16, I64, I32, BOOL)
def sums(x: Inputs) -> Any:
    a = x.randn(6, 7, 5)
    into = torch.empty(7, 5, dtype=I32, device=x.device)
    results = [
        a.sum(),
        a.sum(0),
        a.sum((0, 2)),
        a.sum(1, keepdim=True),
        a.transpose(0, 2).sum(1),
        a[:0].sum(0),
        a.sum(0, dtype=F32),
    ]
    if not x.dtype.is_floating_point:
        results.append(torch.sum(a, 0, dtype=I32, out=into))
    return results


@case(BOOL)
def counts_of_a_routing_map(x: Inputs) -> Any:
    """How many tokens each of 8 experts gets: by sum, by matmul with ones, by histc and by bincount."""
    routing = x.randn(64, 8)
    out = torch.empty(8, dtype=I32, device=x.device)
    torch.sum(routing, 0, dtype=I32, out=out)
    experts = x.ints(0, 8, 64)
    ones = torch.ones(1, 64, device=x.device)
    return (
        out,
        routing.sum(0),
        ones @ routing.float(),
        torch.histc(experts.float(), 8, 0, 7),
        torch.bincount(experts, minlength=8),
        routing.sum(0).cumsum(0),
        torch.bincount(experts, minlength=12),
    )


@case(I64, I32)
def histc_of_integers_through_float(x: Inputs) -> Any:
    return torch.histc(x.ints(0, 8, 64).float(), bins=8, min=0, max=8), torch.bincount(x.ints(0, 5, 0), minlength=5)


@case(F32, BF16)
def means_and_norms(x: Inputs) -> Any:
    a = x.randn(6, 7, 5)
    return (
        a.mean(),
        a.mean(1),
        a.mean((0, 2), keepdim=True),
        a.norm(),
        a.norm(dim=1),
        a.norm(1),
        torch.linalg.vector_norm(a, 2, (0, 1)),
        torch.linalg.vector_norm(a),
        a.norm(dim=(0, 1), keepdim=True),
        torch.linalg.vector_norm(a, 1, 0),
        torch.ops.aten.norm.Scalar(a, 2),
        torch.ops.aten.norm.ScalarOpt_dim(a, 1, [1]),
    )


@case(F32, relative=1e-6)
def variances(x: Inputs) -> Any:
    a = x.randn(6, 7, 5)
    return (
        a.var(),
        a.var(1),
        a.std(1, unbiased=False),
        torch.var_mean(a, 1),
        torch.std_mean(a, (0, 2)),
        a.std(),
        torch.logsumexp(a, 1),
        a.logsumexp((0, 1)),
    )


@case(F32, BF16, I64)
def extremes(x: Inputs) -> Any:
    a = x.permutation(210).reshape(6, 7, 5).to(x.dtype if x.dtype != BF16 else F32)
    a = a.to(x.dtype)
    return (
        a.max(),
        a.min(),
        a.max(1),
        a.min(1, keepdim=True),
        a.amax((0, 1)),
        a.amin(2),
        a.argmax(1) if x.dtype != BF16 else a.max(),
        torch.aminmax(a, dim=1),
        torch.aminmax(a),
        a.transpose(0, 2).max(0),
    )


@case(F32, I64)
def arg_extremes(x: Inputs) -> Any:
    a = x.permutation(210).reshape(6, 7, 5).to(x.dtype)
    return a.argmax(), a.argmin(), a.argmax(1), a.argmin(2, keepdim=True), a.cummax(1), a.median()


@case(BOOL, F32, I64)
def all_and_any(x: Inputs) -> Any:
    a = x.randn(6, 7)
    return (
        a.all(),
        a.any(),
        a.all(0),
        a.any(1, keepdim=True),
        a[:0].all(),
        a[:0].any(),
        torch.any(a > 100),
        torch.all(a < 100),
    )


@case(F32, I64)
def products_and_scans(x: Inputs) -> Any:
    a = x.randn(4, 5)
    return (
        a.prod(),
        a.prod(1),
        a.cumsum(0),
        a.cumsum(1),
        a.t().cumsum(0),
        a.cumprod(1),
        a.cumsum(0, dtype=F32),
        a.nansum(0),
        a[:, :4].trace(),
    )


@case(F32, BF16)
def softmax(x: Inputs) -> Any:
    results = []
    for function in (functional.softmax, functional.log_softmax):
        for dim in (-1, 0, 1):
            a = x.randn(4, 6, 8).requires_grad_()
            result = function(a, dim=dim)
            result.backward(x.randn(4, 6, 8))
            results += [result, a.grad]
        results.append(function(x.randn(4, 6).t(), dim=-1))
        results.append(function(x.randn(4, 6), dim=-1, dtype=F32))
    return results


@case(F32, BF16)
def softmax_to_float(x: Inputs) -> Any:
    a = x.randn(4, 6).requires_grad_()
    result = functional.softmax(a, dim=-1, dtype=F32)
    result.backward(x.randn(4, 6, dtype=F32))
    return result, a.grad


@case(F32, BF16, relative=1e-6, bf16=1e-2)
def layer_norm(x: Inputs) -> Any:
    results = []
    for affine in (True, False):
        a = x.randn(5, 3, 16).requires_grad_()
        weight, bias = x.rand(16).requires_grad_(), x.randn(16).requires_grad_()
        result = functional.layer_norm(a, (16,), weight if affine else None, bias if affine else None)
        result.backward(x.randn(5, 3, 16))
        results += [result, a.grad, *((weight.grad, bias.grad) if affine else ())]
    return results


@case(F32, BF16, relative=1e-6, bf16=1e-2)
def cross_entropy(x: Inputs) -> Any:
    results = []
    for reduction in ("mean", "sum", "none"):
        logits, target = x.randn(12, 9).requires_grad_(), x.ints(0, 9, 12)
        target[3] = -100
        loss = functional.cross_entropy(logits, target, reduction=reduction)
        loss.sum().backward()
        results += [loss, logits.grad]
    return results


@case(F32)
def squared_error(x: Inputs) -> Any:
    a, b = x.randn(4, 6).requires_grad_(), x.randn(4, 6)
    loss = functional.mse_loss(a, b)
    loss.backward()
    return loss, a.grad, functional.mse_loss(a, b, reduction="none")
