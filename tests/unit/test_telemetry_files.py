"""A rank's telemetry files: whole lines whatever happens, within the bound, nowhere else, nobody else's."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from mindspeed_moe.preprocess.layout import ExpertLayout
from mindspeed_moe.report.reader import read_folder
from mindspeed_moe.telemetry import jsonl
from mindspeed_moe.telemetry.claim import Claim
from mindspeed_moe.telemetry.jsonl import JsonLines
from mindspeed_moe.telemetry.load import LayerFacts, Load

TOLD = {"rank": 3, "world_size": 8}


def load(step: int, layer: int = 1, experts: int = 4, launch: tuple[int, int] | None = None) -> Load:
    layout = ExpertLayout(experts, 1, 1, 0, 0)
    facts = LayerFacts(layer, layout, 2, (3,) if launch is None else launch[:1], 32, launch=launch)
    tokens = np.arange(experts)
    return Load(facts, step, 1, tokens, int(tokens.sum()), experts - 1, np.array([6]), 6, 0, False)


def read(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_the_lines_of_a_file(tmp_path: Path):
    writer = JsonLines(tmp_path / "new" / "folder", 3, TOLD, 10**6)
    writer.write([load(0), load(0, layer=2)])
    writer.write([load(1)])
    writer.close()
    (path,) = files(tmp_path / "new" / "folder")
    assert path.name == "rank00003.000001.jsonl"
    head, *rest = read(path)
    assert head.pop("started")
    assert head == {"kind": "header", "format": 1, "segment": 1, "rank": 3, "world_size": 8}
    assert [(one["kind"], one["layer"]) for one in rest] == [
        ("layer", 1), ("load", 1), ("layer", 2), ("load", 2), ("load", 1),
    ]  # fmt: skip
    assert rest[0] == {
        "kind": "layer", "layer": 1, "experts": 4, "topk": 2, "ep": 1, "tp": 1, "ep_rank": 0, "tp_rank": 0,
        "group": [3], "numbered": True,
    }  # fmt: skip
    assert rest[-1] == {
        "kind": "load", "step": 1, "layer": 1, "calls": 1, "tokens": [0, 1, 2, 3], "imbalance": 2.0, "routed": 6,
        "dropped": 0, "sent_bytes": [192], "padded": False,
    }  # fmt: skip


def test_a_new_run_goes_on_in_a_new_file(tmp_path: Path):
    for _ in range(2):
        writer = JsonLines(tmp_path, 3, TOLD, 10**6)
        writer.write([load(0)])
        writer.close()
    assert [path.name for path in files(tmp_path)] == ["rank00003.000001.jsonl", "rank00003.000002.jsonl"]
    assert all(read(path)[1]["kind"] == "layer" for path in files(tmp_path))


def test_old_files_go_before_the_bound_is_passed(tmp_path: Path):
    other = tmp_path / "rank00004.000001.jsonl"
    other.write_text("another rank's\n")
    kept = tmp_path / "notes.txt"
    kept.write_text("the user's\n")
    bound = 40_000
    writer = JsonLines(tmp_path, 3, TOLD, bound)
    last = 0
    for step in range(2000):
        writer.write([load(step)])
        own = [path for path in files(tmp_path) if path.name.startswith("rank00003")]
        total = sum(path.stat().st_size for path in own)
        assert total <= bound
        last = max(last, total)
    writer.close()
    assert last > bound * 0.8, "the bound is used, too"
    steps = [line["step"] for path in own for line in read(path) if line["kind"] == "load"]
    assert steps == list(range(steps[0], 2000)), "what is left is the newest, without a gap"
    assert all([one["kind"] for one in read(path)[:2]] == ["header", "layer"] for path in own)
    assert other.exists()
    assert kept.exists()


def test_steps_that_are_larger_than_a_files_share_keep_the_bound(tmp_path: Path):
    bound = 14_000
    writer = JsonLines(tmp_path, 3, TOLD, bound)
    for step in range(50):
        writer.write([load(step, experts=700)])  # more than a quarter of the bound
        assert sum(path.stat().st_size for path in files(tmp_path)) <= bound
    writer.close()
    steps = [line["step"] for path in files(tmp_path) for line in read(path) if line["kind"] == "load"]
    assert steps == list(range(steps[0], 50))
    assert len(steps) >= 3


def test_the_users_umask(tmp_path: Path):
    before = os.umask(0o027)
    try:
        writer = JsonLines(tmp_path / "made", 3, TOLD, 10**6)
        writer.write([load(0)])
        writer.close()
    finally:
        os.umask(before)
    (path,) = files(tmp_path / "made")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(jsonl.time, "monotonic", lambda: now[0])
    return now


def test_a_full_disk_leaves_no_half_line_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float], caplog: pytest.LogCaptureFixture
):
    writer = JsonLines(tmp_path, 3, TOLD, 10**6)
    writer.write([load(0)])
    whole, room = os.write, [25]

    def full(file: int, data: bytes) -> int:
        """As a disk that fills up: a part is taken, then nothing more."""
        part = data[: room[0]]
        if not part:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] = 0
        return whole(file, part)

    monkeypatch.setattr(jsonl.os, "write", full)
    writer.write([load(1)])
    (path,) = files(tmp_path)
    assert [one.get("step") for one in read(path)] == [None, None, 0]
    assert "No space left on device" in caplog.text
    assert "training goes on" in caplog.text
    monkeypatch.setattr(jsonl.os, "write", whole)
    writer.write([load(2)])  # too early for another try
    assert len(caplog.records) == 1
    clock[0] += 31
    writer.write([load(3)])
    writer.close()
    assert [one.get("step") for one in read(files(tmp_path)[-1])] == [None, None, 3]
    assert "2 records are missing" in caplog.text


def test_a_disk_that_stays_full_leaves_no_empty_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
):
    def refuse(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(jsonl.os, "write", refuse)
    writer = JsonLines(tmp_path, 3, TOLD, 10**6)
    for step in range(5):
        writer.write([load(step)])
        clock[0] += 31
    writer.close()
    assert files(tmp_path) == []


def test_a_real_limit_of_the_system_leaves_no_half_line(tmp_path: Path):
    """RLIMIT_FSIZE: the kernel takes a part of a write and refuses the next, as it does when a disk is full."""
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from unit.test_telemetry_files import JsonLines, TOLD, load\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "writer = JsonLines(Path(sys.argv[1]), 3, TOLD, 10**6)\n"
        "for step in range(50): writer.write([load(step)])\n"
    )
    tests = Path(__file__).resolve().parents[1]
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=True, env={**os.environ, "PYTHONPATH": str(tests)}
    )
    (path,) = files(tmp_path)
    assert 800 < path.stat().st_size <= 1000
    steps = [one["step"] for one in read(path)[2:]]
    assert steps == list(range(len(steps)))


@pytest.mark.parametrize("obstacle", ["a file", "a read-only folder"])
def test_a_folder_that_cannot_be_written_to_is_told_once(
    tmp_path: Path, obstacle: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    folder = tmp_path / "telemetry"
    if obstacle == "a file":
        folder.write_text("")
    else:
        folder.mkdir()

        def refuse(*args: Any) -> int:  # the tests may run as root, whom no permission stops
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(jsonl.os, "open", refuse)
    writer = JsonLines(folder, 3, TOLD, 10**6)
    for step in range(5):
        writer.write([load(step)])
    writer.close()
    assert len(caplog.records) == 1
    assert str(folder) in caplog.text


# ------------------------------------------------------------------------------- ranks, launches, and what is no file


def steps_of(path: Path) -> list[int]:
    return [one["step"] for one in read(path) if one["kind"] == "load"]


def test_records_go_to_the_files_of_the_rank_that_the_process_had(tmp_path: Path):
    """Process groups were made anew, and two processes have each other's rank; one is still at its last record."""
    here, there = JsonLines(tmp_path, 0, {}, 10**6), JsonLines(tmp_path, 0, {}, 10**6)
    # They stand for two processes: in one of them the second writer of a rank takes over from the first.
    here._latest, there._latest = {}, {}  # type: ignore[misc]
    for one, rank in ((here, 0), (there, 1)):
        one._latest[tmp_path, 0] = one
        one.write([load(0, launch=(rank, 2))])
    here.write([load(1, launch=(1, 2))])
    there.write([load(1, launch=(1, 2)), load(2, launch=(0, 2)), load(2, layer=2, launch=(0, 2))])
    here.close()
    there.close()
    assert {path.name: steps_of(path) for path in files(tmp_path)} == {
        "rank00000.000001.jsonl": [0],
        "rank00000.000002.jsonl": [2, 2],
        "rank00001.000001.jsonl": [0, 1],
        "rank00001.000002.jsonl": [1],
    }
    for path in files(tmp_path):
        head, *lines = read(path)
        assert (head["rank"], head["world_size"]) == (int(path.name[4:9]), 2)
        assert next(one["group"] for one in lines if one["kind"] == "layer") == [head["rank"]]


