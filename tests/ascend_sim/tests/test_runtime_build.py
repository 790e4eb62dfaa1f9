"""Building: one clear message for each thing that is missing, and two processes that build at once."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ascend_sim import build

CMAKE = """
cmake_minimum_required(VERSION 3.18)
project(small LANGUAGES CXX)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)
add_library(ascendcl SHARED ${CMAKE_CURRENT_SOURCE_DIR}/runtime/one.cpp)
"""
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources of one small library, in place of the real ones."""
    folder = tmp_path / "sources"
    (folder / "runtime").mkdir(parents=True)
    (folder / "CMakeLists.txt").write_text(CMAKE)
    (folder / "runtime" / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    monkeypatch.setattr(build, "SOURCES", folder)
    monkeypatch.setattr(build, "LIBRARIES", ("ascendcl",))
    monkeypatch.setenv("ASCEND_SIM_BUILD_DIR", str(tmp_path / "builds"))
    return folder


def test_built_once_and_again_when_a_source_changes(sources: Path) -> None:
    first = build.libraries()
    assert (first / "libascendcl.so").exists()
    assert first.parent == build.build_folder()
    stamp = (first / "libascendcl.so").stat().st_mtime_ns
    assert build.libraries() == first
    assert (first / "libascendcl.so").stat().st_mtime_ns == stamp
    (sources / "runtime" / "one.cpp").write_text('extern "C" int one() { return 2; }\n')
    assert build.libraries() != first


def test_source_that_does_not_compile(sources: Path) -> None:
    (sources / "runtime" / "one.cpp").write_text("this is not C++\n")
    with pytest.raises(build.BuildError, match="building the simulated Ascend runtime failed") as caught:
        build.libraries()
    assert "one.cpp" in str(caught.value)
    assert "build.log" in str(caught.value)
    (sources / "runtime" / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    assert build.libraries().is_dir()


def test_no_compiler(sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler: looked for g\+\+, clang\+\+ and c\+\+"):
        build.libraries()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match="looked for no-such-compiler"):
        build.libraries()


def test_no_cmake(sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler, _ = build.tools()
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match="no CMake"):
        build.libraries()


def _versions(monkeypatch: pytest.MonkeyPatch, found: dict[str, str]) -> None:
    def version(package: str) -> str:
        if package not in found:
            raise importlib.metadata.PackageNotFoundError(package)
        return found[package]

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"torch": "2.13.0"}, "needs the package torch-npu"),
        ({}, "needs the package torch,"),
        ({"torch": "2.12.1+cpu", "torch-npu": "2.13.0"}, r"torch is 2\.12\.1\+cpu and torch-npu is 2\.13\.0"),
    ],
)
def test_torch_npu_missing_or_of_another_torch(
    sources: Path, monkeypatch: pytest.MonkeyPatch, found: dict[str, str], message: str
) -> None:
    _versions(monkeypatch, found)
    with pytest.raises(build.BuildError, match=message):
        build.libraries()


def test_post_release_of_torch_npu_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    _versions(monkeypatch, {"torch": "2.13.0+cpu", "torch-npu": "2.13.0.post2"})
    assert build.versions() == ("2.13.0+cpu", "2.13.0.post2")


def test_unknown_sanitizer() -> None:
    with pytest.raises(build.BuildError, match='sanitizer is "memory"'):
        build.libraries("memory")


def test_processes_that_build_at_once_do_not_disturb_each_other(sources: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.ascend_sim import build; "
        "build.SOURCES, build.LIBRARIES = Path(sys.argv[1]), ('ascendcl',); print(build.libraries())"
    )
    command = [sys.executable, "-c", program, str(sources)]
    running = [
        subprocess.Popen(
            command, cwd=REPOSITORY, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    ended = [process.communicate(timeout=1800) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], ended
    assert len({output for output, _ in ended}) == 1
    # One of them built, the others waited for it.
    assert sum("built in" in errors for _, errors in ended) == 1
