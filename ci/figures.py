"""How much code there is: files, lines, comments and functions of the product and of the tests.

The product is the package with `patches/`; the simulated Ascend runtime and what it is tested with stand apart.
"""

from __future__ import annotations

import ast
import statistics
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# name -> (folders, folders inside of them that do not count)
PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "product": (("mindspeed_moe", "patches"), ()),
    "tests": (("tests",), ("tests/ascend_sim",)),
    "simulated runtime": (("tests/ascend_sim",), ()),
    "ci": (("ci",), ()),
}


def python_files(folders: tuple[str, ...], without: tuple[str, ...]) -> list[Path]:
    """Return the Python files that git knows of."""
    listed = subprocess.run(["git", "ls-files", "-z", "--", *folders], cwd=ROOT, capture_output=True, check=True)
    names = [name for name in listed.stdout.decode().split("\0") if name.endswith(".py")]
    return [ROOT / name for name in names if not name.startswith(tuple(f"{one}/" for one in without))]


def comments(lines: list[str]) -> int:
    """Return how many lines are a comment; rulers between parts of a file are none."""
    own = (line.strip() for line in lines)
    return sum(line.startswith("#") and not line.startswith("# ---") for line in own)


def functions(text: str) -> list[int]:
    """Return the lines of each function, from `def` to its end."""
    found = (one for one in ast.walk(ast.parse(text)) if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return [(one.end_lineno or one.lineno) - one.lineno + 1 for one in found]


def main() -> None:
    """Print a row a part."""
    print(f"{'':20}{'files':>7}{'lines':>8}{'median file':>13}{'comments':>10}{'median function':>17}")
    for name, part in PARTS.items():
        texts = [path.read_text(encoding="utf-8") for path in python_files(*part)]
        lengths = [len(text.splitlines()) for text in texts]
        share = sum(comments(text.splitlines()) for text in texts) / max(sum(lengths), 1)
        sizes = [size for text in texts for size in functions(text)]
        row = f"{name:20}{len(texts):>7}{sum(lengths):>8,}{statistics.median(lengths):>13.0f}{share:>10.1%}"
        print(f"{row}{statistics.median(sizes):>17.0f}")


if __name__ == "__main__":
    main()