def test_a_layer_that_has_changed_is_described_again(tmp_path: Path):
    writer = JsonLines(tmp_path, 3, TOLD, 10**6)
    for step, experts in enumerate((4, 4, 8)):
        writer.write([load(step, experts=experts)])
    writer.close()
    (path,) = files(tmp_path)
    assert [one.get("experts", one["kind"]) for one in read(path)] == ["header", 4, "load", "load", 8, "load"]


def clutter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rank's files may lie beside: a folder, a link to nowhere, a FIFO, the last number, a file that stays."""
    (folder / "rank00003.000002.jsonl").mkdir(parents=True)
    (folder / "rank00003.000002.jsonl" / "kept").write_text("")
    (folder / "rank00003.000003.jsonl").symlink_to("nowhere")
    os.mkfifo(folder / "rank00003.000004.jsonl")
    (folder / "rank00003.999999999.jsonl").write_text("")
    stays = folder / "rank00003.000001.jsonl"
    stays.write_bytes(bytes(50_000))
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path == stays:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)


def test_what_is_no_file_and_what_stays_is_told_once_and_stepped_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("mindspeed_moe.log._said", set())
    clutter(tmp_path, monkeypatch)
    before = set(files(tmp_path))
    bound = 40_000
    writer = JsonLines(tmp_path, 3, TOLD, bound)
    for step in range(600):
        writer.write([load(step)])
    writer.close()
    (record,) = caplog.records
    assert "rank00003.000001.jsonl cannot be removed (Operation not permitted): it stays" in record.getMessage()
    own = sorted(set(files(tmp_path)) - before)
    assert before <= set(files(tmp_path))
    steps = [step for path in own for step in steps_of(path)]
    assert len(own) > 4
    assert steps == list(range(steps[0], 600))
    assert sum(path.stat().st_size for path in own) <= bound


