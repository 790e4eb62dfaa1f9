"""Runs steps on this rank, together with all others: groups of a layout, the plugin enabled, the step, the verdict."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence

from mindspeed_moe import api
from mindspeed_moe.dispatch_table import DISPATCHERS, STOCK
from mindspeed_moe.selftest.bare import run_bare, run_refused
from mindspeed_moe.selftest.bench import Bench
from mindspeed_moe.selftest.collectives import Watched
from mindspeed_moe.selftest.dispatchers import Maker
from mindspeed_moe.selftest.flight import fly_bare, fly_layers
from mindspeed_moe.selftest.groups import KeptGroups, model_parallel_groups
from mindspeed_moe.selftest.layer import run_layer
from mindspeed_moe.selftest.place import Place
from mindspeed_moe.selftest.pressure import under_pressure
from mindspeed_moe.selftest.report import FAILED, NOT_TRIED, PASSED, REFUSED, Outcome
from mindspeed_moe.selftest.steps import BARE, LAYER, Contestant, Step
from mindspeed_moe.selftest.verdicts import Problem, Verdicts

# (way, under load) -> what runs
_RUN: dict[tuple[str, bool], Callable[[Bench, Step], None]] = {
    (BARE, False): run_bare,
    (LAYER, False): run_layer,
    (BARE, True): fly_bare,
    (LAYER, True): fly_layers,
}
Reached = Callable[[str], object]


class Runner:
    """Runs steps in a world of processes that exists already.

    reached: told of every step, and of the work between steps, by name. place: where this rank stands meanwhile.
    """

    def __init__(
        self,
        maker: Maker,
        verdicts: Verdicts,
        place: Place,
        reached: Reached,
        *,
        rank: int,
        seed: int,
        simulated: bool,
    ) -> None:
        self._verdicts, self._place, self._reached = verdicts, place, reached
        self._rank, self._seed = rank, seed
        self._found: list[Problem] = []
        self._kept = KeptGroups()
        self._bench = Bench(maker.device, simulated, seed, maker, place, Watched(place), self._agree)

    def run(self, steps: Sequence[Step]) -> Iterator[Outcome]:
        """Run steps that stand in the order of their plan; yields what came of each.

        A wrong value fails its step, and the run goes on; the ranks have come to that verdict together. Whatever is
        raised, by a collective above all, ends the run.
        """
        for (ep, tp), of_layout in itertools.groupby(steps, key=lambda one: (one.layout.ep, one.layout.tp)):
            self._begin(f"EP {ep}, TP {tp}: making process groups")
            with model_parallel_groups(ep, tp, self._rest) as (group, index):
                self._bench.enter(group, index)
                contestants = itertools.groupby(of_layout, key=lambda one: (one.dispatcher, one.contestant))
                for (dispatcher, contestant), own in contestants:
                    with self._enabled(dispatcher, contestant):
                        yield from self._steps(list(own))

    def _steps(self, steps: Sequence[Step]) -> Iterator[Outcome]:
        """Run the steps of one contestant, those under load last, so that pressure is built up once."""
        failed: set[str] = set()  # rows of the table whose splits are wrong: tokens must not be sent by them
        for under_load, group in itertools.groupby(sorted(steps, key=lambda one: one.load), key=lambda one: one.load):
            seed = self._seed + self._rank
            pressed = under_pressure(self._bench.device, seed, simulated=self._bench.simulated)
            with pressed if under_load else contextlib.nullcontext() as pressure:
                self._bench.pressure = pressure
                for step in group:
                    self._begin(str(step))
                    if step.row in failed:
                        yield Outcome(step, NOT_TRIED, 0.0)
                        continue
                    outcome = self._one(step)
                    if outcome.state == FAILED and step.way == BARE:
                        failed.add(step.row)
                    yield outcome

    def _one(self, step: Step) -> Outcome:
        since = time.monotonic()
        self._found = []
        run = run_refused if step.refusal else _RUN[step.way, step.load]
        try:
            with self._bench.watched.watching():
                run(self._bench, step)
            self._bench.synchronize()
        except BaseException as error:
            self._place.left(error)
            raise
        state = REFUSED if step.refusal else PASSED
        return Outcome(step, FAILED if self._found else state, time.monotonic() - since, tuple(self._found))

    def _agree(self, found: Sequence[str]) -> bool:
        problems = self._verdicts.agree(self._place.step, found)
        self._found += problems
        return not problems

    def _begin(self, name: str) -> None:
        self._place.begin(name)
        self._reached(name)

    @contextlib.contextmanager
    def _enabled(self, dispatcher: str, contestant: Contestant) -> Iterator[None]:
        """The plugin's patches for a contestant, without MindSpeed."""
        self._begin(f"{dispatcher}; {contestant}: enabling")
        dispatchers = dict.fromkeys(DISPATCHERS, STOCK) | {dispatcher: contestant.implementation}
        preprocess = dict(contestant.choices)
        api.enable(
            {"device": self._bench.device, "dispatchers": dispatchers, "preprocess": preprocess, "mindspeed": "off"}
        )
        try:
            with self._kept.keeping():
                yield
        finally:
            left = api.disable()
        if left:
            raise AssertionError(f"{contestant}: after disable() targets were not as before: {'; '.join(left)}")

    def _rest(self) -> None:
        """Wait until no rank has anything under way any more."""
        self._begin("ending process groups")
        self._bench.synchronize()
        self._verdicts.agree(self._place.step, ())
