"""Cases: operators over lists of tensors, as optimizers use them."""

from __future__ import annotations

from typing import Any

import torch
from operators_inputs import BF16, F32, Inputs, case

FOREACH = ("abs cos erf exp expm1 log log10 log1p log2 neg reciprocal sigmoid sign sin sqrt tanh").split()  # noqa: SIM905


@case(F32, BF16)
def foreach_unary(x: Inputs) -> Any:
    tensors = [x.rand(3, 4), x.rand(7), x.rand(2, 2, 2)]
    results = []
    for name in FOREACH:
        results.append(getattr(torch, f"_foreach_{name}")(tensors))
        changed = [tensor.clone() for tensor in tensors]
        getattr(torch, f"_foreach_{name}_")(changed)
        results.append(changed)
    return results


@case(F32, BF16)
def foreach_binary(x: Inputs) -> Any:
    a, b = [x.rand(3, 4), x.rand(7), x.rand(1)], [x.rand(3, 4), x.rand(7), x.rand(1)]
    results = []
    for name in ("add", "sub", "mul", "div", "maximum", "minimum", "pow"):
        for operand in (b, 0.5, [0.5, 2.0, 3.0]):
            results.append(getattr(torch, f"_foreach_{name}")(a, operand))
            changed = [tensor.clone() for tensor in a]
            getattr(torch, f"_foreach_{name}_")(changed, operand)
            results.append(changed)
    results += [torch._foreach_add(a, b, alpha=0.3), torch._foreach_sub(a, b, alpha=0.3), torch._foreach_pow(2.0, a)]
    return results


@case(F32)
def foreach_more(x: Inputs) -> Any:
    a, b, c = ([x.rand(3, 4), x.rand(7)] for _ in range(3))
    factors = torch.tensor([0.5, 2.0])
    results: list[Any] = []
    for name in ("addcmul", "addcdiv"):
        function = getattr(torch, f"_foreach_{name}")
        results += [function(a, b, c, 0.3), function(a, b, c, [0.5, 2.0]), function(a, b, c, factors)]
        changed = [tensor.clone() for tensor in a]
        getattr(torch, f"_foreach_{name}_")(changed, b, c, 0.3)
        results.append(changed)
    target = [torch.empty_like(tensor) for tensor in a]
    torch._foreach_copy_(target, b)
    zeroed = [tensor.clone() for tensor in a]
    torch._foreach_zero_(zeroed)
    results += [
        torch._foreach_lerp(a, b, 0.3),
        torch._foreach_lerp(a, b, c),
        torch._foreach_norm(a),
        torch._foreach_norm(a, 1),
    ]
    return results, target, zeroed
