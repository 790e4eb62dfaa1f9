"""A generation is proved by looking at the code: stubs of Megatron with one thing changed at a time."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from itertools import product
from pathlib import Path

import pytest

from helpers_megatron import (
    DISPATCHER_MODULE,
    FEATURES,
    FEATURES_OF,
    LEGACY_MODULE,
    WORKING_DISPATCHER,
    changed,
    dispatcher_source,
    forget_megatron,
    stub_in_memory,
    stub_release,
    write_stub_megatron,
)
from mindspeed_moe.contract import GENERATIONS, generation_of, prove
from mindspeed_moe.errors import ContractError

# What came within the releases of one generation, so that it proves nothing about it.
FREE = {"hook_event_wait": {"class_stream", "group_collection"}}

CHANGES = [
    (version, feature)
    for version, feature in product(FEATURES_OF, FEATURES)
    if feature not in FREE.get(generation_of(version).name, ())
]


def refused(version: str) -> str:
    with pytest.raises(ContractError) as caught:
        prove(generation_of(version), version)
    return str(caught.value)


@pytest.mark.parametrize("version", FEATURES_OF)
def test_every_release_keeps_its_contract(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    stub_release(monkeypatch, FEATURES_OF[version])
    prove(generation_of(version), version)


@pytest.mark.parametrize(("version", "feature"), CHANGES)
def test_one_changed_thing_is_refused_and_named(monkeypatch: pytest.MonkeyPatch, version: str, feature: str) -> None:
    stub_release(monkeypatch, changed(FEATURES_OF[version], feature))
    message = refused(version)
    assert message.startswith(f"megatron-core {version} should keep the contract {generation_of(version)}, but:\n")
    told = next(line for line in message.splitlines() if FEATURES[feature] in line)
    had_it = feature in FEATURES_OF[version]
    assert told.strip().startswith("expected: ")
    assert told.endswith("yes; found: no" if had_it else "no; found: yes")
    assert message.endswith("Use an unmodified release, upgrade mindspeed-moe, or set `enabled: false`.")


@pytest.mark.parametrize("version", ["0.13.1", "0.15.3"])
@pytest.mark.parametrize("feature", sorted(FREE["hook_event_wait"]))
def test_what_came_within_a_generation_proves_nothing(
    monkeypatch: pytest.MonkeyPatch, version: str, feature: str
) -> None:
    stub_release(monkeypatch, changed(FEATURES_OF[version], feature))
    prove(generation_of(version), version)


@pytest.mark.parametrize("version", FEATURES_OF)
def test_the_generations_are_told_apart(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """The code of a release under the number of another generation is refused."""
    stub_release(monkeypatch, FEATURES_OF[version])
    own = generation_of(version)
    for other in GENERATIONS:
        if other is own:
            continue
        with pytest.raises(ContractError, match="should keep the contract"):
            prove(other, version)


@pytest.mark.parametrize(
    "addition",
    [
        "    def a_new_method(self):\n        return 1\n",
        "    a_new_attribute = 2\n",
        "class AnotherDispatcher:\n    pass\n",
    ],
)
@pytest.mark.parametrize("version", ["0.12.1", "0.16.1"])
def test_an_unrelated_change_is_accepted(monkeypatch: pytest.MonkeyPatch, version: str, addition: str) -> None:
    owner = "class MoEAlltoAllTokenDispatcher(MoETokenDispatcher):\n"
    source = dispatcher_source(FEATURES_OF[version])
    source = source.replace(owner, owner + addition) if addition.startswith(" ") else source + addition
    assert addition in source
    stub_in_memory(monkeypatch, source, legacy="legacy" in FEATURES_OF[version])
    prove(generation_of(version), version)


def test_a_wrapper_is_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decorator of Megatron's own, made with functools.wraps, hides nothing."""
    source = dispatcher_source(FEATURES_OF["0.16.1"]) + (
        "import functools\n"
        "def decorated(function):\n"
        "    return functools.wraps(function)(lambda *args, **kwargs: function(*args, **kwargs))\n"
        "for name in ('__init__', 'preprocess', '_maybe_dtoh_and_synchronize', 'token_dispatch'):\n"
        "    setattr(MoEAlltoAllTokenDispatcher, name, decorated(vars(MoEAlltoAllTokenDispatcher)[name]))\n"
    )
    stub_in_memory(monkeypatch, source, legacy=False)
    prove(generation_of("0.16.1"), "0.16.1")


def test_a_renamed_dispatcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    source = dispatcher_source(FEATURES_OF["0.12.1"]).replace("MoEAlltoAllTokenDispatcher", "Renamed")
    stub_in_memory(monkeypatch, source, legacy=True)
    assert "MoEAlltoAllTokenDispatcher has '_maybe_dtoh_and_synchronize': yes; found: no" in refused("0.12.1")


@pytest.mark.parametrize("name", ["__init__", "preprocess", "_maybe_dtoh_and_synchronize", "token_dispatch"])
def test_a_method_that_is_no_python_function_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Compiled or built in, so that there is no code to look at: nothing can be proved, and nothing is guessed."""
    source = dispatcher_source(FEATURES_OF["0.18.2"]) + f"MoEAlltoAllTokenDispatcher.{name} = len\n"
    stub_in_memory(monkeypatch, source, legacy=False)
    refused("0.18.2")


@pytest.mark.parametrize("name", ["", "._maybe_dtoh_and_synchronize"])
def test_nothing_is_learned_from_what_somebody_else_put_there(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whether that may be patched over is for on_conflict to say; what else stands there must still be right."""
    dispatcher = f"{DISPATCHER_MODULE}.MoEAlltoAllTokenDispatcher"
    stub_release(monkeypatch, changed(FEATURES_OF["0.16.1"], "event"))
    refused("0.16.1")
    prove(generation_of("0.16.1"), "0.16.1", frozenset({dispatcher + name}))
    with pytest.raises(ContractError):
        prove(generation_of("0.16.1"), "0.16.1", frozenset({f"{dispatcher}.preprocess", f"{dispatcher}Too"}))


