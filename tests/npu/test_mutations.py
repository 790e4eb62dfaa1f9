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
    found = run_ranks("mutate", ep * tp, folder, arguments=arguments, timeout_s=480)
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
