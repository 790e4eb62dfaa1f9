"""No row claims more than the suite runs: on every run by ci/test.sh, and on record in evidence.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mindspeed_moe.contract import GENERATIONS
from mindspeed_moe.dispatch_table import ROWS, Claim, Row, rows_of
from mindspeed_moe.errors import EvidenceError
from mindspeed_moe.evidence import FILE, Evidence, read_evidence
from mindspeed_moe.stacks import DEFAULT, STACKS

ROOT = Path(__file__).resolve().parents[2]
EVERY_RUN = {release for one in GENERATIONS for release in one.every_run}
ON_DEMAND = {release for one in GENERATIONS for release in one.on_demand}
BY_HAND = {release for one in GENERATIONS for release in one.by_hand}
LEDGER = {
    "dispatcher": "alltoall",
    "implementation": "packed",
    "tokens_per_expert": "host",
    "kernels": 1,
    "collectives": 1,
    "copies": 1,
    "records": 4,
    "event_waits": 1,
    "stream_synchronizations": 0,
}


def suite(row: Row, **counts: int) -> dict[str, Any]:
    named = {"device": row.device, "dispatcher": row.dispatcher, "implementation": row.implementation}
    return {**named, "passed": 3, "failed": 0, "skipped": 1, **counts}


def a_run(*suites: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    one_process = {"passed": 5, "failed": 0, "skipped": 0}
    versions = {"date": "2026-01-31", "stack": "llm", "python": "3.10.1", "torch": "2.13.0", "torch_npu": "2.13.0"}
    return {**versions, "one_process": one_process, "suites": list(suites), "ledgers": [LEDGER], **others}


def written(folder: Path, releases: Any) -> Path:
    file = folder / "evidence.json"
    file.write_text(json.dumps({"releases": releases}))
    return file


# ------------------------------------------------------------------------------------------------ the claims


GATE = STACKS[DEFAULT].megatron_core[:1]  # what ci/test.sh runs with, on the cpu and on the simulated npu


def overclaims(row: Row, evidence: Evidence, every_run: Mapping[str, Set[str]]) -> list[str]:
    """What a row says beyond what has run."""
    problems = [f"{one} is not in ci/test.sh" for one in row.claim.every_run if one not in every_run[row.device]]
    if row.device == "cuda":
        return problems + [f"{one} has not run on a GPU" for one in row.claim.on_demand]
    if row.device == "npu" and not row.evidence.startswith("simulated"):
        problems.append("does not say that it is simulated")
    return problems + [f"no run without failures is recorded with {one}" for one in evidence.unproved(row)]


@pytest.mark.parametrize("row", ROWS, ids=lambda one: "-".join((one.device, one.dispatcher, *one.claim.releases[:1])))
def test_no_row_claims_more_than_has_run(row: Row) -> None:
    every_run = {"cpu": set(GATE), "npu": set(GATE), "cuda": set()}
    assert overclaims(row, read_evidence(), every_run) == [], "run `bash ci/full.sh --part RELEASE` with these releases"


def test_the_scripts_run_with_the_releases_of_the_data() -> None:
    assert set(GATE) == EVERY_RUN
    assert {release for one in STACKS.values() for release in one.megatron_core} == EVERY_RUN | ON_DEMAND
    assert not EVERY_RUN & ON_DEMAND
    assert not BY_HAND & (EVERY_RUN | ON_DEMAND), "what a registry has is no release of a checkout"


def test_every_release_of_the_data_is_claimed_where_it_runs() -> None:
    for row in ROWS:
        generation = next(one for one in GENERATIONS if one.name == row.generation)
        wanted = generation.every_run + generation.on_demand + generation.by_hand
        assert row.claim.releases == (() if row.device == "cuda" else wanted)


def test_rows_of_one_cell_claim_the_same() -> None:
    """The matrix in README.md shows the first one's."""
    for row in ROWS:
        assert row.claim == rows_of(row.device, row.dispatcher, row.generation)[0].claim


def test_cuda_claims_only_what_the_readme_says() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    on_gpu = "one H100 with torch 2.11.0 and megatron-core 0.16.1, over a group of one rank"
    assert f"`cuda` ran on {on_gpu}" in readme
    for row in (one for one in ROWS if one.device == "cuda"):
        tried = (row.dispatcher, row.generation) == ("alltoall", "hook_event_wait_graphs")
        assert row.evidence.startswith(f"tried on {on_gpu}, never" if tried else "not measured: ")


def test_the_readme_names_the_releases_of_every_run() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"megatron-core {', '.join(GATE)} on every run of `ci/test.sh`" in readme
    assert "the other releases on demand by `ci/full.sh`" in readme


ROW = replace(rows_of("cpu", "alltoall", "hook_stream_wait")[0], claim=Claim("", ("0.12.1",), ("0.12.0",)))
HERE = {"cpu": {"0.12.1"}, "npu": {"0.12.1"}, "cuda": set()}


NOT_IN_SCRIPT, NO_RUN = "0.12.9 is not in ci/test.sh", "no run without failures is recorded with 0.12.9"


def proof(row: Row, *releases: str, **counts: int) -> Evidence:
    return Evidence.model_validate_json(
        json.dumps({"releases": {one: a_run(suite(row, **counts)) for one in releases}})
    )


