"""Generated documents are current, and say what the data says."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from mindspeed_moe.config import Config, load_config
from mindspeed_moe.contract.generations import GENERATIONS
from mindspeed_moe.dispatch_table import DEVICES, DISPATCHERS, rows_of
from mindspeed_moe.documents import BEGIN, COMPATIBILITY, END, FAULTS, RELIABILITY, documents, support_matrix
from mindspeed_moe.patches import catalogue

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


STANDING = [(ROOT / path).read_text(encoding="utf-8") for path in ("README.md", COMPATIBILITY, RELIABILITY, FAULTS)]


@pytest.mark.parametrize(("path", "text"), documents(*STANDING).items())
def test_document_is_current(path: str, text: str) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == text, "stale: run `python ci/documents.py`"


def test_every_patch_is_explained() -> None:
    text = (ROOT / "docs/PATCHES.md").read_text(encoding="utf-8")
    for spec in catalogue():
        assert f"### `{spec.target}`" in text
        for said in (spec.why, spec.how, spec.upstream, spec.remove_when):
            assert len(said) > 15, f"{spec.target} does not say enough: {said!r}"
            assert said in text


def test_matrix_names_every_cell_as_the_table_does() -> None:
    lines = [line for line in support_matrix().splitlines() if line.startswith("| 0.")]
    assert len(lines) == len(DISPATCHERS) * len(GENERATIONS)
    for number, line in enumerate(lines):
        dispatcher, generation = DISPATCHERS[number // len(GENERATIONS)], GENERATIONS[number % len(GENERATIONS)]
        for device, cell in zip(DEVICES, line.split("|")[2:-1], strict=True):
            named = {name for name in ("packed", "reference") if f"**{name}**" in cell}
            assert named == {row.implementation for row in rows_of(device, dispatcher, generation.name)}
    assert README.index(BEGIN) < README.index(lines[0]) < README.index(END)


def test_readme_yaml_is_a_valid_configuration_with_every_key(tmp_path: Path) -> None:
    text = README.split("```yaml\n")[1].split("```")[0]
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert load_config(file) == Config()

    def keys(data: object) -> object:
        return {key: keys(value) for key, value in data.items()} if isinstance(data, dict) else None

    assert keys(yaml.safe_load(text)) == keys(Config().model_dump())


def test_schema_takes_what_the_reader_takes() -> None:
    schema = json.loads((ROOT / "docs/config.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate({}, schema)
    jsonschema.validate({"device": "cpu", "preprocess": {"exchange": "all_gather"}}, schema)
    for tuned in (None, "tuned.yaml"):
        jsonschema.validate({"tuned": tuned}, schema)
    for verify in ("off", "first", "always", {"every": 100}):
        jsonschema.validate({"verify": verify}, schema)
    jsonschema.validate({"telemetry": {"enabled": True, "writers": ["jsonl", "tensorboard"]}}, schema)
    for wrong in (
        {"devise": "cpu"},
        {"verify": "sometimes"},
        {"verify": {"every": 0}},
        {"telemetry": {"writers": []}},
        {"preprocess": {"exchange_group": "world"}},
        {"preprocess": {"max_slots": 0}},
        {"enabled": "yes"},
        {"tuned": ["tuned.yaml"]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


# Every name of torch that the package uses, and the release that has had it at the latest. A new name fails the test
# below until somebody has looked up that torch 2.1 offers it.
TORCH_NAMES = {
    "torch.Tensor": "0.1",
    "torch._C": "0.1",
    "torch.bool": "1.2",
    "torch.cat": "0.1",
    "torch.cuda": "0.1",
    "torch.default_generator": "0.1",
    "torch.device": "0.4",
    "torch.dtype": "0.4",
    "torch.empty": "0.1",
    "torch.empty_like": "0.4",
    "torch.float32": "0.4",
    "torch.from_numpy": "0.1",
    "torch.full": "0.2",
    "torch.get_rng_state": "0.1",
    "torch.index_select": "0.1",
    "torch.inference_mode": "1.9",
    "torch.int32": "0.4",
    "torch.int64": "0.4",
    "torch.mm": "0.1",
    "torch.ones": "0.1",
    "torch.profiler": "1.8",
    "torch.set_rng_state": "0.1",
    "torch.split": "0.1",
    "torch.sum": "0.1",
    "torch.tensor": "0.4",
    "dist.ProcessGroup": "1.13",
    "dist.ReduceOp": "1.0",
    "dist.all_gather_into_tensor": "1.13",
    "dist.all_to_all_single": "1.7",
    "dist.distributed_c10d": "1.0",
    "dist.get_backend": "1.0",
    "dist.get_process_group_ranks": "2.0",
    "dist.get_rank": "1.0",
    "dist.get_world_size": "1.0",
    "dist.group": "1.0",
    "dist.is_initialized": "1.0",
    "dist.new_group": "1.0",  # use_local_synchronization since 2.1
}
CORE = ("api", "config", "contract", "devices", "patching", "preprocess", "programs")


def test_torch_names_exist_in_torch_2_1() -> None:
    used = set()
    files = [path for part in CORE for path in (ROOT / "mindspeed_moe").glob(f"{part}/*.py")]
    files += [ROOT / "mindspeed_moe/programs.py", *(ROOT / "patches").glob("*.py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("torch", "dist")
            ):
                used.add(f"{node.value.id}.{node.attr}")
    assert used == set(TORCH_NAMES)
    assert all(tuple(map(int, since.split("."))) <= (2, 1) for since in TORCH_NAMES.values())
