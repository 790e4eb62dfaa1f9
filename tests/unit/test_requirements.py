"""What the plugin requires of Megatron's code: each thing changed alone is refused with its line; others are fine."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers_contract import A2A, BASE, MOE, SEQ, SEQ_BASE, Code, Contents, contents, module_source
from helpers_megatron import (
    DISPATCHER_MODULE,
    FEATURES_OF,
    forget_megatron,
    package_info,
    stub_in_memory,
    write_stub_megatron,
)
from mindspeed_moe import cli
from mindspeed_moe.contract import generation_of, prove
from mindspeed_moe.contract.probes import DRIFTED, OK, UNSEEN, compare
from mindspeed_moe.contract.requirements import UNITS, Requirement, requirements_of
from mindspeed_moe.environment import Found, probe_megatron, probe_megatron_folders
from mindspeed_moe.errors import ContractError

RELEASES = tuple(FEATURES_OF)
MODULES = ("token_dispatcher", "moe_utils", "moe_layer", "legacy_a2a_token_dispatcher")

EVERY = [
    pytest.param(version, unit, requirement, id=f"{version}-{requirement}".replace(f"{MOE}.", ""))
    for version in RELEASES
    for unit in UNITS
    for requirement in requirements_of(unit, generation_of(version))
]


def stub(monkeypatch: pytest.MonkeyPatch, version: str, found: Contents, extra: str = "") -> None:
    """Put the modules with these contents in the place of Megatron's; extra: more text for the dispatchers' module."""
    texts = {name: module_source(found, name) for name in MODULES}
    source = texts.pop("token_dispatcher")
    if "class_stream" in FEATURES_OF[version]:
        source += "MoEAlltoAllTokenDispatcher.cuda_dtoh_stream = None\n"
    stub_in_memory(monkeypatch, source + extra, legacy="legacy" in FEATURES_OF[version], **texts)


def release(version: str) -> Contents:
    return contents(FEATURES_OF[version])


def refused(version: str, **options: Any) -> list[str]:
    with pytest.raises(ContractError) as caught:
        prove(generation_of(version), version, **options)
    return [line.strip() for line in str(caught.value).splitlines()]


def without(words: str, name: str) -> str:
    return " ".join(word for word in words.split() if word != name)


def broken(found: Contents, requirement: Requirement) -> tuple[Contents, str]:
    """Return the contents with just that one thing changed, and what is found then."""
    path, (name, *_) = requirement.target.removeprefix(f"{MOE}."), requirement.names
    if requirement.kind == "takes":
        code = found[path]
        return {**found, path: replace(code, parameters=f"{code.parameters}, one_more=None")}, "one_more)"
    if requirement.kind == "leaves":
        return {**found, f"{path}.@{name}": Code("self")}, "no"
    if requirement.kind == "has":
        constructors = {
            one: found[one] for one in (f"{path}.__init__", f"{BASE}.__init__", f"{SEQ_BASE}.__init__") if one in found
        }
        fewer = {
            one: replace(code, sets=without(code.sets, name), first=code.first if name != "config" else "")
            for one, code in constructors.items()
        }
        return {one: fewer.get(one, code) for one, code in found.items() if not one.endswith(f".@{name}")}, "no"
    code = found[path]
    if requirement.kind == "accepts":
        return {**found, path: replace(code, parameters=code.parameters.replace(name, f"renamed_{name}"))}, "no"
    fewer_words = {requirement.kind: without(getattr(code, requirement.kind), name)}
    return {**found, path: replace(code, **fewer_words)}, "no"


# ------------------------------------------------------------------------------------------------ one thing changed


@pytest.mark.parametrize("version", RELEASES)
def test_every_release_has_what_is_required(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    stub(monkeypatch, version, release(version))
    findings = compare(generation_of(version))
    assert [str(one) for one in findings if one.state != OK] == []
    assert all(one.why for one in findings)
    prove(generation_of(version), version)


@pytest.mark.parametrize(("version", "unit", "requirement"), EVERY)
def test_each_thing_that_is_missing_is_refused_with_its_line(
    monkeypatch: pytest.MonkeyPatch, version: str, unit: str, requirement: Requirement
) -> None:
    found, told = broken(release(version), requirement)
    stub(monkeypatch, version, found)
    drift = [line for line in refused(version) if line.startswith("expected: ")]
    (line,) = (line for line in drift if line.startswith(f"expected: {requirement}: "))
    assert line.endswith(told)
    # A name that the class defines, or that a fact of the generation is about, may show in a second line.
    assert len(drift) <= 2, drift
    assert line in refused(version, units={unit})
    others = set(UNITS) - {unit}
    if len(drift) == 1 and not any(requirement in requirements_of(one, generation_of(version)) for one in others):
        prove(generation_of(version), version, units=others)


@pytest.mark.parametrize("version", RELEASES)
def test_a_whole_function_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    full = release(version)
    required = {one.target for unit in UNITS for one in requirements_of(unit, generation_of(version))}
    functions = sorted(path.removeprefix(f"{MOE}.") for path in required)
    for path in functions:
        if path in full and not path.endswith("__init__"):
            stub(monkeypatch, version, {one: code for one, code in full.items() if one != path})
            lines = [line for line in refused(version) if f"{path}" in line]
            if path.rpartition(".")[0] == "moe_layer":
                continue
            assert f"expected: {MOE}.{path}: there; found: not there" in lines


def test_a_missing_class_and_a_missing_module_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, "0.12.1", {one: code for one, code in release("0.12.1").items() if not one.startswith(SEQ)})
    lines = [line for line in refused("0.12.1") if line.startswith("expected: ")]
    assert lines == [f"expected: {MOE}.{SEQ}: there; found: not there"]
    prove(generation_of("0.12.1"), "0.12.1", units={"alltoall", "experts"})


# ------------------------------------------------------------------------------------------------ unrelated changes


@pytest.mark.parametrize("version", RELEASES)
@pytest.mark.parametrize(
    "change",
    [
        lambda code: replace(code, sets=f"{code.sets} something_new"),
        lambda code: replace(code, reads=f"another_config_flag {code.reads}"),
        lambda code: replace(code, sets=" ".join(reversed(code.sets.split()))),
        lambda code: replace(code, reads=" ".join(reversed(code.reads.split()))),
        lambda code: replace(code, says=f"a_new_point {code.says}"),
    ],
    ids=["sets more", "reads more", "sets in another order", "reads in another order", "says more"],
)
def test_unrelated_changes_in_every_function_are_accepted(
    monkeypatch: pytest.MonkeyPatch, version: str, change: Any
) -> None:
    stub(monkeypatch, version, {path: change(code) for path, code in release(version).items()})
    prove(generation_of(version), version)


@pytest.mark.parametrize("version", RELEASES)
def test_new_methods_attributes_and_keywords_are_accepted(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    found = release(version)
    found[f"{A2A}.a_new_method"] = Code("self, anything")
    for path in ("moe_utils.get_capacity", "moe_utils.permute", "moe_layer.MoELayer.__init__"):
        found[path] = replace(found[path], parameters=f"{found[path].parameters}, a_new_keyword=None")
    stub(monkeypatch, version, found, "MoEAlltoAllTokenDispatcher.a_new_attribute = 1\n")
    prove(generation_of(version), version)


@pytest.mark.parametrize("version", RELEASES)
def test_code_inside_of_a_function_within_is_seen(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """A release may move code into a local function, and decorate its methods with functools.wraps."""
    extra = (
        "import functools\n"
        "def decorated(function):\n"
        "    return functools.wraps(function)(lambda *args, **kwargs: function(*args, **kwargs))\n"
        "for name, value in list(vars(MoEAlltoAllTokenDispatcher).items()):\n"
        "    if callable(value):\n"
        "        setattr(MoEAlltoAllTokenDispatcher, name, decorated(value))\n"
    )
    name = f"{A2A}.{'token_dispatch' if 'stages' in FEATURES_OF[version] else 'token_permutation'}"
    found = release(version)
    moved = found.pop(name)
    extra += (
        f"def outer({moved.parameters}):\n    def inner():\n"
        + "".join(f"        self.{one}\n" for one in moved.reads.split())
        + "".join(f"        word = {one!r}\n" for one in moved.says.split())
        + f"    return inner\nMoEAlltoAllTokenDispatcher.{name.rpartition('.')[2]} = outer\n"
    )
    if "nccl_stream" not in FEATURES_OF[version]:  # that fact looks at the function itself
        stub(monkeypatch, version, found, extra)
        prove(generation_of(version), version)


# ------------------------------------------------------------------------------------------------ somebody else's


def test_what_somebody_else_has_put_there_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, "0.16.1", release("0.16.1"))
    theirs = ModuleType("another_plugin")
    exec("def token_dispatch(self, tokens, probs):\n    return tokens\ndef __init__(self):\n    pass\n", vars(theirs))
    dispatcher = sys.modules[DISPATCHER_MODULE].MoEAlltoAllTokenDispatcher  # type: ignore[attr-defined]
    dispatcher.token_combine = theirs.token_dispatch
    sys.modules[f"{MOE}.moe_layer"].MoELayer.__init__ = theirs.__init__  # type: ignore[attr-defined,misc]
    findings = compare(generation_of("0.16.1"))
    unseen = {one.what.partition(" ")[0].removeprefix(f"{MOE}.") for one in findings if one.state == UNSEEN}
    assert unseen == {f"{A2A}.token_combine", "moe_layer.MoELayer.__init__"}
    assert not [one for one in findings if one.state == DRIFTED]


@pytest.mark.parametrize("version", ["0.10.0", "0.16.1"])
def test_patched_targets_teach_nothing(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    found = release(version)
    found[f"{A2A}.preprocess"] = Code(
        "self, another", sets="num_global_tokens_per_local_expert_cpu"[: 0 if version != "0.10.0" else None]
    )
    stub(monkeypatch, version, found)
    refused(version)
    prove(generation_of(version), version, frozenset({f"{MOE}.{A2A}.preprocess"}))
    prove(generation_of(version), version, frozenset({f"{MOE}.{A2A}"}))


@pytest.mark.parametrize("unit", UNITS)
def test_only_units_in_use_are_looked_at(monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    """A drift of what is left stock does not keep the plugin off."""
    owner = {"alltoall": f"{A2A}.token_unpermutation", "alltoall_seq": f"{SEQ}.preprocess"}
    path = owner.get(unit, "moe_layer.MoELayer.__init__")
    stub(monkeypatch, "0.12.1", {**release("0.12.1"), path: Code("self")})
    refused("0.12.1", units={unit})
    prove(generation_of("0.12.1"), "0.12.1", units=set(UNITS) - {unit})
    prove(generation_of("0.12.1"), "0.12.1", units=())


# ------------------------------------------------------------------------------------------------ versions


@pytest.mark.parametrize("version", ["0.16.1+gabc1234", "0.16.1+abc1234.dirty", "0.17.0rc0", "0.17.0rc0+gabc1234"])
def test_a_git_hash_or_a_pre_release_is_accepted_when_the_probes_hold(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    stub(monkeypatch, "0.16.1", release("0.16.1"))
    prove(generation_of(version), version)


@pytest.mark.parametrize("version", ["0.16.1+gabc1234", "0.16.1", "0.17.0rc0", "0.17.0.dev20250101"])
def test_a_drifted_pre_release_is_told_whose_contract_it_has(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    code = release("0.16.1")[f"{A2A}.token_combine"]
    stub(monkeypatch, "0.16.1", {**release("0.16.1"), f"{A2A}.token_combine": replace(code, reads="output_splits")})
    first, *lines = refused(version)
    assert first.startswith(
        f"megatron-core {version} should keep the contract hook_event_wait_graphs (0.16, 0.17), but:"
    )
    assert lines[0] == f"expected: {MOE}.{A2A}.token_combine reads 'input_splits': yes; found: no"
    note = f"{version} is a pre-release: those have the contract of their own commit, not of the release they precede."
    assert (note in lines) is ("rc" in version or "dev" in version)


# ------------------------------------------------------------------------------------------------ two Megatrons


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Two checkouts without megatron/__init__.py, 0.16.1 and 0.12.1; neither is on the path yet."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / "megatron").is_dir()])
    folders = []
    for name in ("0.16.1", "0.12.1"):
        folder = write_stub_megatron(tmp_path / name, info=package_info(name))
        (folder / "megatron" / "__init__.py").unlink()
        folders.append(folder.resolve())
    with forget_megatron():
        yield folders


def core(folder: Path) -> str:
    return str(folder / "megatron" / "core")


def test_of_two_megatrons_the_first_is_in_use(two: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two
    monkeypatch.setattr(sys, "path", [str(first), str(second), *sys.path])
    assert probe_megatron() == Found("0.16.1")
    assert probe_megatron_folders() == (core(first), core(second))
    importlib.import_module("megatron.core")
    assert probe_megatron() == Found("0.16.1"), "the one that was imported is the one whose version is read"


def test_a_regular_package_is_in_use_wherever_it_stands(two: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two
    (second / "megatron" / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(first), str(second), *sys.path])
    assert probe_megatron() == Found("0.12.1")
    assert probe_megatron_folders() == (core(second), core(first))


def test_one_megatron_reached_in_two_ways_is_one(two: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = two[0]
    monkeypatch.setattr(sys, "path", [str(first), f"{first}/.", *sys.path])
    assert probe_megatron_folders() == (core(first),)


def test_no_megatron_is_no_folder(two: list[Path]) -> None:
    assert (probe_megatron_folders(), probe_megatron()) == ((), Found(problem="not installed"))


def test_one_that_was_imported_before_the_path_changed_is_refused(
    two: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two
    monkeypatch.setattr(sys, "path", [str(second), *sys.path])
    importlib.import_module("megatron.core")
    monkeypatch.setattr(sys, "path", [str(first), *sys.path])
    found = probe_megatron()
    assert found.version is None
    assert str(found.problem).startswith(
        f"two of them: megatron.core of {core(second)} is in use, imported already, but the path leads to "
        f"{core(first)} (0.16.1), "
    )


def test_doctor_warns_of_two_megatrons(
    two: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [*map(str, reversed(two)), *sys.path])
    cli.main(["doctor", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["environment"]["megatron_folders"] == [core(two[1]), core(two[0])]
    (hint,) = (hint for hint in told["hints"] if "megatron.core is on the path" in hint)
    assert f"{core(two[1])} is in use (0.12.1), not {core(two[0])}" in hint
    assert not any("megatron.core" in problem for problem in told["problems"])


# ------------------------------------------------------------------------------------------------ missing modules


@pytest.mark.parametrize(
    ("missing", "remedy"),
    [
        ("triton", "install triton"),
        ("triton.language", "install triton"),
        ("apex", "build it from github.com/NVIDIA/apex"),
        ("transformer_engine", "install transformer-engine[pytorch]"),
        ("something_else", "install what provides it"),
    ],
)
def test_a_missing_dependency_is_named_with_who_needs_it_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, remedy: str
) -> None:
    write_stub_megatron(tmp_path, dispatcher=f"import {MOE}.experts\n")
    folder = tmp_path / "megatron" / "core" / "transformer" / "moe"
    (folder / "experts.py").write_text(
        f"raise ModuleNotFoundError(\"No module named '{missing}'\", name={missing!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with forget_megatron():
        message = refused("0.12.1")
    assert len(message) == 1
    assert message[0].startswith(
        f"{DISPATCHER_MODULE} cannot be imported: there is no module {missing!r}, which {MOE}.experts needs: {remedy}"
    )
    assert message[0].endswith(", or use a release of megatron-core that does without it")


# ------------------------------------------------------------------------------------------------ doctor --contract


def doctor(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    code = cli.main(["doctor", "--contract", *options])
    return code, capsys.readouterr().out


def test_doctor_shows_every_line_of_the_contract(stub_megatron: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = doctor(capsys)
    words = " ".join(out.split())
    assert code == 0
    assert f"megatron-core 0.12.1, in {core(stub_megatron.resolve())}" in "".join(out.splitlines())
    assert "contract hook_stream_wait (0.12): _maybe_dtoh_and_synchronize copies" in words
    assert "preprocess takes (self, routing_map) (self, routing_map) ok" in words
    assert "drifted" not in words
    findings = json.loads(doctor(capsys, "--json")[1])["findings"]
    assert len(findings) == len(compare(generation_of("0.12.1")))
    assert words.endswith(f"{len(findings)} ok")


def test_doctor_shows_what_has_drifted(stub_megatron: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = stub_megatron / "megatron/core/transformer/moe/moe_utils.py"
    file.write_text(file.read_text().replace("capacity_factor", "factor"))
    code, out = doctor(capsys)
    words = " ".join(out.split())
    assert code == 1
    assert " yes no drifted " in words
    assert words.endswith("1 drifted")
    code, out = doctor(capsys, "--json")
    told = json.loads(out)
    assert (code, told["kept"], told["problems"]) == (1, False, [])
    assert [one["what"] for one in told["findings"] if one["state"] == "drifted"] == [
        f"{MOE}.moe_utils.get_capacity has a parameter 'capacity_factor'"
    ]


@pytest.mark.parametrize(
    ("info", "told"),
    [
        (package_info("0.99.0"), "megatron-core 0.99.0 is newer than the releases whose contract is known"),
        ("MAJOR = 0\n", "names no 'MINOR'; there is no contract to compare"),
    ],
)
def test_doctor_says_when_there_is_nothing_to_compare(
    stub_megatron: Path, capsys: pytest.CaptureFixture[str], info: str, told: str
) -> None:
    write_stub_megatron(stub_megatron, info=info)
    code, out = doctor(capsys)
    assert (code, told in " ".join(out.split())) == (1, True), out
    code, out = doctor(capsys, "--json")
    report = json.loads(out)
    assert (code, report["findings"], len(report["problems"]), report["kept"]) == (1, [], 1, False)


def test_doctor_says_when_megatron_is_missing(two: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, out = doctor(capsys)
    assert code == 1
    assert "problem: megatron-core: not installed; there is no contract to compare" in out


# ------------------------------------------------------------------------------------------------ the real thing


@pytest.mark.megatron
def test_the_installed_release_has_what_is_required() -> None:
    from megatron.core.package_info import __version__ as version

    findings = compare(generation_of(version))
    assert [str(one) for one in findings if one.state != OK] == []


@pytest.mark.megatron
def test_doctor_finds_the_installed_release_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = doctor(capsys)
    assert code == 0, out
