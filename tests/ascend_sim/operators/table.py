"""The table of simulated operators, made from the C++ sources; `--write` puts it into README-part.md."""

from __future__ import annotations

import re
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
README = FOLDER / "README-part.md"
BEGIN, END = "<!-- table of operators: begin -->", "<!-- table of operators: end -->"

_COMMENT = re.compile(r"//[^\n]*")
_MACRO = re.compile(r"^#define (\w+)\((\w+)[^)]*\)((?:.*\\\n)*.*)$", re.MULTILINE)
_OPERATOR = re.compile(r"\bACLNN\((aclnn[\w#]+)")


def _families(text: str) -> dict[str, list[str]]:
    """Macros that define operators: what each appends around its first argument, as "aclnn{}s"."""
    families = {}
    for name, first, body in _MACRO.findall(text):
        if patterns := _OPERATOR.findall(body):
            families[name] = [pattern.replace(f"##{first}##", "{}").replace(f"##{first}", "{}") for pattern in patterns]
    return families


def operators() -> dict[str, list[str]]:
    """Names of the operators, sorted, by the source file that holds them."""
    found: dict[str, list[str]] = {}
    for path in sorted(FOLDER.glob("*.cpp")):
        text = _COMMENT.sub("", path.read_text())
        code = _MACRO.sub("", text)
        names = _OPERATOR.findall(code)
        for family, patterns in _families(text).items():
            for argument in re.findall(rf"^{family}\((\w+)", code, re.MULTILINE):
                names += [pattern.format(argument) for pattern in patterns]
        if names:
            found[path.name] = sorted(names)
    return found


def table() -> str:
    """The table in Markdown: one row for each source file, operators without their prefix."""
    found = operators()
    rows = [
        f"{sum(map(len, found.values()))} operators (each name stands for `aclnn` + name):",
        "",
        "| file | operators |",
        "|---|---|",
    ]
    for file, names in found.items():
        rows.append(f"| `{file}` ({len(names)}) | {', '.join(name.removeprefix('aclnn') for name in names)} |")
    return "\n".join(rows)


def readme_with_table() -> str:
    """README-part.md as it should be."""
    before, rest = README.read_text().split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        README.write_text(readme_with_table())
    else:
        print(table())
