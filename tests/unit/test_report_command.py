"""`mindspeed-moe report`: what it writes, and how it ends when it cannot."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers_telemetry import Run, header, layer_line, load, write_segment
from mindspeed_moe import cli
from mindspeed_moe.errors import ReportError
from mindspeed_moe.report import page
from mindspeed_moe.report.pictures import draw_pictures
from mindspeed_moe.report.reader import read_folder
from mindspeed_moe.report.summary import summarize

OK, USER_ERROR = 0, 2
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Run().write(tmp_path / "telemetry")


def test_it_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == OK
    assert "  report  " in capsys.readouterr().out


def test_page_and_pictures(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, png = tmp_path / "out.html", tmp_path / "new" / "png"
    assert cli.main(["report", str(folder), "--output", str(output), "--png", str(png)]) == OK
    out, err = capsys.readouterr()
    assert "160 records of 4 ranks, 2 layers, 20 steps" in out
    assert "mindspeed" not in err
    assert not [line for line in err.splitlines() if str(folder) in line], "nothing is said of what was read"
    assert output.read_text().startswith("<!doctype html>")
    assert {path.name for path in png.iterdir()} == {
        "load-layer3.png",
        "load-layer4.png",
        "imbalance.png",
        "dropped.png",
        "sent-ep4.png",
    }
    assert all(path.read_bytes().startswith(PNG) for path in png.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "out.html", "telemetry"]


def test_the_default_is_here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "telemetry", "--last", "3"]) == OK
    assert "18 to 20" in (tmp_path / "report.html").read_text()


def test_damage_is_told_with_its_place(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "rank00002.000001.jsonl").open("a") as file:
        file.write('{"kind":"what"}\n{"kind":"load","st')
    assert cli.main(["report", str(folder), "--output", str(tmp_path / "out.html")]) == OK
    err = capsys.readouterr().err
    assert "1 file ends in the middle of a line" in err
    assert "1 line was skipped" in err
    assert "rank00002.000001.jsonl:44: kind: 'what'; allowed: header, layer, load" in err
    assert "1 file ends in the middle of a line" in (tmp_path / "out.html").read_text()


def test_other_runs_in_the_folder_are_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in list(folder.iterdir()):
        head, *lines = path.read_text().splitlines()
        later = json.loads(head) | {"run": "b", "started": "2026-11-27T10:00:00Z"}
        again = path.with_name(path.name.replace("000001", "000002"))
        again.write_text("\n".join([json.dumps(later), *lines, ""]))
    assert cli.main(["report", str(folder), "--output", str(tmp_path / "out.html")]) == OK
    out, err = capsys.readouterr()
    told = "160 records are not shown, of an older run (begun 2026-11-26T10:00:00Z, steps 1 to 20): a later run began"
    assert "160 records of 4 ranks" in out
    assert f"mindspeed-moe: {folder}: {told}" in err
    assert "replaced" not in err
    assert told in (tmp_path / "out.html").read_text()


def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path), "--output", str(tmp_path / "out.html")]) == USER_ERROR
    assert f"{tmp_path}: holds no telemetry; expected: files such as rank00000" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_usable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_segment(tmp_path, 0, 1, [header(0)])
    assert cli.main(["report", str(tmp_path), "--output", str(tmp_path / "out.html")]) == USER_ERROR
    assert "1 files without one usable load record" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["absent/out.html", "telemetry"])
def test_where_it_cannot_write(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert cli.main(["report", str(folder), "--output", str(tmp_path / name)]) == USER_ERROR
    assert "must be a file in a folder that exists and can be written to" in capsys.readouterr().err


def test_the_old_page_stays_when_writing_fails(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out.html"
    output.write_text("old")

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fails)
    monkeypatch.setattr("os.replace", fails)
    assert cli.main(["report", str(folder), "--output", str(output)]) == USER_ERROR
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.html", "telemetry"]


def test_without_plotly(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert cli.main(["report", str(folder), "--output", str(tmp_path / "out.html")]) == USER_ERROR
    assert "plotly is not installed (pip install 'mindspeed-moe[report]')" in capsys.readouterr().err


def test_without_matplotlib(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else found(name))
    arguments = ["report", str(folder), "--output", str(tmp_path / "out.html")]
    assert cli.main([*arguments, "--png", str(tmp_path)]) == USER_ERROR
    assert "mindspeed-moe[plot]" in capsys.readouterr().err
    assert not (tmp_path / "out.html").exists()
    assert cli.main(arguments) == OK


def test_pictures_of_what_is_not_known(tmp_path: Path) -> None:
    lines = [header(0), layer_line(3, experts=4, ep=2, ep_rank=0), load(1, 3, [1, 2], [3, 4], dropped=None)]
    write_segment(tmp_path / "in", 0, 1, lines)
    written = draw_pictures(summarize(read_folder(tmp_path / "in")), tmp_path)
    assert [path.name for path in written] == ["load-layer3.png", "imbalance.png", "sent-ep2.png"]


@pytest.mark.parametrize(("layers", "experts", "ep", "steps"), [(400, 16_384, 128, 32), (3, 16_384, 16_384, 1)])
def test_more_than_the_memory_can_hold_is_refused(
    tmp_path: Path, layers: int, experts: int, ep: int, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A few MB of lines would become GB of tables."""
    lines = [header(0, world_size=ep)]
    for layer in range(layers):
        lines.append(layer_line(layer, experts, ep, 0, group=list(range(ep))))
        lines += [load(step, layer, [1] * (experts // ep), [0] * ep) for step in range(1, steps + 1)]
    write_segment(tmp_path / "in", 0, 1, lines)
    assert cli.main(["report", str(tmp_path / "in"), "--output", str(tmp_path / "out.html")]) == USER_ERROR
    assert "do not fit into a page" in capsys.readouterr().err


def test_pictures_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match=r"--png .*file: cannot be written"):
        draw_pictures(summarize(read_folder(folder)), tmp_path / "file")


def test_a_library_that_could_end_its_own_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "a = '</script>';\r\nb = '<!--';")
    assert page.plotly_script() == "a = '<\\/script>';\nb = '\\x3c!--';"


@pytest.mark.slow
def test_a_million_records_in_a_gibibyte(tmp_path: Path) -> None:
    """Eight ranks, 61 layers, 2,050 steps, one process."""
    run = Run(layers=tuple(range(61)), experts=64, topk=8, ep=8, steps=tuple(range(2050)), rows=65_536)
    folder = run.write(tmp_path / "telemetry")
    command = [sys.executable, "-m", "mindspeed_moe", "report", str(folder), "--output", str(tmp_path / "out.html")]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        told = child.stdout.read()
        _, code, used = os.wait4(child.pid, 0)
        child.returncode = code
    took, peak = time.monotonic() - began, used.ru_maxrss * 1024
    print(f"{took:.1f} s, {peak / 2**20:.0f} MiB at most")
    assert code == 0
    assert "1,000,400 records of 8 ranks, 61 layers, 2,050 steps" in told
    assert peak < 2**30
