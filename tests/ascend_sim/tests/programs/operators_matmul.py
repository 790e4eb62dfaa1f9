"""Cases: matrix products, linear layers, optimizers, dropout without loss of tokens, loss scaling."""

# mypy: disable-error-code="no-untyped-call"
# (torch.npu exists once torch_npu is loaded; some functions of torch and Megatron have no types)

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from operators_inputs import BF16, F32, I32, Inputs, case


@case(F32, BF16, relative=1e-6, bf16=1e-2)
def products(x: Inputs) -> Any:
    a, b, batch = x.randn(6, 8), x.randn(8, 5), x.randn(3, 6, 8)
    vector = x.randn(8)
    return (
        a @ b,
        torch.mm(a, b),
        a.t() @ a,
        batch @ b,
        torch.bmm(batch, batch.transpose(1, 2)),
        batch @ vector,
        a @ vector,
        torch.mv(a, vector),
        torch.dot(vector, vector),
        torch.matmul(batch[:, None], batch[None].transpose(2, 3)),
        a[:0] @ b,
        torch.matmul(vector, b),
        torch.mm(a, b, out=torch.empty(6, 5, dtype=x.dtype, device=x.device)),
        torch.outer(vector, vector),
    )


@case(F32, BF16, relative=1e-6, bf16=1e-2)
def products_with_sum(x: Inputs) -> Any:
    c, a, b = x.randn(6, 5), x.randn(6, 8), x.randn(8, 5)
    batch, other, start = x.randn(3, 6, 8), x.randn(3, 8, 5), x.randn(3, 6, 5)
    return (
        torch.addmm(c, a, b),
        torch.addmm(c, a, b, beta=0.5, alpha=2),
        torch.addmm(c[0], a, b),
        c.clone().addmm_(a, b),
        torch.baddbmm(start, batch, other, beta=0.5),
        torch.addmv(c[:, 0], a, b[:, 0], alpha=3, beta=0.5),
        torch.addr(c, a[:, 0], b[0]),
        torch.addbmm(c, batch, other),
        torch.baddbmm(torch.empty_like(start), batch, other, beta=0.0, alpha=0.3),
    )


@case(F32, BF16, relative=1e-6, bf16=1e-2)
def linear(x: Inputs) -> Any:
    results = []
    for shape in ((12, 8), (4, 3, 8)):
        for with_bias in (True, False):
            a, weight, bias = (
                x.randn(*shape).requires_grad_(),
                x.randn(5, 8).requires_grad_(),
                x.randn(5).requires_grad_(),
            )
            result = functional.linear(a, weight, bias if with_bias else None)
            result.backward(x.randn(*shape[:-1], 5))
            results += [result, a.grad, weight.grad, *((bias.grad,) if with_bias else ())]
    return results


@case(F32, BF16, relative=1e-6, bf16=2e-2)
def attention(x: Inputs) -> Any:
    """Megatron's unfused attention: baddbmm, masked softmax, bmm, with gradients."""
    query, key, value = (x.randn(7, 6, 4).requires_grad_() for _ in range(3))
    mask = torch.ones(7, 7, dtype=torch.bool, device=x.device).triu(1)
    scores = torch.baddbmm(
        torch.empty(6, 7, 7, dtype=x.dtype, device=x.device),
        query.transpose(0, 1),
        key.transpose(0, 1).transpose(1, 2),
        beta=0.0,
    )
    weights = torch.softmax(scores.masked_fill(mask, -10000.0), -1)
    context = torch.bmm(weights, value.transpose(0, 1)).transpose(0, 1).contiguous()
    context.backward(x.randn(7, 6, 4))
    return context, query.grad, key.grad, value.grad


def _optimizer(name: str, **settings: Any) -> None:
    label = "_".join([name, *(f"{key}_{value}" for key, value in settings.items())])

    @case(
        F32,
        BF16,
        name=f"optimizer_{label}",
        relative=1e-6 if settings.get("fused") else 0.0,
        bf16=1e-2 if settings.get("fused") else 0.0,
    )
    def body(x: Inputs) -> Any:
        parameters = [torch.nn.Parameter(x.randn(*shape)) for shape in ((5, 4), (7,), (2, 3, 2), (1,))]
        optimizer = getattr(torch.optim, name)(parameters, lr=0.01, **settings)
        norms = []
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = x.randn(*parameter.shape)
            norms.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
            optimizer.step()
        state = [
            value
            for parameter in parameters
            for key, value in optimizer.state[parameter].items()
            if key != "step" and value is not None
        ]
        return parameters, norms, state


_optimizer("AdamW")
_optimizer("AdamW", foreach=False)
_optimizer("AdamW", foreach=True)
_optimizer("AdamW", amsgrad=True)
_optimizer("Adam", weight_decay=0.1)
_optimizer("SGD")
_optimizer("SGD", momentum=0.9, weight_decay=0.1, nesterov=True)
_optimizer("SGD", momentum=0.9, foreach=False)


@case(F32, relative=1e-6)
def fused_adamw(x: Inputs) -> Any:
    """aclnnApplyAdamWV2 against torch's fused optimizer on the CPU."""
    parameter, first, second, grad = x.randn(5, 4), x.randn(5, 4) * 0.1, x.rand(5, 4), x.randn(5, 4)
    step = torch.tensor(3.0).to(x.device)
    for _ in range(2):
        torch._fused_adamw_(
            [parameter],
            [grad],
            [first],
            [second],
            [],
            [step],
            lr=0.01,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.1,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )
        step += 1
    return parameter, first, second


@case(F32)
def loss_scaling(x: Inputs) -> Any:
    grads = [x.randn(4), x.randn(3, 2)]
    grads[1][0, 0] = float("inf")
    found = torch.zeros(1, device=x.device)
    torch._amp_foreach_non_finite_check_and_unscale_(grads, found, x.like([0.5]))
    scales = []
    for overflow in (1.0, 0.0):
        scale, tracker = x.like([1024.0]), x.like([1], I32)
        torch._amp_update_scale_(scale, tracker, x.like([overflow]), 2.0, 0.5, 2)
        scales += [scale, tracker]
    return found, grads[0], scales


@case(F32, BF16)
def gradient_clipping(x: Inputs) -> Any:
    parameters = [torch.nn.Parameter(x.randn(*shape)) for shape in ((5, 4), (7,), (3,))]
    for parameter in parameters:
        parameter.grad = x.randn(*parameter.shape)
    norms = [
        torch.nn.utils.clip_grad_norm_(parameters, 1.0),
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, norm_type=1),
    ]
    torch.nn.utils.clip_grad_value_(parameters, 0.1)
    return norms, [parameter.grad for parameter in parameters]