# ------------------------------------------------------------------------------------------------ importing


def test_a_missing_megatron_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / "megatron").is_dir()])
    with forget_megatron():
        assert refused("0.12.1") == "megatron is not there: install megatron-core or put its checkout on PYTHONPATH"


def test_a_missing_submodule_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_release(monkeypatch, FEATURES_OF["0.12.1"])
    monkeypatch.delitem(sys.modules, DISPATCHER_MODULE)
    assert refused("0.12.1").startswith(f"{DISPATCHER_MODULE} is not there: ")


@pytest.fixture
def on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A stub package whose dispatcher module starts with the given text."""
    with forget_megatron():

        def write(head: str = "", core: str = "") -> None:
            write_stub_megatron(tmp_path, core=core, dispatcher=head + "\n" + WORKING_DISPATCHER)
            monkeypatch.syspath_prepend(tmp_path)

        yield write


def test_a_package_on_disk_is_proved(on_disk) -> None:  # type: ignore[no-untyped-def]
    on_disk()
    prove(generation_of("0.12.1"), "0.12.1", units={"alltoall"})
    assert LEGACY_MODULE not in sys.modules, "whether it is there is found out without importing it"


def test_a_dependency_of_megatron_that_is_missing_is_told_apart(on_disk) -> None:  # type: ignore[no-untyped-def]
    on_disk("import no_such_dependency_of_megatron")
    message = refused("0.12.1")
    assert message == (
        f"{DISPATCHER_MODULE} cannot be imported: there is no module 'no_such_dependency_of_megatron', which "
        f"{DISPATCHER_MODULE} needs: install what provides it, or use a release of megatron-core that does without it"
    )


def test_a_name_that_cannot_be_imported_is_told_apart(on_disk) -> None:  # type: ignore[no-untyped-def]
    on_disk("from json import no_such_name")
    assert refused("0.12.1").startswith(f"{DISPATCHER_MODULE} cannot be imported: cannot import name 'no_such_name'")


@pytest.mark.parametrize("error", ["OSError('libcudart.so.12')", "RuntimeError('libcudart.so.12')"])
def test_any_failure_of_the_import_is_told(on_disk, error: str) -> None:  # type: ignore[no-untyped-def]
    on_disk(f"raise {error}")
    assert refused("0.12.1") == f"{DISPATCHER_MODULE} cannot be imported: libcudart.so.12"


@pytest.mark.parametrize("where", ["core", "head"])
def test_megatron_in_the_middle_of_its_import_is_refused(on_disk, where: str) -> None:  # type: ignore[no-untyped-def]
    call = "from mindspeed_moe.contract import generation_of, prove\nprove(generation_of('0.12.1'), '0.12.1')\n"
    on_disk(**{where: call})
    with pytest.raises(ContractError) as caught:
        importlib.import_module(DISPATCHER_MODULE)
    being_imported = {"core": "megatron.core", "head": DISPATCHER_MODULE}[where]
    assert str(caught.value).startswith(f"{being_imported} is still being imported: enable the plugin before or after")


# ------------------------------------------------------------------------------------------------ the real thing


@pytest.mark.megatron
def test_the_installed_release_keeps_its_contract_and_no_other() -> None:
    from megatron.core.package_info import __version__ as version

    own = generation_of(version)
    prove(own, version)
    for other in GENERATIONS:
        if other is not own:
            with pytest.raises(ContractError, match="should keep the contract"):
                prove(other, version)


@pytest.mark.megatron
def test_the_stub_of_the_installed_release_has_what_the_release_has() -> None:
    """Otherwise the tests above would prove something about the stubs alone."""
    from megatron.core.package_info import MAJOR, MINOR
    from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher as Dispatcher

    version = next((known for known in FEATURES_OF if known.startswith(f"{MAJOR}.{MINOR}.")), "")
    if not version:
        pytest.skip("there is no stub of this release")
    names = {key: value.__code__ for key, value in vars(Dispatcher).items() if hasattr(value, "__code__")}
    found = {
        "cpu_table": "num_global_tokens_per_local_expert_cpu" in names["preprocess"].co_names,
        "hook": "_maybe_dtoh_and_synchronize" in names,
        "stages": "token_dispatch" in names,
        "event": "_maybe_dtoh_and_synchronize" in names
        and "d2h_event" in names["_maybe_dtoh_and_synchronize"].co_names,
        "class_stream": "cuda_dtoh_stream" in vars(Dispatcher),
        "group_collection": "pg_collection" in names["__init__"].co_varnames,
        "graphs": "cudagraph_attrs" in names["__init__"].co_names,
        "nccl_stream": "token_dispatch" in names and "use_nccl_stream" in names["token_dispatch"].co_names,
        "legacy": importlib.util.find_spec(LEGACY_MODULE) is not None,
    }
    assert {feature for feature, there in found.items() if there} == FEATURES_OF[version]
