"""The data of mindspeed_moe/stacks.json for the scripts of this folder; needs only the standard library.

python ci/stacks.py names                 the stacks
python ci/stacks.py shell [NAME]          variables of one stack, for eval; without a name, of the default
python ci/stacks.py for RELEASE           the stack that a release of megatron-core belongs to
python ci/stacks.py release FOLDER        the release of megatron-core that a checkout of Megatron-LM calls itself
"""

from __future__ import annotations

import runpy
import shlex
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from mindspeed_moe.stacks import DEFAULT, STACKS, stack_for  # noqa: E402


def shell(name: str) -> str:
    """Return assignments: STACK, STACK_PYTHON, STACK_TORCH, ..., lists with blanks between."""
    stack = STACKS[name]
    fields = {field: " ".join(value) if isinstance(value, tuple) else value for field, value in stack._asdict().items()}
    texts = {f"STACK_{field.upper()}": value for field, value in fields.items() if isinstance(value, str)}
    return "\n".join(f"{key}={shlex.quote(value)}" for key, value in {"STACK": name, **texts}.items())


def main(command: str, *arguments: str) -> int:
    """Print what is asked for. 2: there is no such stack or release."""
    if command == "names":
        print(*STACKS)
        return 0
    if command == "release":
        info = Path(arguments[0]) / "megatron/core/package_info.py"
        if not info.exists():
            print(f"{arguments[0]} is no checkout of Megatron-LM", file=sys.stderr)
            return 2
        print(runpy.run_path(str(info))["__version__"])
        return 0
    found = stack_for(arguments[0]) if command == "for" else STACKS.get(*arguments or (DEFAULT,))
    if found is None:
        print(f"no stack for {arguments[0]}; there are: {', '.join(STACKS)}", file=sys.stderr)
        return 2
    print(found.name if command == "for" else shell(found.name))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
