"""FIFOs, sockets, devices, and links to them, where a file is read or written: refused at once, and left alone."""

from __future__ import annotations

import ast
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers_dumps import EP2, EP2_WANTED, dump
from helpers_telemetry import header, layer_line, load, write_segment
from helpers_tuned import DATA
from mindspeed_moe import files
from mindspeed_moe.bench.picture import draw_ratios
from mindspeed_moe.bench.pictured import check_picture
from mindspeed_moe.cli import main
from mindspeed_moe.cli.launch import read_launch
from mindspeed_moe.config import load_config
from mindspeed_moe.config import tuned as tuned_file
from mindspeed_moe.demo.data import load_text
from mindspeed_moe.demo.report import write_summary
from mindspeed_moe.errors import MindSpeedMoEError
from mindspeed_moe.evidence import read_evidence
from mindspeed_moe.report.files import require_output, write_page
from mindspeed_moe.report.pictures import draw_pictures
from mindspeed_moe.report.reader import read_folder
from mindspeed_moe.report.summary import summarize
from mindspeed_moe.tune.megatron_arguments import arguments_of_file
from mindspeed_moe.verify.dump import read_dump, write_dump

PACKAGE = Path(__file__).resolve().parents[2] / "mindspeed_moe"
TELEMETRY = "rank00000.000001.jsonl"
REFUSED = (MindSpeedMoEError, OSError)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = os.open(path.parent, os.O_RDONLY)  # the name of a socket must be short
        one.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


def link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("behind"))
    path.symlink_to("behind")


def device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # as /dev/zero
    except PermissionError:
        pytest.skip("only root makes device nodes")


KINDS: dict[str, Callable[[Path], None]] = {
    "FIFO": fifo,
    "socket": a_socket,
    "device": device,
    "link to a FIFO": link_to_fifo,
    "link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "link to /dev/full": lambda path: path.symlink_to("/dev/full"),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "folder": lambda path: path.mkdir(),
}


def unreadable_telemetry(path: Path) -> None:
    write_segment(path.parent, 1, 1, [header(1), layer_line(0, 2, 1, 0, group=[1]), load(1, 0, [1, 2], [3])])
    path.rename(path.parent / TELEMETRY)
    damage = read_folder(path.parent).damage
    (path.parent / TELEMETRY).rename(path)
    assert damage.unreadable == 1
    raise MindSpeedMoEError(damage.first)


READERS: dict[str, Callable[[Path], object]] = {
    "configuration": load_config,
    "tuned file": tuned_file.read_tuned,
    "launch": lambda path: read_launch([str(path)]),
    "--yaml-cfg": lambda path: read_launch(["pretrain_gpt.py", "--yaml-cfg", str(path)]),
    "--megatron-args": arguments_of_file,
    "dump": read_dump,
    "telemetry": unreadable_telemetry,
    "text of the demo": lambda path: load_text(path, 8),
    "evidence": read_evidence,
    "bytes": files.read_whole,
    "text": files.read_text,
}


def demo_into(name: str) -> Callable[[Path], object]:
    def demo(path: Path) -> None:
        path.rename(path.with_name(name))
        code = main(["demo", "--out", str(path.parent), "--text", __file__])
        path.with_name(name).rename(path)
        assert code == 2
        raise MindSpeedMoEError("demo")

    return demo


def pictures(path: Path) -> object:
    layer = {"layer": 0, "experts": 2, "ep": 1, "ep_rank": 0}
    write_segment(path.parent / "telemetry", 0, 1, [header(0), layer_line(**layer, group=[0]), load(1, 0, [1, 2], [3])])
    path.rename(path.with_name("imbalance.png"))
    try:
        return draw_pictures(summarize(read_folder(path.parent / "telemetry")), path.parent)
    finally:
        path.with_name("imbalance.png").rename(path)


def summary(path: Path) -> object:
    path.rename(path.with_name("summary.json"))
    try:
        return write_summary({}, path.parent)
    finally:
        path.with_name("summary.json").rename(path)


TUNED = tuned_file.Tuned.model_validate(DATA)
WRITERS: dict[str, Callable[[Path], object]] = {
    "whole": lambda path: files.write_whole(path, b"new"),
    "place": files.require_writable,
    "removing": files.remove,
    "tuned file": lambda path: tuned_file.write_tuned(TUNED, path),
    "place of a tuned file": tuned_file.require_writable,
    "dump": lambda path: write_dump(path, dump(1, EP2, EP2_WANTED[1])),
    "page": lambda path: write_page(path, "new"),
    "place of a page": require_output,
    "place of a picture": check_picture,
    "picture": lambda path: draw_ratios([], "", path),
    "pictures of a report": pictures,
    "summary of the demo": summary,
    "demo, summary": demo_into("summary.json"),
    "demo, picture": demo_into("loss.png"),
    "demo, report": demo_into("report.html"),
}


