"""Cases: arithmetic, comparison, logic, activations, conversion, copies and fills."""

# mypy: disable-error-code="no-untyped-call"
# (torch.npu exists once torch_npu is loaded; some functions of torch and Megatron have no types)

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from operators_inputs import BF16, BOOL, F32, I32, I64, Inputs, case

_NAMES = (
    "abs acos asin atan ceil cos cosh erf erfc erfinv exp exp2 expm1 floor frac log log10 log1p log2 neg "
    "reciprocal relu round rsqrt sigmoid sign sin sinh sqrt tan tanh trunc"
)
UNARY = _NAMES.split()


def views(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensor [4, 6, 5] itself, transposed, every second, broadcast and empty."""
    return [tensor, tensor.transpose(0, 2), tensor[:, ::2], tensor[:1].expand(3, 6, 5), tensor[:, :0], tensor[1, 2, 3]]


def _unary(name: str) -> None:
    @case(F32, BF16, name=f"unary_{name}")
    def body(x: Inputs) -> Any:
        function, in_place = getattr(torch, name), getattr(torch.Tensor, f"{name}_")
        source = x.rand(4, 6, 5)
        # Transposed only where CPU torch rounds equally with and without vector instructions.
        exact = name in ("abs", "ceil", "floor", "neg", "round", "sign", "trunc", "relu")
        out = (
            torch.empty(5, 6, 4, dtype=x.dtype, device=x.device).transpose(0, 2) if exact else torch.empty_like(source)
        )
        function(source, out=out) if name != "relu" else out.copy_(source.relu())
        changed = source.clone().transpose(0, 1)
        in_place(changed)
        return [function(view) for view in views(source)], out, changed


for _name in UNARY:
    _unary(_name)


@case(F32, BF16)
def classification(x: Inputs) -> Any:
    values = x.like([1.0, -0.0, float("inf"), float("-inf"), float("nan"), 3.0])
    return (
        torch.isfinite(values),
        torch.isinf(values),
        torch.isnan(values),
        torch.signbit(x.randn(7)),
        values.nan_to_num(1, 2, 3),
        torch.isneginf(values),
        torch.isposinf(values),
        values.clone().nan_to_num_(0.5),
    )


def _binary(name: str, *dtypes: torch.dtype, scalar: bool = True, in_place: bool = True, relative: float = 0.0) -> None:
    @case(*dtypes, name=f"binary_{name}", relative=relative)
    def body(x: Inputs) -> Any:
        function = getattr(torch, name)
        a, b = x.randn(4, 6, 5), x.randn(4, 6, 5)
        if not x.dtype.is_floating_point and name in ("div", "floor_divide", "remainder", "fmod", "true_divide"):
            b = b.abs() + 1
        results = [function(p, q) for p, q in zip(views(a), views(b), strict=True)]
        results += [function(a, b[:1]), function(a[:, :1], b[0])]
        if scalar:
            results += [function(a, 3), function(a, True if x.dtype == BOOL else 2)]
            if x.dtype.is_floating_point:
                results.append(function(a, 0.3))
        out = torch.empty(5, 6, 4, dtype=results[0].dtype, device=x.device).transpose(0, 2)
        results.append(function(a, b, out=out))
        if in_place:
            changed = a.clone().transpose(0, 1)
            results.append(getattr(changed, f"{name}_")(b.transpose(0, 1)))
            if scalar:
                results.append(getattr(a.clone(), f"{name}_")(2))
        return results


for _name in ("add", "sub", "mul"):
    _binary(_name, F32, BF16, I64, I32)
_binary("div", F32, BF16)
_binary("floor_divide", F32, I64)
_binary("remainder", F32, I64)
_binary("fmod", F32, I64)
for _name in ("maximum", "minimum"):
    _binary(_name, F32, BF16, I64, scalar=False, in_place=False)
_binary("logaddexp", F32, scalar=False, in_place=False, relative=1e-7)
_binary("atan2", F32, scalar=False, relative=1e-7)
for _name in ("eq", "ne", "gt", "ge", "lt", "le"):
    _binary(_name, F32, BF16, I64)
for _name in ("logical_and", "logical_or", "logical_xor"):
    _binary(_name, F32, BOOL, I64, scalar=False)
for _name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
    _binary(_name, I64, I32)
_binary("bitwise_left_shift", I64, scalar=False, in_place=False)


@case(I64, I32)
def integer_division(x: Inputs) -> Any:
    a, b = x.randn(50), x.randn(50).abs() + 1
    return (
        a / b,
        a // b,
        a // 3,
        a % 4,
        torch.div(a, b, rounding_mode="trunc"),
        torch.div(a, 3, rounding_mode="floor"),
        a.clone().div_(b, rounding_mode="floor"),
        a.clone().div_(3, rounding_mode="trunc"),
        a >> 1,
        a << 1,
        torch.remainder(7, b),
        torch.isin(a, 3),
    )


@case(F32, BF16)
def rounding_division(x: Inputs) -> Any:
    a, b = x.randn(4, 6), x.randn(4, 6)
    return a.div(b, rounding_mode="floor"), a.div(b, rounding_mode="trunc"), a.div(0.3, rounding_mode="floor"), 2 / b


@case(BOOL)
def booleans(x: Inputs) -> Any:
    a, b = x.randn(4, 6), x.randn(4, 6)
    changed = a.clone()
    changed &= b
    other = a.clone()
    other |= b
    third = a.clone()
    third ^= b
    return (
        a & b,
        a | b,
        a ^ b,
        ~a,
        a.logical_not(),
        a * 2,
        a + 1,
        a.to(I32) + b,
        a & True,
        a | False,
        changed,
        other,
        third,
        a.clone().logical_not_(),
        a.float() * b,
    )


@case(F32, BF16)
def scaled_sums(x: Inputs) -> Any:
    a, b = x.randn(4, 6), x.randn(4, 6)
    return (
        torch.add(a, b, alpha=0.5),
        torch.sub(a, b, alpha=2),
        torch.rsub(a, b),
        1 - a,
        3.5 - a,
        a.clone().add_(b, alpha=-1),
    )


@case(F32, BF16)
def powers(x: Inputs) -> Any:
    a, b = x.rand(4, 6), x.rand(4, 6)
    return (
        a**2,
        a**0.5,
        a**-1,
        a**b,
        2**a,
        a.clone().pow_(3),
        a.clone().pow_(b),
        torch.square(a),
        torch.pow(a, 1.5),
        torch.pow(a, 2, out=torch.empty_like(a)),
    )


@case(F32)
def three_operands(x: Inputs) -> Any:
    a, b, c = x.randn(4, 6), x.randn(4, 6), x.rand(4, 6)
    return (
        torch.addcmul(a, b, c, value=0.3),
        torch.addcdiv(a, b, c, value=0.3),
        a.clone().addcmul_(b, c),
        a.clone().addcdiv_(b, c),
        torch.lerp(a, b, 0.3),
        torch.lerp(a, b, c),
        a.clone().lerp_(b, 0.9),
        a.clone().lerp_(b, c),
    )


@case(F32, BF16, I64)
def clamping(x: Inputs) -> Any:
    a, low, high = x.randn(4, 6), x.randn(4, 6) - 1, x.randn(4, 6) + 1
    return (
        a.clamp(-1, 1),
        a.clamp(min=0),
        a.clamp(max=0),
        a.clamp(low, high),
        a.clamp_min(0),
        a.clamp_max(1),
        a.clamp(min=low),
        a.clamp(max=high),
        a.clone().clamp_(-1, 1),
        a.clone().clamp_min_(0),
        a.clone().clamp_max_(0),
        a.clone().clamp_(min=low),
        a.clone().clamp_max_(high),
        a.clamp_min(low),
        a.clamp_max(high),
        a.clone().clamp_min_(low),
    )


@case(F32)
def whole_comparison(x: Inputs) -> Any:
    a = x.randn(4, 6)
    return torch.equal(a, a.clone()), torch.equal(a, a + 1), torch.isclose(a, a + 1e-9), torch.allclose(a, a + 1)


@case(F32, BF16, I64)
def where(x: Inputs) -> Any:
    a, b, mask = x.randn(4, 6), x.randn(4, 6), x.randn(4, 6, dtype=BOOL)
    return (
        torch.where(mask, a, b),
        torch.where(mask[0], a, b[:, :1]),
        torch.where(mask, a, 0),
        torch.where(mask.t(), a.t(), b.t()),
    )


@case(F32, BF16, relative=1e-7, bf16=0.0)
def activations(x: Inputs) -> Any:
    results = []
    for function in (
        functional.silu,
        functional.gelu,
        functional.relu,
        torch.sigmoid,
        torch.tanh,
        functional.softplus,
        functional.leaky_relu,
        functional.hardtanh,
        functional.glu,
        functional.logsigmoid,
    ):
        source = x.randn(4, 6).requires_grad_()
        result = function(source)
        if function not in (functional.leaky_relu, functional.hardtanh):
            result.backward(x.randn(*result.shape))
            results.append(source.grad)
        results.append(result)
    return results


@case(F32)
def threshold(x: Inputs) -> Any:
    a = x.randn(4, 6)
    return functional.threshold(a, 0.1, 20), torch.threshold_(a.clone(), 0.1, 20), functional.relu_(a.clone())


@case(F32, BF16)
def copies(x: Inputs) -> Any:
    a = x.randn(4, 6, 5)
    target = torch.zeros(5, 6, 4, dtype=F32, device=x.device)
    target.transpose(0, 2).copy_(a)
    wide = torch.zeros(4, 12, 5, dtype=x.dtype, device=x.device)
    wide[:, ::2] = a
    row = torch.zeros(4, 6, 5, dtype=x.dtype, device=x.device)
    row.copy_(a[0])
    parts = [view.contiguous() for view in views(a)]
    return target, wide, row, parts, a.transpose(1, 2).clone(), a.clone(memory_format=torch.contiguous_format)


@case(F32, BF16, I64, I32, BOOL)
def casts(x: Inputs) -> Any:
    a = x.randn(4, 6)
    types = (F32, BF16, torch.float16, I64, I32, torch.int16, torch.int8, torch.uint8, BOOL)
    positive = a.abs() if x.dtype != BOOL else a
    return [positive.to(dtype) for dtype in types], [positive.t().to(dtype) for dtype in types], positive[:0].to(F32)


@case(F32, BF16, I64, BOOL)
def fills(x: Inputs) -> Any:
    a = x.randn(4, 6)
    half = x.randn(4, 6)
    half[:, ::2].fill_(1)
    column = x.randn(4, 6)
    column[:, 2] = 0
    one = a.clone()
    one.fill_(half[0, 0])
    options: Any = {"dtype": x.dtype, "device": x.device}
    return (
        a.clone().zero_(),
        half,
        column,
        one,
        torch.zeros(3, 4, **options),
        torch.ones(3, 4, **options),
        torch.full((2, 3), 1, **options),
        torch.zeros_like(a),
        torch.ones_like(a),
        torch.full_like(a, 1),
        a.new_zeros(2),
        torch.zeros(0, **options),
    )


@case(F32, BF16, I64)
def masked_fill(x: Inputs) -> Any:
    a, mask = x.randn(4, 6), x.randn(4, 6, dtype=BOOL)
    value = x.like([3]).reshape(())
    return (
        a.masked_fill(mask, -10000),
        a.clone().masked_fill_(mask[0], 2),
        a.masked_fill(mask, value),
        a.t().masked_fill(mask.t(), 1),
        a.clone().masked_scatter_(mask, x.randn(24)),
    )
