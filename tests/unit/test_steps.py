"""Which training step it is, counted from what real optimizers of torch's tell."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from mindspeed_moe import lifetime
from mindspeed_moe.preprocess.steps import Steps


@pytest.fixture
def steps() -> Iterator[Steps]:
    yield Steps()
    lifetime.end()


def optimizer(kind: type[torch.optim.Optimizer] = torch.optim.SGD) -> torch.optim.Optimizer:
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    return kind([weight], lr=0.1)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_step_is_what_lies_between_two_optimizer_steps(steps: Steps, kind: type[torch.optim.Optimizer]) -> None:
    one = optimizer(kind)
    seen = []
    for micro_batches in (1, 3, 2):
        seen += [steps.forward() for _ in range(micro_batches)]
        one.step()
    assert seen == [0, 1, 1, 1, 2, 2]
    assert steps.current == 3


def test_several_optimizers_in_one_step_count_once(steps: Steps) -> None:
    """Megatron has one for dense parameters and one for those of the experts."""
    dense, experts = optimizer(), optimizer()
    for step in range(3):
        assert steps.forward() == step
        dense.step()
        experts.step()
    assert steps.current == 3


def test_a_step_without_a_forward_pass_is_none(steps: Steps) -> None:
    assert steps.forward() == 0
    one = optimizer()
    for _ in range(4):
        one.step()
    assert steps.forward() == 1


def test_a_skipped_step_is_counted_together_with_the_next(steps: Steps) -> None:
    one = optimizer()
    assert [steps.forward(), steps.forward()] == [0, 0]  # the optimizer found gradients that are not finite
    one.step()
    assert steps.forward() == 1


def test_a_given_number_is_counted_on_from(steps: Steps) -> None:
    one = optimizer()
    steps.set(500)
    assert steps.forward() == 500
    one.step()
    assert steps.forward() == 501


@pytest.fixture
def megatron(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The arguments that Megatron's training loop keeps."""
    args = SimpleNamespace(iteration=40)
    module = SimpleNamespace(_GLOBAL_ARGS=args)
    monkeypatch.setitem(sys.modules, "megatron.training.global_vars", module)  # type: ignore[arg-type]
    return args


def test_megatrons_loop_numbers_the_steps_those_that_optimizers_skip_too(
    steps: Steps, megatron: SimpleNamespace
) -> None:
    one, seen = optimizer(), []
    for iteration in (40, 41, 42, 43):
        megatron.curr_iteration = iteration
        seen.append(steps.forward())
        seen.append(steps.forward())
        if iteration != 41:  # gradients that are not finite
            one.step()
    # The skipped one is added to the next, under the number that it began with; the one after has its own again.
    assert seen == [40, 40, 41, 41, 41, 41, 43, 43]


def test_a_loop_that_says_only_where_it_began_is_counted_on_from_there(steps: Steps, megatron: SimpleNamespace) -> None:
    one = optimizer()
    for expected in (40, 41, 42):
        assert steps.forward() == expected
        one.step()


def test_an_evaluation_between_two_steps_belongs_to_the_next(steps: Steps, megatron: SimpleNamespace) -> None:
    """Megatron's loop numbers a step before it trains, and evaluates after it under the same number."""
    one, seen, told = optimizer(), [], []
    steps.at_step_end(told.append)
    seen.append(steps.forward(gradients=False))  # before training begins
    for iteration in (40, 41):
        megatron.curr_iteration = iteration
        seen += [steps.forward(gradients=False), steps.forward()]  # recomputation
        one.step()
        seen += [steps.forward(gradients=False), steps.forward(gradients=False)]  # evaluation
    assert seen == [40, 40, 40, 41, 41, 41, 41, 42, 42]
    assert told == [40, 41]
    assert steps.latest == 41


def test_passes_without_gradients_are_no_step(steps: Steps) -> None:
    one = optimizer()
    steps.forward(gradients=False)
    one.step()
    assert steps.forward() == 0


def test_a_given_number_wins_over_megatrons(steps: Steps, megatron: SimpleNamespace) -> None:
    steps.set(3)
    assert steps.forward() == 3


def test_the_end_of_each_step_is_told(steps: Steps) -> None:
    told: list[int] = []
    steps.at_step_end(told.append)
    one = optimizer()
    for _ in range(3):
        steps.forward()
        one.step()
        one.step()
    assert told == [0, 1, 2]


def test_nothing_listens_before_the_first_forward_pass_nor_after_the_end(steps: Steps) -> None:
    from torch.optim import optimizer as torchs

    def hooks() -> int:
        return len(torchs._global_optimizer_post_hooks)

    before = hooks()
    assert hooks() == before
    steps.forward()
    steps.forward()
    assert hooks() == before + 1
    lifetime.end()
    assert hooks() == before
    optimizer().step()
    assert steps.current == 0
    steps.forward()
    assert hooks() == before + 1, "it begins again when it is needed again"
