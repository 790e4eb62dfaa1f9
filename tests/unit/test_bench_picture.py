"""The picture of a sweep: what goes into it, and that it is one."""

from __future__ import annotations

import pytest

from mindspeed_moe.bench.accelerated import IDLE, AcceleratorResult, DeviceTime, HostTime
from mindspeed_moe.bench.layer import BOTH, FORWARD, LayerResult, LayerTime
from mindspeed_moe.bench.measure import Result
from mindspeed_moe.bench.picture import draw_ratios, panels_of
from mindspeed_moe.bench.pictured import check_picture
from mindspeed_moe.bench.shapes import Shape
from mindspeed_moe.bench.timing import Spread
from mindspeed_moe.errors import BenchError


def point(value):
    return Spread(value, value, value)


def shape(experts, ep, mode="dropless", tokens=64):
    return Shape(experts, ep, 1, tokens, 2, mode)


def on_host(one, stock, packed):
    return Result(one, 1, 5, 0, {"stock": point(stock), "packed": point(packed)}, {}, point(1))


def on_gpu(one, span=40.0):
    def times(host, elapsed):
        return HostTime(point(elapsed), point(host), point(elapsed - host))

    both = {"stock": times(60, 90), "packed": times(20, 60)}
    on_device = {"stock": DeviceTime(point(80.0), 5, 5, None), "packed": DeviceTime(span and point(span), 5, 5, None)}
    return AcceleratorResult(one, "cuda", 5, 0, 0.0, 1500.0, {IDLE: both, "busy": both}, on_device)


def layer(one, hidden):
    def times(value):
        return LayerTime(point(value), point(value), point(0))

    by = {FORWARD: {"stock": times(11), "packed": times(10)}, BOTH: {"stock": times(30), "packed": times(20)}}
    return LayerResult(one, "cuda", hidden, 4, "bfloat16", 4, 5, 0, 0.0, by)


def test_one_panel_for_a_sweep_of_the_host():
    panels = panels_of([on_host(shape(8, 2), 90, 30), on_host(shape(16, 2), 40, 80)])
    assert list(panels.values()) == [{(8, 2): 3.0, (16, 2): 0.5}]
    assert "T=64 top-2 TP=1 dropless" in next(iter(panels))


def test_a_panel_for_each_mode():
    panels = panels_of([on_host(shape(8, 2), 90, 30), on_host(shape(8, 2, "pad"), 40, 80)])
    assert list(panels.values()) == [{(8, 2): 3.0}, {(8, 2): 0.5}]


def test_what_is_measured_on_an_accelerator():
    panels = {title.splitlines()[0]: ratios for title, ratios in panels_of([on_gpu(shape(8, 2))]).items()}
    assert panels == {
        "host time, idle device": {(8, 2): 3.0},
        "host time, busy device": {(8, 2): 3.0},
        "until the splits are there, idle device": {(8, 2): 1.5},
        "device time after queued work": {(8, 2): 2.0},
    }
    assert len(panels_of([on_gpu(shape(8, 2), span=None)])) == 3


def test_whole_layers():
    panels = panels_of([layer(shape(8, 2), 16), layer(shape(8, 2), 32)])
    assert [one[8, 2] for one in panels.values()] == [1.1, 1.5, 1.1, 1.5]


@pytest.mark.parametrize(
    "results",
    [
        [on_host(shape(8, 2), 90, 30)],
        [on_host(shape(experts, ep), 90, ep) for experts in (8, 16) for ep in (1, 2, 4, 8, 16) if experts >= ep],
        [on_gpu(shape(8, 2))],
        [layer(shape(8, 2), 16), layer(shape(16, 2), 16)],
    ],
)
def test_a_picture_is_drawn(results, tmp_path):
    path = tmp_path / "ratios.png"
    draw_ratios(results, "some machine, " * 20, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_too_many_panels(tmp_path):
    results = [on_host(shape(8, 2, tokens=tokens), 2, 1) for tokens in range(1, 10)]
    with pytest.raises(BenchError, match="9 panels"):
        draw_ratios(results, "", tmp_path / "ratios.png")


def test_a_picture_that_cannot_be_written(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(BenchError, match="cannot be written"):
        draw_ratios([on_host(shape(8, 2), 2, 1)], "", tmp_path / "folder.png")


def test_places_for_a_picture(tmp_path):
    check_picture(tmp_path / "new.png")
    (tmp_path / "old.png").touch()
    check_picture(tmp_path / "old.png")
    for name in ("picture.jpg", "picture", "no/folder.png", ".", "x.png/y.png"):
        with pytest.raises(BenchError, match="--png"):
            check_picture(tmp_path / name)


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"mindspeed-moe\[plot\]"):
        check_picture(tmp_path / "ratios.png")
