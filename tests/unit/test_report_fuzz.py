"""Whatever the bytes are, the reader ends with a record or a clear error, and nothing gets out of the page's script."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from helpers_telemetry import header, layer_line, load, text_of
from mindspeed_moe.errors import ReportError
from mindspeed_moe.report.encode import script_json
from mindspeed_moe.report.page import data_of
from mindspeed_moe.report.reader import read_folder
from mindspeed_moe.report.summary import hottest_experts, summarize

LINES = [
    header(0),
    layer_line(3, experts=4, ep=2, ep_rank=0, topk=2),
    load(1, 3, [4, 5], [6, 7]),
    load(2, 3, [1, 0], [2, 2], dropped=None),
    load(9, 3, [1, 0], [2, 2], padded=True),
]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**48, 2**63, 2**64, -1, 10**400, 0, 1, 2])
    | st.floats()
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def survives(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "rank00000.000001.jsonl").write_bytes(content)
        try:
            telemetry = read_folder(Path(name))
        except ReportError:
            return
        summary = summarize(telemetry)
        hottest_experts(summary.layers)
        script_json(data_of(summary))


@given(st.binary(max_size=400))
@settings(max_examples=100, deadline=None)
def test_arbitrary_bytes(content: bytes) -> None:
    survives(content)


@given(st.binary(max_size=60), st.integers(0, 2000), st.integers(0, 40))
@settings(max_examples=150, deadline=None)
def test_valid_files_with_damage(patch: bytes, at: int, cut: int) -> None:
    whole = text_of(LINES)
    at %= len(whole)
    survives(whole[:at] + patch + whole[at + cut :])


@st.composite
def changed_lines(draw: st.DrawFn) -> list[dict[str, Any]]:
    lines = [dict(line) for line in LINES]
    for _ in range(draw(st.integers(1, 3))):
        line = draw(st.sampled_from(lines))
        line[draw(st.sampled_from(sorted(line)))] = draw(JSON)
    return draw(st.permutations(lines)) if draw(st.booleans()) else lines


@given(changed_lines())
@settings(max_examples=250, deadline=None)
def test_valid_lines_with_other_values(lines: list[dict[str, Any]]) -> None:
    # surrogatepass: lone surrogates are not UTF-8, and such bytes must be survived too
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    survives(text.encode("utf-8", "surrogatepass"))


@given(st.text() | st.sampled_from(["</script>", "<!--", "]]>", "&lt;", "\u2028", "</SCRIPT ", "<script"]))
def test_no_text_ends_the_script(text: str) -> None:
    written = script_json({"text": text})
    assert not re.search(r"[<>&\u2028\u2029]", written)
    assert json.loads(written) == {"text": text}
