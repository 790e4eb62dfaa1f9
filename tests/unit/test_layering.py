"""Imports run one way, and a few modules alone may do a few things. Read from the source, not from a run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from torch.utils._device import _device_constructors

ROOT = Path(__file__).resolve().parents[2]

# Ground floor first: a module may import from its own floor's folder and from floors before it.
FLOORS = (
    ("errors", "log", "stacks"),
    ("files", "lifetime", "telemetry_files"),
    ("config",),
    ("devices",),
    ("environment",),
    ("output",),
    ("contract",),
    ("patching",),
    ("preprocess",),
    ("dispatch_table", "conditions", "estimate"),
    ("evidence", "verify", "telemetry"),
    ("programs",),
    ("watching",),
    ("patches",),
    ("tables",),
    ("plan",),
    ("planning",),
    ("mindspeed",),
    ("documents", "api"),
    ("adaptor", "demo", "bench", "report"),
    ("world",),
    ("tune",),
    ("selftest",),
    ("cli",),
    ("__main__",),
)
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}


def modules() -> dict[str, ast.Module]:
    found = {}
    for folder, package in ((ROOT / "mindspeed_moe", "mindspeed_moe"), (ROOT / "patches", "mindspeed_moe.patches")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name in MODULES}


def floor_name(module: str) -> str:
    return module.split(".")[1]


def test_every_module_has_a_floor() -> None:
    assert {floor_name(name) for name in MODULES if name != "mindspeed_moe"} == set(FLOOR)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "mindspeed_moe"])
def test_imports_run_downwards(module: str) -> None:
    own = floor_name(module)
    for name in imported(MODULES[module]) - {"mindspeed_moe"}:
        other = floor_name(name)
        if other == own:
            continue
        assert FLOOR[other] < FLOOR[own], f"{module} imports {name}, which stands above or beside it"


def test_no_circle_of_modules() -> None:
    graph = {name: imported(tree) - {"mindspeed_moe", name} for name, tree in MODULES.items()}
    del graph["mindspeed_moe"]
    while graph:
        free = [name for name, needs in graph.items() if not needs & set(graph)]
        assert free, f"a circle among {sorted(graph)}"
        for name in free:
            del graph[name]


@pytest.mark.parametrize(
    ("needle", "allowed"),
    [
        ("torch_npu", {"mindspeed_moe.devices.npu"}),
        ("mindspeed", set()),
        ("megatron", set()),
        ("transformer_engine", set()),
    ],
)
def test_nothing_outside_is_imported_elsewhere(needle: str, allowed: set[str]) -> None:
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "find_spec")):
                names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
                names = [name for name in names if needle == "torch_npu"]
            tops = {str(name).split(".")[0] for name in names}
            assert needle not in tops or module in allowed, f"{module} imports {needle}"


def test_one_module_reads_the_environment_and_the_command_line() -> None:
    for module, tree in MODULES.items():
        text = ast.unparse(tree)
        reads = [name for name in ("os.environ", "getenv", "sys.argv") if name in text]
        assert not reads or module == "mindspeed_moe.environment", f"{module} reads {reads}"


DEVICE_CONSTRUCTORS = {f"torch.{one.__name__}" for one in _device_constructors()}


@pytest.mark.parametrize("folder", ["devices", "preprocess", "verify", "telemetry"])
def test_every_tensor_that_is_made_in_training_names_its_device(folder: str) -> None:
    """Else it lands where torch.set_default_device says, whatever it is for; floats name their dtype as well."""
    for module, tree in MODULES.items():
        for node in ast.walk(tree) if floor_name(f"{module}.") == folder else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func) in DEVICE_CONSTRUCTORS:
                named = {keyword.arg for keyword in node.keywords}
                assert named >= {"device", "dtype"}, f"{module}: {ast.unparse(node)}"


def test_one_place_knows_release_numbers() -> None:
    for module, tree in MODULES.items():
        tuples = [
            ast.unparse(node)
            for node in ast.walk(tree)
            if isinstance(node, ast.Tuple)
            and len(node.elts) == 2
            and all(isinstance(part, ast.Constant) and isinstance(part.value, int) for part in node.elts)
            and node.elts[0].value == 0
            and node.elts[1].value >= 8
        ]
        assert not tuples or module == "mindspeed_moe.contract.generations", f"{module} names releases {tuples}"


@pytest.mark.parametrize("path", sorted(p for f in ("mindspeed_moe", "patches") for p in (ROOT / f).rglob("*.py")))
def test_files_hold_one_concept(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350
