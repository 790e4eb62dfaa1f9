"""What the suite has run with each release of megatron-core: data that `ci/full.sh` writes and doctor shows."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from packaging.version import Version
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from mindspeed_moe.dispatch_table import STOCK, Row
from mindspeed_moe.errors import EvidenceError
from mindspeed_moe.files import read_text

FILE = Path(__file__).with_name("evidence.json")
RENEW = "write it anew with `bash ci/full.sh --stack NAME --part RELEASE`"
# The call that the ledgers are of.
LEDGER_OF = "one dropless call on the simulated npu, EP = 2, TP = 1, L = 4"

Dispatcher = Literal["alltoall", "alltoall_seq"]
_DATE, _RELEASE = r"^\d{4}-\d{2}-\d{2}$", r"^\d+\.\d+\.\d+$"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Counts(_Part):
    """Numbers of tests. failed: errors outside of the tests themselves included."""

    passed: NonNegativeInt = 0
    failed: NonNegativeInt = 0
    skipped: NonNegativeInt = 0

    @property
    def right(self) -> bool:
        """Whether something ran and all of it passed."""
        return self.passed > 0 and self.failed == 0


class Suite(Counts):
    """The tests that ran one implementation of one dispatcher on one device; npu is the simulated one."""

    device: Literal["npu", "cpu"]
    dispatcher: Dispatcher
    implementation: Literal["packed", "reference"]


class Ledger(_Part):
    """What LEDGER_OF costs one rank, after the first calls. tokens_per_expert: where the experts read their counts.

    Three of the records are torch_npu's own around a collective.
    """

    dispatcher: Dispatcher
    implementation: Literal["stock", "reference", "packed"]
    tokens_per_expert: Literal["device", "host"]
    kernels: NonNegativeInt
    collectives: NonNegativeInt
    copies: NonNegativeInt
    records: NonNegativeInt
    event_waits: NonNegativeInt
    stream_synchronizations: NonNegativeInt


class Run(_Part):
    """One run of the suite with one release. one_process: the tests of a whole group in one process.

    stack: a name of stacks.json at that time; python, torch and torch_npu are what really ran.
    """

    date: str = Field(pattern=_DATE)
    stack: str
    python: str
    torch: str
    torch_npu: str
    one_process: Counts
    suites: tuple[Suite, ...]
    ledgers: tuple[Ledger, ...]


class Evidence(_Part):
    """The latest run with each release."""

    releases: Mapping[Annotated[str, Field(pattern=_RELEASE)], Run] = Field(default_factory=dict)

    def suites_of(self, row: Row) -> Iterator[tuple[str, Suite]]:
        """Yield (release, suite) for every release that a row names and that ran, for the row's implementation."""
        wanted = (row.device, row.dispatcher, row.implementation)
        for release in row.claim.releases:
            for suite in self.releases[release].suites if release in self.releases else ():
                if (suite.device, suite.dispatcher, suite.implementation) == wanted:
                    yield release, suite

    def ledgers_of(self, row: Row) -> Iterator[tuple[str, Ledger]]:
        """Yield (release, ledger) for stock and for a row's implementation, where the row is the npu's."""
        for release in row.claim.releases if row.device == "npu" else ():
            for ledger in self.releases[release].ledgers if release in self.releases else ():
                if ledger.dispatcher == row.dispatcher and ledger.implementation in (STOCK, row.implementation):
                    yield release, ledger

    def unproved(self, row: Row) -> tuple[str, ...]:
        """Return the releases that a row names and for which no run without failures is recorded."""
        proved = {
            release
            for release, suite in self.suites_of(row)
            if suite.right and self.releases[release].one_process.right
        }
        return tuple(release for release in row.claim.releases if release not in proved)

    def with_run(self, release: str, run: Run) -> Evidence:
        """Return the evidence with a newer run of one release, oldest release first."""
        runs = {**self.releases, release: run}
        return Evidence(releases={name: runs[name] for name in sorted(runs, key=Version)})

    def text(self) -> str:
        """Return the file's text: what holds nothing but numbers and words is a line."""
        text = json.dumps(self.model_dump(mode="json"), indent=1)
        return re.sub(r"\{[^{}\[]*\}", lambda found: " ".join(found[0].split()), text) + "\n"


def read_evidence(file: Path = FILE) -> Evidence:
    """Read the record of what has run. Raises EvidenceError that names file, key and value."""
    try:
        text = read_text(file)
    except OSError as error:
        raise EvidenceError(f"{file.name}: cannot be read ({error.strerror}); {RENEW}") from None
    except UnicodeDecodeError:
        raise EvidenceError(f"{file.name}: is no text; {RENEW}") from None
    try:
        found = Evidence.model_validate_json(text)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in detail["loc"])
        raise EvidenceError(f"{file.name}: {key + ': ' if key else ''}{detail['msg']}; {RENEW}") from None
    for release, run in found.releases.items():
        _check(file.name, release, run)
    return found


def _check(name: str, release: str, run: Run) -> None:
    for what, keys in (
        ("suites", [(one.device, one.dispatcher, one.implementation) for one in run.suites]),
        ("ledgers", [(one.dispatcher, one.implementation, one.tokens_per_expert) for one in run.ledgers]),
    ):
        twice = [key for key, times in Counter[tuple[str, ...]](keys).items() if times > 1]
        if twice:
            raise EvidenceError(f"{name}: releases.{release}.{what}: {', '.join(twice[0])} stands there twice; {RENEW}")
