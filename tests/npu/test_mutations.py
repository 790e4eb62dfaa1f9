"""Mistakes seeded into the npu code are noticed in every run; the code as it is passes the same runs (simulated)."""

from __future__ import annotations

from pathlib import Path

import pytest

from npu.launch import run_ranks
from npu.mutations import EP_TP

pytestmark = [pytest.mark.simulated, pytest.mark.megatron]

SEEDS = 50

Noticed = dict[tuple[str, str], list[set[str]]]


@pytest.fixture(scope="module", params=EP_TP)
def noticed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Noticed:
    """Return (stream, mutation) -> for each rank the seeds in which it was noticed; "" is the code as it is."""
    ep, tp, known = EP_TP[request.param]
    names = {stream: ["", *mutations] for stream, mutations in known.items()}
    arguments = {"where": request.param, "seeds": SEEDS, "names": names}
    folder: Path = tmp_path_factory.mktemp("mutations")
    found = run_ranks("mutate", ep * tp, folder, arguments=arguments)
    return {
        (stream, name): [set(rank[stream][name]) for rank in found]
        for stream, of_stream in names.items()
        for name in of_stream
    }


def test_the_code_as_it_is_passes_every_run(noticed: Noticed) -> None:
    for (stream, name), by_rank in noticed.items():
        for rank, seeds in enumerate(by_rank):
            assert name or not seeds, f"{stream}: the unmutated code failed on rank {rank} with the seeds {seeds}"


def test_every_mutation_is_noticed_in_every_run(noticed: Noticed) -> None:
    missed = {
        f"{name}, {stream}: missed with {len(seeds)} seeds, {sorted(seeds)[:5]}"
        for (stream, name), by_rank in noticed.items()
        if name and (seeds := set(map(str, range(SEEDS))) - set.union(*by_rank))
    }
    assert not missed, "\n".join(sorted(missed))


LAYER_SEEDS = 5
_CASES = [
    (where, stream, name)
    for where, (_, _, known) in EP_TP.items()
    for stream, of_stream in known.items()
    for name in ("", *of_stream)
    if name != "counts_handed_out_before_the_wait"  # Megatron's layers read counts behind the wait alone
]
_ON_EVERY_RUN = ("", "event_not_waited_for")  # each is a launch of its own


@pytest.mark.parametrize(
    ("where", "stream", "name"),
    [
        pytest.param(*one, marks=() if one[0] == "ep2" and one[2] in _ON_EVERY_RUN else pytest.mark.slow)
        for one in _CASES
    ],
)
def test_a_mistake_shows_in_what_layers_compute(where: str, stream: str, name: str, tmp_path: Path) -> None:
    """Layers whose ranks have different experts; all-to-all with wrong splits may also end the launch."""
    ep, tp, _ = EP_TP[where]
    arguments = {"where": where, "stream": stream, "name": name, "seeds": LAYER_SEEDS}
    ended = ""
    try:
        found = run_ranks("mutated_layers", ep * tp, tmp_path, arguments=arguments)
    except AssertionError as error:
        ended = str(error)
    if ended:
        assert name, ended
        assert "simulated H" in ended or "Error" in ended
        return
    for seed in map(str, range(LAYER_SEEDS)):
        wrong = [told for rank in found for told in rank[seed]]
        assert bool(wrong) == bool(name), (seed, wrong)