def test_a_claim_that_has_run_stands() -> None:
    assert overclaims(ROW, proof(ROW, "0.12.0", "0.12.1"), HERE) == []


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        (Claim("", every_run=("0.12.9",)), [NOT_IN_SCRIPT, NO_RUN]),
        (Claim("", on_demand=("0.12.9",)), [NO_RUN]),
        (Claim("", every_run=("0.12.0",)), ["0.12.0 is not in ci/test.sh"]),
    ],
)
def test_a_claim_of_an_untested_release_fails(claim: Claim, told: list[str]) -> None:
    assert overclaims(replace(ROW, claim=claim), proof(ROW, "0.12.0", "0.12.1"), HERE) == told


@pytest.mark.parametrize("counts", [{"failed": 1}, {"passed": 0}])
def test_a_run_that_failed_or_ran_nothing_is_no_proof(counts: dict[str, int]) -> None:
    assert proof(ROW, "0.12.0", "0.12.1", **counts).unproved(ROW) == ("0.12.1", "0.12.0")


def test_a_run_of_something_else_is_no_proof() -> None:
    for other in (
        replace(ROW, implementation="reference"),
        replace(ROW, device="npu"),
        replace(ROW, dispatcher="alltoall_seq"),
    ):
        assert proof(other, "0.12.0", "0.12.1").unproved(ROW) == ("0.12.1", "0.12.0")


def test_a_release_whose_groups_in_one_process_fail_is_unproved(tmp_path: Path) -> None:
    failed = {"passed": 5, "failed": 1, "skipped": 0}
    file = written(tmp_path, {"0.12.1": a_run(suite(ROW)), "0.12.0": a_run(suite(ROW), one_process=failed)})
    assert read_evidence(file).unproved(ROW) == ("0.12.0",)


def test_a_gpu_that_claims_a_release_fails() -> None:
    row = replace(rows_of("cuda", "alltoall", "hook_stream_wait")[0], claim=Claim("", ("0.12.1",), ("0.12.0",)))
    assert overclaims(row, Evidence(), HERE) == ["0.12.1 is not in ci/test.sh", "0.12.0 has not run on a GPU"]


def test_an_npu_that_does_not_say_simulated_fails() -> None:
    row = replace(ROW, device="npu")
    assert overclaims(row, proof(row, "0.12.0", "0.12.1"), HERE) == ["does not say that it is simulated"]


# ------------------------------------------------------------------------------------------------ the file


def test_the_file_is_as_it_is_written() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert read_evidence().text() == text
    assert not re.search(r"[/\\]|\d:\d", text), "no paths, no times of day"
    assert read_evidence().releases.keys() <= EVERY_RUN | ON_DEMAND | BY_HAND


def test_every_recorded_run_has_the_ledgers() -> None:
    for release, run in read_evidence().releases.items():
        of = {one.implementation for one in run.ledgers if one.dispatcher == "alltoall"}
        assert of == {"stock", "reference", "packed"}, release


def test_a_newer_run_takes_the_place_of_the_older_one() -> None:
    old, new = proof(ROW, "0.12.1", "0.9.0"), proof(ROW, "0.12.1", passed=7).releases["0.12.1"]
    both = old.with_run("0.12.1", new).with_run("0.10.0", new)
    assert list(both.releases) == ["0.9.0", "0.10.0", "0.12.1"], "as versions, not as text"
    assert both.releases["0.12.1"].suites[0].passed == 7


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "evidence.json: Invalid JSON: "),
        ("[]", "evidence.json: Input should be an object"),
        ('{"relaeses": {}}', "evidence.json: relaeses: Extra inputs are not permitted"),
        ('{"releases": {"0.12.1": {}}}', "evidence.json: releases.0.12.1.date: Field required"),
    ],
)
def test_a_broken_file_is_told(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "evidence.json"
    file.write_text(text)
    with pytest.raises(EvidenceError) as caught:
        read_evidence(file)
    assert str(caught.value).startswith(told)
    assert str(caught.value).endswith("; write it anew with `bash ci/full.sh --stack NAME --part RELEASE`")


@pytest.mark.parametrize(
    ("run", "told"),
    [
        (a_run(suite(ROW, passed=-1)), "suites.0.passed: Input should be greater than or equal to 0"),
        (a_run({**suite(ROW), "device": "tpu"}), "suites.0.device: Input should be 'npu' or 'cpu'"),
        (a_run(suite(ROW), date="31 January"), "date: String should match pattern"),
        (a_run(suite(ROW), suite(ROW)), "suites: cpu, alltoall, packed stands there twice"),
        (a_run(ledgers=[LEDGER, LEDGER]), "ledgers: alltoall, packed, host stands there twice"),
        (a_run(ledgers=[{**LEDGER, "copies": "1"}]), "ledgers.0.copies: Input should be a valid integer"),
    ],
)
def test_a_broken_run_is_told(tmp_path: Path, run: Any, told: str) -> None:
    with pytest.raises(EvidenceError, match=re.escape(f"evidence.json: releases.0.12.1.{told}")):
        read_evidence(written(tmp_path, {"0.12.1": run}))


def test_a_release_that_is_no_version_is_told(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match=r"evidence\.json: releases\.latest"):
        read_evidence(written(tmp_path, {"latest": a_run()}))


def test_a_missing_file_and_bytes_are_told(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match=r"evidence\.json: cannot be read \(No such file"):
        read_evidence(tmp_path / "evidence.json")
    (tmp_path / "evidence.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EvidenceError, match=r"evidence\.json: is no text"):
        read_evidence(tmp_path / "evidence.json")
