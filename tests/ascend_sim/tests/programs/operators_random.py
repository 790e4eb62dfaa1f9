"""Random numbers on the simulated npu: reproducible from the seed, of the right distribution, and dropout's mask.

The last line is a JSON document {"results": {check: what is wrong, or empty}, "launched": [operators]}.
"""

# mypy: disable-error-code="attr-defined,no-untyped-call"
# (torch.npu exists once torch_npu is loaded; some functions of torch and Megatron have no types)

from __future__ import annotations

import functools
import json
from collections.abc import Callable

import torch
import torch.nn.functional as functional

from tests.ascend_sim import ledger

N = 20000
Draw = Callable[[], torch.Tensor]


def _empty() -> torch.Tensor:
    return torch.empty(N, device="npu")


DRAWS: dict[str, tuple[Draw, float, float]] = {
    "uniform_": (lambda: _empty().uniform_(-1, 3), 1.0, 4 / 12**0.5),
    "normal_": (lambda: _empty().normal_(2, 0.5), 2.0, 0.5),
    "rand": (lambda: torch.rand(N, device="npu"), 0.5, 1 / 12**0.5),
    "randn": (lambda: torch.randn(N, device="npu"), 0.0, 1.0),
    "randn of bfloat16": (lambda: torch.randn(N, device="npu", dtype=torch.bfloat16).float(), 0.0, 1.0),
    "normal with a tensor of means": (lambda: torch.normal(torch.ones(N, device="npu"), 2.0), 1.0, 2.0),
    "normal with a tensor of deviations": (lambda: torch.normal(1.0, torch.full((N,), 2.0, device="npu")), 1.0, 2.0),
    "normal with two tensors": (
        lambda: torch.normal(torch.ones(N, device="npu"), torch.full((N,), 2.0, device="npu")),
        1.0,
        2.0,
    ),
    "normal of a size": (lambda: torch.normal(1.0, 2.0, (N,), device="npu"), 1.0, 2.0),
    "bernoulli_": (lambda: _empty().bernoulli_(0.25), 0.25, (0.25 * 0.75) ** 0.5),
    "bernoulli of probabilities": (
        lambda: torch.bernoulli(torch.full((N,), 0.25, device="npu")),
        0.25,
        (0.25 * 0.75) ** 0.5,
    ),
    "randint": (lambda: torch.randint(0, 8, (N,), device="npu").float(), 3.5, (63 / 12) ** 0.5),
    "random_": (lambda: _empty().random_(0, 8), 3.5, (63 / 12) ** 0.5),
    "dropout": (lambda: functional.dropout(torch.ones(N, device="npu"), 0.2), 1.0, 0.5),
    "multinomial": (lambda: torch.multinomial(torch.ones(4, device="npu"), N, True).float(), 1.5, (15 / 12) ** 0.5),
    "kaiming": (lambda: torch.nn.init.kaiming_uniform_(torch.empty(N, 3, device="npu"), a=5**0.5)[:, 0], 0.0, 1 / 3),
}


def distribution(draw: Draw, mean: float, deviation: float) -> str:
    """The same seed gives the same numbers, the next draw others, and mean and deviation are right within 5 %."""
    torch.npu.manual_seed(7)
    first, second = draw().cpu(), draw().cpu()
    torch.npu.manual_seed(7)
    again = draw().cpu()
    torch.npu.manual_seed(8)
    other = draw().cpu()
    if not torch.equal(first, again):
        return "the same seed gave other numbers"
    if torch.equal(first, second) or torch.equal(first, other):
        return "a second draw or another seed gave the same numbers"
    found_mean, found_deviation = first.double().mean().item(), first.double().std().item()
    if abs(found_mean - mean) > 0.05 * deviation or abs(found_deviation - deviation) > 0.05 * deviation:
        return f"mean {found_mean:.4f} and deviation {found_deviation:.4f}, expected {mean:.4f} and {deviation:.4f}"
    return ""


def permutation() -> str:
    """randperm gives each number once, in an order that the seed decides."""
    torch.npu.manual_seed(3)
    first = torch.randperm(100, device="npu").cpu()
    torch.npu.manual_seed(3)
    again = torch.randperm(100, device="npu").cpu()
    if not torch.equal(first, again) or not torch.equal(first.sort().values, torch.arange(100)):
        return f"{first.tolist()} and then {again.tolist()}"
    return "" if not torch.equal(first, torch.arange(100)) else "in order"


def dropout_gradient() -> str:
    """What dropout keeps is scaled, and the gradient passes exactly where the value passed."""
    for dtype in (torch.float32, torch.bfloat16):
        ones = torch.ones(37, 11, device="npu", dtype=dtype).requires_grad_()
        result = functional.dropout(ones, 0.25)
        result.backward(torch.ones_like(result))
        assert ones.grad is not None
        host, grad = result.detach().cpu().float(), ones.grad.cpu().float()
        if not torch.equal(host, grad):
            return f"{dtype}: the gradient passes where the value did not"
        values = sorted(set(host.flatten().tolist()))
        if len(values) != 2 or values[0] != 0 or abs(values[1] - 4 / 3) > 0.01:
            return f"{dtype}: values {values}, expected 0 and 4/3"
    return ""


def whole_range() -> str:
    """random_ without bounds, and npu_dropout_gen_mask, whose mask has one bit for each element."""
    import torch_npu

    torch.npu.manual_seed(5)
    first, mask = (
        torch.empty(50, dtype=torch.int32, device="npu").random_().cpu(),
        torch_npu.npu_dropout_gen_mask([N], 0.25, dtype=torch.float32, device="npu").cpu(),
    )
    torch.npu.manual_seed(5)
    again = torch.empty(50, dtype=torch.int32, device="npu").random_().cpu()
    if not torch.equal(first, again) or int(first.max()) < 2**20:
        return f"{first.tolist()} and then {again.tolist()}"
    kept = sum(int(byte).bit_count() for byte in mask.tolist()) / N
    return "" if abs(kept - 0.75) < 0.02 else f"the mask keeps {kept}, expected 0.75"


def random_state() -> str:
    """The state of the generator can be taken and put back, as Megatron's tracker of random states does."""
    torch.npu.manual_seed(11)
    torch.rand(5, device="npu")
    state = torch.npu.get_rng_state()
    first = functional.dropout(torch.ones(100, device="npu"), 0.5).cpu()
    torch.npu.set_rng_state(state)
    again = functional.dropout(torch.ones(100, device="npu"), 0.5).cpu()
    return "" if torch.equal(first, again) else "a restored state gave other numbers"


CHECKS: dict[str, Callable[[], str]] = {
    **{name: functools.partial(distribution, *what) for name, what in DRAWS.items()},
    "randperm": permutation,
    "dropout gradient": dropout_gradient,
    "random state": random_state,
    "whole range": whole_range,
}


def main() -> None:
    """Prints what each check found."""
    torch.npu.set_device(0)
    ledger.mark()
    results = {name: check() for name, check in CHECKS.items()}
    print(json.dumps({"results": results, "launched": sorted(ledger.read().kernels)}))


if __name__ == "__main__":
    main()
