"""Forward and backward through Megatron's dispatcher, with experts that only scale: exact outputs and gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from mindspeed_moe.selftest.bench import Bench, Problem
from mindspeed_moe.selftest.differences import difference
from mindspeed_moe.selftest.dispatchers import combine, dispatch, ep_group, read
from mindspeed_moe.selftest.steps import Step


@dataclass
class Pass:
    """One micro-batch in one layer, between its forward and the comparison of its results.

    handed_out: the attributes as consumers keep them. rows: [rows, H], as they reached the experts.
    """

    problem: Problem
    hidden: torch.Tensor
    probs: torch.Tensor
    rows: torch.Tensor
    output: torch.Tensor
    weighted_by_experts: bool
    handed_out: dict[str, Any]


def run_layer(bench: Bench, step: Step) -> None:
    """One micro-batch through one layer. Problems go to `bench.agree`."""
    dispatcher = bench.maker.dispatcher(step.layout, step.dispatcher, step.mode)
    with checked_splits(bench):
        one = forward(bench, step, dispatcher, bench.problem(step), "forward")
        backward(bench, one, "backward")
    bench.agree(list(problems_of(one)))


@contextlib.contextmanager
def checked_splits(bench: Bench) -> Iterator[None]:
    """Every all-to-all on the EP group must go by the oracle's splits until the block ends."""
    bench.watched.check(ep_group())
    try:
        yield
    finally:
        bench.watched.check(None)


def forward(bench: Bench, step: Step, dispatcher: Any, problem: Problem, at: str) -> Pass:
    """Bring a micro-batch to the experts and back."""
    return start(bench, step, dispatcher, problem, at)()


def start(bench: Bench, step: Step, dispatcher: Any, problem: Problem, at: str) -> Callable[[], Pass]:
    """Begin a forward; what is returned does the rest. Releases without stages begin only then."""
    splits = problem.expected.splits
    bench.place.at = f"{at}, start"
    bench.watched.allow(splits.input_splits, splits.output_splits)
    hidden, probs = problem.hidden(), problem.probs()
    # [S, batch, H], as layers hand it over.
    rest = dispatch(dispatcher, hidden.unsqueeze(1), probs, problem.from_router())

    def finish() -> Pass:
        bench.place.at = at
        rows, counts, row_probs = rest()
        handed_out = read(dispatcher, counts, bench.maker.table(step.dispatcher), step)
        results = rows * problem.factors if row_probs is None else rows * problem.factors * row_probs.view(-1, 1)
        output = combine(dispatcher, results).view_as(hidden)
        return Pass(problem, hidden, probs, rows.detach(), output, row_probs is not None, handed_out)

    return finish


def backward(bench: Bench, one: Pass, at: str) -> None:
    """Send the gradient of the output back."""
    bench.place.at = at
    torch.autograd.backward(one.output, one.problem.weights)


def problems_of(one: Pass) -> Iterator[str]:
    """Yield what differs from the oracle; waits for the device."""
    expected = one.problem.expected
    yield from one.problem.splits(one.handed_out)
    rows, output, of_hidden, of_probs = _on_host(one.rows[:, :2], one.output.detach(), one.hidden.grad, one.probs.grad)
    of_probs_expected = expected.probs_gradient_at_experts if one.weighted_by_experts else expected.probs_gradient
    senders = [(member % 255 + 1, token % 255 + 1) for member, token in expected.tags]
    for told in (
        difference("rows at the experts (index + 1, token + 1)", rows.tolist(), senders),
        difference("output", output, expected.output),
        difference("gradient of hidden states", of_hidden, expected.hidden_gradient),
        difference("gradient of probabilities", of_probs, of_probs_expected),
    ):
        if told:
            yield told


def _on_host(*tensors: torch.Tensor | None) -> list[Any]:
    """Return arrays of tensors, brought to the host by one copy; None for what has no gradient."""
    there = [one for one in tensors if one is not None]
    flat = torch.cat([one.reshape(-1) for one in there]).cpu()
    parts = torch.split(flat, [one.numel() for one in there])
    arrays = iter(part.view(one.shape).numpy() for part, one in zip(parts, there, strict=True))
    return [None if one is None else next(arrays) for one in tensors]