@pytest.fixture(params=KINDS)
def none(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A name that ends as every reader and writer wants it, and is no file; unchanged afterwards."""
    path = tmp_path / "here" / "none.yaml.npz.png"
    path.parent.mkdir()
    KINDS[request.param](path)
    before = (os.lstat(path), os.path.islink(path) and os.readlink(path))
    yield path
    after = (os.lstat(path), os.path.islink(path) and os.readlink(path))
    assert (after[0].st_ino, after[0].st_mode, after[1]) == (before[0].st_ino, before[0].st_mode, before[1])
    assert not list(path.parent.glob(".*")), "something temporary is left"


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_waits_or_reads_on(none: Path, reader: str) -> None:
    with pytest.raises(REFUSED) as refused:
        READERS[reader](none)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("writer", WRITERS)
def test_no_writer_replaces_it(none: Path, writer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindspeed_moe.bench.picture.panels_of", lambda results: {"": {(8, 2): 1.0}})
    with pytest.raises(REFUSED):
        WRITERS[writer](none)


@pytest.mark.parametrize("command", ["report", "bench", "selftest", "doctor", "replay", "estimate", "tune"])
def test_commands_end_with_one_message(
    none: Path, command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    shape = ["--experts", "8", "--tokens", "8"]
    code = main(
        {
            "report": ["report", str(none.parent), "--output", str(none)],
            "bench": ["bench", *shape, "--ep", "1", "--topk", "2", "--rounds", "1", "--png", str(none)],
            "selftest": ["selftest", "--device", "cpu", "--out", str(none)],
            "doctor": ["doctor", "--config", str(none)],
            "replay": ["replay", str(none)],
            "estimate": ["estimate", "--tuned", str(none)],
            "tune": ["tune", "--megatron-args", str(none)],
        }[command]
    )
    told = capfd.readouterr().err
    assert code == 2
    assert "Traceback" not in told


# ------------------------------------------------------------------------------------------------ links to files


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "file", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to("far/file")
    assert files.read_whole(link) == b"old"
    files.require_writable(link)
    files.write_whole(link, b"new")
    assert link.is_symlink()
    assert (target.read_bytes(), [one.name for one in target.parent.iterdir()]) == (b"new", ["file"])
    with pytest.raises(OSError, match="a link"):
        files.remove(link)  # what is removed is what has the name


def test_a_file_without_a_name_is_no_place(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        os.unlink(tmp_path / "file")
        for attempt in (files.require_writable, lambda path: files.write_whole(path, b"")):
            with pytest.raises(OSError, match="without a name"):
                attempt(f"/proc/self/fd/{file.fileno()}")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_exchanged_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    opening = os.open

    def exchange(name: Any, flags: int, *rest: Any, **more: Any) -> int:
        path.unlink()
        os.mkfifo(path)
        return opening(name, flags, *rest, **more)

    monkeypatch.setattr(os, "open", exchange)
    with pytest.raises(OSError, match="a FIFO, not a regular file"):
        files.read_whole(path)


# ------------------------------------------------------------------------------------------------ sizes and names


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with open(tmp_path / "huge.yaml", "wb") as file:
        file.truncate(1 << 40)
    for name, reader in READERS.items():
        if name in ("telemetry", "text of the demo"):  # read line by line, and mapped
            continue
        with pytest.raises(REFUSED, match=r"larger|large|damaged"):
            reader(tmp_path / "huge.yaml")


def test_the_bound_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234")
    assert files.read_whole(tmp_path / "file", 4) == b"1234"
    with pytest.raises(OSError, match="larger than 3 bytes"):
        files.read_whole(tmp_path / "file", 3)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_names_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    for act in (files.read_whole, files.require_writable, lambda path: files.write_whole(path, b"")):
        with pytest.raises(OSError, match="no name that a file can have"):
            act(str(tmp_path / name))


# -------------------------------------------------------------------------------------------- everybody goes through it

OPENING = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "savefig", "memmap", "ZipFile", "unlink"}
ITSELF = {
    "files.py": None,
    "telemetry/jsonl.py": {"os.open", "path.unlink"},  # makes each file itself, and only where nothing stands
    "report/page.py": {"(resources.files(__package__) / 'static' / name).read_text"},  # a part of the package
    "report/pictures.py": {"figure.savefig"},  # these draw into memory
    "bench/picture.py": {"figure.savefig"},
    "demo/report.py": {"figure.savefig"},
    "demo/data.py": {"np.memmap"},  # and these go on from a file that is open
    "verify/dump.py": {"zipfile.ZipFile", "archive.open"},
    "telemetry/collector.py": {"self._outlet.open"},  # no file
    "telemetry/outlet.py": {"self.open"},
    "telemetry/claim.py": {"os.open"},  # a lock: follows no link, does not block, and something else cannot be locked
    "stacks.py": {"FILE.read_text"},  # a part of the package
    "cli/__init__.py": {"open"},  # the null device, in the place of an output that is gone
    "output.py": {"open"},  # streams of its own process, and files in a folder that the program has just made
    "bench/simulated.py": {"(aside := (Path(folder) / 'aside')).open"},  # the same
}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_one_module_opens_files(path: Path) -> None:
    allowed = ITSELF.get(str(path.relative_to(PACKAGE)), set())
    if allowed is None:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        told = ast.unparse(node.func)
        if isinstance(node.func, ast.Name) and node.func.id in ("read_text", "open_regular"):
            continue
        assert told.rpartition(".")[2] not in OPENING or told in allowed, f"line {node.lineno}: {told}"
