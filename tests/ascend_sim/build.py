"""Builds the simulated Ascend libraries with one command, into a folder named by what they are built from.

`python -m tests.ascend_sim --build` builds and prints the folder; `libraries()` does so for programs.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
LIBRARIES = ("ascendcl", "hccl", "hcomm", "opapi", "acl_op_compiler", "ge_runner", "graph", "acl_tdt_channel")
SANITIZERS = ("", "address", "thread")


class BuildError(RuntimeError):
    """The libraries cannot be built; the message says what is missing or what failed, in one piece."""


def build_folder() -> Path:
    """The folder that all builds lie in: ASCEND_SIM_BUILD_DIR, or build/ascend_sim of the repository."""
    chosen = os.environ.get("ASCEND_SIM_BUILD_DIR")
    return Path(chosen).resolve() if chosen else SOURCES.parents[1] / "build" / "ascend_sim"


def versions() -> tuple[str, str]:
    """The versions of torch and torch_npu, which must belong together (2.13.0 with 2.13.0.post1)."""
    found = {}
    for package in ("torch", "torch-npu"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise BuildError(
                f"the simulated Ascend runtime needs the package {package}, which {sys.executable} "
                "does not have; install torch and the torch-npu of its version (no NPU and no CANN is needed)"
            ) from None
    torch, torch_npu = found["torch"], found["torch-npu"]
    if torch.split("+")[0].split(".")[:2] != torch_npu.split("+")[0].split(".")[:2]:
        raise BuildError(
            f"torch is {torch} and torch-npu is {torch_npu}; allowed: a torch-npu whose first two numbers are torch's"
        )
    return torch, torch_npu


def tools() -> tuple[str, str]:
    """The C++ compiler and CMake that are used (CXX chooses the compiler)."""
    wanted = os.environ.get("CXX")
    compiler = (
        shutil.which(wanted) if wanted else next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    )
    if not compiler:
        raise BuildError(
            f"no C++ compiler: looked for {wanted or 'g++, clang++ and c++'} on PATH; "
            "the simulated Ascend runtime needs one for C++20 (from GCC 11 or Clang 14), and CXX may name it"
        )
    cmake = shutil.which("cmake")
    if not cmake:
        raise BuildError("no CMake: looked for cmake on PATH; the simulated Ascend runtime needs CMake 3.18 or newer")
    return compiler, cmake


def sanitizer_library(sanitizer: str) -> str:
    """The path of the run-time library of "address" or "thread" (GCC's), for LD_PRELOAD."""
    compiler, _ = tools()
    name = {"address": "libasan.so", "thread": "libtsan.so"}[sanitizer]
    asked = [compiler, f"-print-file-name={name}"]
    found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(found):
        raise BuildError(f"{compiler} has no {name}: install its sanitizer library or run without --sanitizer")
    return os.path.realpath(found)


def _source_files() -> list[Path]:
    found = [SOURCES / "CMakeLists.txt"]
    for folder in ("include/ascend_sim", "runtime", "hccl", "operators", "placeholder"):
        found += [path for path in (SOURCES / folder).glob("*") if path.suffix in (".cpp", ".h")]
    return sorted(found)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def fingerprint(torch: str, compiler: str, sanitizer: str) -> str:
    """16 hexadecimal digits over every source file, the version of torch, the compiler and the sanitizer."""
    contents = [f"{path.relative_to(SOURCES)}\0{path.read_text()}" for path in _source_files()]
    return _digest(torch, compiler, sanitizer, *contents)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock between processes; it is given back when its holder ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str], log: Path) -> None:
    with log.open("a") as output:
        output.write(f"$ {' '.join(command)}\n")
        output.flush()
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if code != 0:
        lines = log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if "error" in line.lower()][:20] or lines[-20:]
        raise BuildError(
            f"building the simulated Ascend runtime failed: {command[0]} ended with {code}; "
            f"all of its output is in {log}\n" + "\n".join(errors)
        )


def _compile(work: Path, compiler: str, cmake: str, sanitizer: str) -> Path:
    """Builds in `work`, where earlier objects are used again, and returns the folder with the libraries."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildError("the package torch is installed but cannot be found by import")
    work.mkdir(parents=True, exist_ok=True)
    log = work / "build.log"
    log.write_text("")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else ["-G", "Unix Makefiles"]
    jobs = os.environ.get("ASCEND_SIM_BUILD_JOBS", "2")
    configure = [cmake, "-S", str(SOURCES), "-B", str(work), *generator, f"-DCMAKE_CXX_COMPILER={compiler}"]
    configure += [f"-DTORCH_DIR={Path(spec.origin).parent}", f"-DASCEND_SIM_SANITIZER={sanitizer}"]
    _run(configure, log)
    _run([cmake, "--build", str(work), "--parallel", jobs], log)
    return work / "lib"


def libraries(sanitizer: str = "") -> Path:
    """The folder with the built libraries; builds them first where these sources were not built before.

    `sanitizer`: "", "address" or "thread". Raises BuildError with one message.
    """
    if sanitizer not in SANITIZERS:
        raise BuildError(f'sanitizer is "{sanitizer}"; allowed: {", ".join(repr(name) for name in SANITIZERS)}')
    torch, _ = versions()
    compiler, cmake = tools()
    plain = libraries() if sanitizer else None
    folder = build_folder()
    done = folder / fingerprint(torch, compiler, sanitizer)
    if done.is_dir():
        return done
    folder.mkdir(parents=True, exist_ok=True)
    work = folder / f"objects-{_digest(torch, compiler, sanitizer, str(SOURCES))}"
    with _locked(folder / f"{work.name}.lock"):
        # The sources may have changed, or another process may have built them, while this one waited.
        done = folder / fingerprint(torch, compiler, sanitizer)
        if done.is_dir():
            return done
        begin = time.monotonic()
        print(
            "building the simulated Ascend libraries (once for these sources) ...",
            file=sys.stderr,
            flush=True,
        )
        built = _compile(work, compiler, cmake, sanitizer)
        # Published in one step: nobody ever sees half of the libraries.
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            ready = Path(temporary) / "ready"
            ready.mkdir()
            for name in LIBRARIES:
                # The operators are ATen's work: they are the same in every build.
                source = plain if plain and name == "opapi" else built
                shutil.copy2(source / f"lib{name}.so", ready)
            ready.rename(done)
        print(f"built in {time.monotonic() - begin:.0f} s: {done}", file=sys.stderr, flush=True)
    return done