def test_a_writer_that_hung_does_not_write_beside_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("mindspeed_moe.log._said", set())
    before, after = JsonLines(tmp_path, 3, TOLD, 10**6), None
    before.write([load(0)])
    after = JsonLines(tmp_path, 3, TOLD, 10**6)
    after.write([load(0)])
    for step in (1, 2):
        before.write([load(step)])
        after.write([load(step)])
    after.close()
    assert [steps_of(path) for path in files(tmp_path)] == [[0], [0, 1, 2]]
    assert [one.getMessage() for one in caplog.records] == [
        "telemetry: records are missing: what a hanging disk kept back is not written any more"
    ]


LAUNCH = """
import sys; from pathlib import Path
import torch.distributed as dist
from unit.test_telemetry_files import Claim, JsonLines, TOLD, load
folder, rank, port = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
store = dist.TCPStore("127.0.0.1", port, None, False)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
writer = JsonLines(folder, 0, {}, 10**6, Claim(folder))
for line in sys.stdin:
    writer.write([load(int(line), launch=(rank, 2))])
    print("done", flush=True)
"""


class Process:
    """A process of a launch whose ranks share a store; it writes the steps that it is told to."""

    def __init__(self, folder: Path, rank: int, port: int) -> None:
        tests = Path(__file__).resolve().parents[1]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", LAUNCH, str(folder), str(rank), str(port)],
            env={**os.environ, "PYTHONPATH": str(tests)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def write(self, step: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(step, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "done\n"

    def end(self) -> str:
        return self.process.communicate(timeout=1800)[1]


def test_one_launch_at_a_time_writes_to_a_folder(tmp_path: Path):
    stores = [dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False) for _ in range(2)]
    actor, critic = ([Process(tmp_path, rank, store.port) for rank in range(2)] for store in stores)
    try:
        actor[0].write(0)  # two launches of two ranks; whichever comes first with any rank has the folder
        critic[1].write(0)
        actor[1].write(0)
        critic[0].write(0)
        actor[0].process.kill()
        assert "telemetry" not in actor[1].end()
        told = [one.end() for one in critic]
    finally:
        for one in (*actor, *critic):
            one.process.kill()
            one.process.wait()
    for text in told:
        assert "cannot be written (another launch writes to it" in text
        assert "`telemetry.folder` of its own" in text
    written = {path.name: steps_of(path) for path in tmp_path.glob("*.jsonl")}
    assert written == {"rank00000.000001.jsonl": [0], "rank00001.000001.jsonl": [0]}
    words = {read(path)[0]["run"] for path in tmp_path.glob("*.jsonl")}
    assert len(words) == 1, "the ranks of a launch share a word"
    for _ in range(2):
        claim = Claim(tmp_path)
        claim.hold()  # the lock went with those who had it
        claim.release()
        assert claim.word not in words
        words.add(claim.word)


def test_launches_after_each_other_are_told_apart(tmp_path: Path):
    for steps in ((0, 1, 2), (0, 1), (1, 2)):  # the last one goes on from a checkpoint
        writer = JsonLines(tmp_path, 3, TOLD, 10**6, Claim(tmp_path))
        for step in steps:
            writer.write([load(step)])
        writer.close()
    telemetry = read_folder(tmp_path)
    assert (telemetry.records, telemetry.repeated) == (3, 1)
    assert [(one.first, one.last, one.records) for one in telemetry.others] == [(0, 2, 3)]


def test_where_nothing_can_be_locked_it_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("mindspeed_moe.log._said", set())

    def refuse(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("mindspeed_moe.telemetry.claim.fcntl.flock", refuse)
    for _ in range(2):
        writer = JsonLines(tmp_path, 3, TOLD, 10**6, Claim(tmp_path))
        for step in range(2):
            writer.write([load(step)])
        writer.close()
    assert [steps_of(path) for path in sorted(tmp_path.glob("*.jsonl"))] == [[0, 1], [0, 1]]
    (record,) = caplog.records
    assert "cannot be locked (No locks available): nothing keeps another launch out" in record.getMessage()
