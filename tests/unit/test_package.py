"""What gets installed: the wheel and the sdist are built and looked into."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"megatron-core", "torch-npu", "matplotlib", "pytest", "hypothesis", "mypy", "ruff"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy that holds only what belongs to the project, as a clone does."""
    folder = tmp_path_factory.mktemp("package")
    source, out = folder / "source", folder / "dist"
    source.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return out


def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_two_packages_and_nothing_else_at_top_level(built: Path) -> None:
    names = wheel(built).namelist()
    tops = {name.split("/")[0] for name in names}
    (info,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops == {"mindspeed_moe", info}
    assert wheel(built).read(f"{info}/top_level.txt").decode().split() == ["mindspeed_moe"]


def test_wheel_holds_every_module_of_both_folders(built: Path) -> None:
    expected = {
        f"mindspeed_moe/{p.relative_to(ROOT / 'mindspeed_moe')}" for p in (ROOT / "mindspeed_moe").rglob("*.py")
    }
    expected |= {f"mindspeed_moe/patches/{p.relative_to(ROOT / 'patches')}" for p in (ROOT / "patches").rglob("*.py")}
    found = {name for name in wheel(built).namelist() if name.endswith(".py")}
    assert found == expected
    assert {"mindspeed_moe/py.typed", "mindspeed_moe/evidence.json"} <= set(wheel(built).namelist())


def test_wheel_requires_nothing_heavy(built: Path) -> None:
    (metadata,) = (name for name in wheel(built).namelist() if name.endswith("/METADATA"))
    message = Parser().parsestr(wheel(built).read(metadata).decode())
    requires = message.get_all("Requires-Dist", [])
    hard = {line.split(";")[0].strip() for line in requires if "extra ==" not in line}
    names = {"".join(part for part in line.split(">")[0].split("=")[0]).strip() for line in hard}
    assert names == {"torch", "numpy", "pyyaml", "pydantic", "packaging", "orjson", "click", "rich"}
    assert not names & HEAVY
    torch = next(line for line in hard if line.startswith("torch"))
    assert "==" not in torch, "a pinned torch would replace the user's build"
    assert "<" not in torch


def test_sdist_builds_the_same_packages(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "pyproject.toml", "README.md", "patches/alltoall.py", "mindspeed_moe/api.py"} <= names


def test_installed_wheel_works_outside_of_the_tree(built: Path, tmp_path: Path) -> None:
    (path,) = built.glob("*.whl")
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(path)], check=True
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import mindspeed_moe, mindspeed_moe.patches\n"
        "assert mindspeed_moe.__file__.startswith(sys.argv[1]), mindspeed_moe.__file__\n"
        "assert mindspeed_moe.patches.__file__.startswith(sys.argv[1]), mindspeed_moe.patches.__file__\n"
        "import importlib.util as u; assert u.find_spec('patches') is None and u.find_spec('tests') is None\n"
    )
    subprocess.run([sys.executable, "-S", "-c", _with_site_packages(code), str(target)], cwd=tmp_path, check=True)


def _with_site_packages(code: str) -> str:
    """Offer the dependencies without the .pth files of an editable install."""
    import site

    return f"import sys; sys.path += {site.getsitepackages()!r}\n{code}"


def test_the_patches_folder_cannot_be_imported_under_another_name(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import patches"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode != 0
    assert "mindspeed_moe.patches" in run.stderr


def test_version_is_said_once() -> None:
    assert len(re.findall(r"^version = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)) == 1
    for path in (ROOT / "mindspeed_moe").rglob("*.py"):
        assert "__version__ =" not in path.read_text(encoding="utf-8"), path
