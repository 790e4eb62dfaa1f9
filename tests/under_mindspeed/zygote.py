"""A process that has imported torch, and forks one for each scenario: `python -m under_mindspeed.zygote`.

An interpreter for each would spend four fifths of its time on importing torch. Megatron, MindSpeed and the plugin are
not imported here: when that happens is what the scenarios are about. Reads a JSON object a line, answers with an exit
status.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback

# What Megatron and the plugin import of others; slow to import, and indifferent to the order.
PRELOADED = (
    "torch", "torch._dynamo", "torch._inductor.compile_fx", "torch.distributed.tensor", "torch.distributed.checkpoint",
    "torch.distributed.fsdp", "numpy", "pydantic", "packaging.version", "yaml",
)  # fmt: skip


def main() -> None:
    sys.path.pop(0)  # the working directory, which an interpreter of one's own would not have either
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(request)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(request: dict[str, object]) -> None:
    code = 1
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(str(request[name]), os.O_WRONLY | os.O_CREAT), number)
        os.environ.update(request["variables"])  # type: ignore[call-overload]
        sys.argv = ["scenario", *request["arguments"]]  # type: ignore[misc]
        importlib.import_module("under_mindspeed.scenario").main()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
