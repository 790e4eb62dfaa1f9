"""How processes end, die and are refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ascend_sim.launching import RefusedError, environment
from tests.ascend_sim.tests.running import run

START = """
import torch
x = torch.arange(1024., device='npu')
torch.npu.synchronize()
print('started', flush=True)
"""


def test_host_code_that_reads_device_memory_dies_and_says_where() -> None:
    ended = run(START + "import ctypes; ctypes.string_at(x.data_ptr() + 16, 4)")
    assert ended.returncode == -signal.SIGSEGV
    assert "host code touched device memory" in ended.stderr
    assert "allocation" in ended.stderr
    assert "for aclrtMalloc" in ended.stderr


def test_host_code_dies_also_while_kernels_run() -> None:
    busy = "for _ in range(2000): x = x + 1\nimport ctypes; ctypes.memset(x.data_ptr(), 0, 4)"
    ended = run(START + busy)
    assert ended.returncode == -signal.SIGSEGV
    assert "host code touched device memory" in ended.stderr


def test_a_crash_elsewhere_is_left_as_it_is() -> None:
    ended = run(START + "import ctypes; ctypes.string_at(8, 4)")
    assert ended.returncode == -signal.SIGSEGV
    assert "simulated Ascend]" not in ended.stderr


def test_faulthandler_still_shows_the_python_line() -> None:
    for where in (
        "import faulthandler; faulthandler.enable()\n" + START,
        START + "import faulthandler; faulthandler.enable()\n",
    ):
        ended = run(where + "import ctypes; ctypes.string_at(x.data_ptr(), 4)")
        assert ended.returncode == -signal.SIGSEGV
        assert "host code touched device memory" in ended.stderr
        assert "Fatal Python error: Segmentation fault" in ended.stderr


@pytest.mark.parametrize(
    "ending", ["", "import sys; sys.exit(3)", "raise ValueError('wrong')", "import os; os._exit(4)"]
)
def test_process_ends_with_work_still_queued(ending: str) -> None:
    queued = "s = torch.npu.Stream()\nwith torch.npu.stream(s):\n  for _ in range(500): x = x + 1\n"
    ended = run(START + queued + ending, delay_us=2000)
    assert ended.returncode == {"": 0, "import sys": 3, "raise Valu": 1, "import os;": 4}[ending[:10]], ended.stderr
    assert "Segmentation" not in ended.stderr
    assert "terminate" not in ended.stderr


def test_forked_process_may_end_and_is_told_that_devices_do_not_survive() -> None:
    program = """
import os
for _ in range(200): x = x + 1
for i in range(20):
    child = os.fork()
    if child == 0:
        from torch._C import _get_accelerator
        import ctypes
        library = ctypes.CDLL("libascendcl.so")
        library.aclGetRecentErrMsg.restype = ctypes.c_char_p
        code = library.aclrtSynchronizeDevice()
        text = library.aclGetRecentErrMsg()
        os._exit(0 if code == 107002 and b"fork" in text else 1)
    assert os.waitpid(child, 0)[1] == 0, i
print("sum", float((x - torch.arange(1024.).npu()).sum().cpu()))
"""
    ended = run(START + program)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == f"sum {200.0 * 1024}"


def test_data_loader_workers_are_forked_and_work() -> None:
    program = """
from torch.utils.data import DataLoader, TensorDataset
data = TensorDataset(torch.arange(64.))
loader = DataLoader(data, 8, num_workers=2, pin_memory=True)
total = sum(float(batch[0].to("npu", non_blocking=True).sum().cpu()) for batch in loader)
print("sum", total)
"""
    ended = run(START + program)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "sum 2016.0"


def _device_folder(tmp_path: Path) -> str:
    (tmp_path / "davinci_manager").touch()
    (tmp_path / "davinci0").touch()
    return str(tmp_path)


def test_library_refuses_beside_a_real_device(tmp_path: Path) -> None:
    ended = run(START, variables={"ASCEND_SIM_ALSO_LOOK_FOR_DEVICES_IN": _device_folder(tmp_path)})
    assert ended.returncode != 0
    assert "started" not in ended.stdout
    assert "a real Ascend device is visible" in ended.stderr
    assert "davinci0" in ended.stderr


def test_launcher_refuses_beside_a_real_device_or_cann(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="real Ascend device is visible"):
        environment(base={"ASCEND_SIM_ALSO_LOOK_FOR_DEVICES_IN": _device_folder(tmp_path)})
    with pytest.raises(RefusedError, match="ASCEND_HOME_PATH"):
        environment(base={"ASCEND_HOME_PATH": "/usr/local/Ascend"})
    (tmp_path / "libascendcl.so").write_bytes(b"another library")
    with pytest.raises(RefusedError, match="LD_LIBRARY_PATH"):
        environment(base={"LD_LIBRARY_PATH": str(tmp_path)})


def test_library_that_is_picked_up_by_accident_refuses() -> None:
    ended = run(START, variables={"ASCEND_SIM": "0"})
    assert ended.returncode != 0
    assert "started" not in ended.stdout
    assert "ASCEND_SIM is not 1" in ended.stderr


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ASCEND_SIM_SEED", "many", 'ASCEND_SIM_SEED is "many"; allowed: a whole number from 0'),
        ("ASCEND_SIM_DELAY_US", "-1", 'ASCEND_SIM_DELAY_US is "-1"; allowed: microseconds from 0'),
        (
            "ASCEND_SIM_DEVICE_MEMORY",
            "1TB",
            'ASCEND_SIM_DEVICE_MEMORY is "1TB"; allowed: a positive whole number',
        ),
        ("ASCEND_SIM_FAULT", "hccl_error_at", 'hccl_error_at is ""; allowed: a whole number from 1'),
    ],
)
def test_environment_that_does_not_parse(name: str, value: str, expected: str) -> None:
    ended = run(START, variables={name: value})
    assert ended.returncode != 0
    assert "started" not in ended.stdout
    assert expected in ended.stderr


def _launch(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.ascend_sim", *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )


def test_launcher_runs_a_command_with_its_options(tmp_path: Path) -> None:
    program = START + "import os; print(torch.npu.device_count(), os.environ['ASCEND_SIM_SEED'])"
    trace = tmp_path / "timeline.json"
    ended = _launch("--seed", "5", "--npus", "3", "--trace", str(trace), sys.executable, "-c", program, RANK="")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "3 5"
    assert trace.read_text().startswith("{")


@pytest.mark.parametrize(
    ("arguments", "expected", "code"),
    [
        (["--fault", "nonsense", "true"], 'there is no fault "nonsense"', 2),
        (["no-such-program"], "there is no program no-such-program", 127),
        ([], "no COMMAND", 2),
    ],
)
def test_launcher_says_what_is_wrong_in_one_message(arguments: list[str], expected: str, code: int) -> None:
    ended = _launch(*arguments)
    assert ended.returncode == code
    assert expected in ended.stderr
    assert "Traceback" not in ended.stderr


def test_event_that_never_completes_ends_in_torch_npus_error() -> None:
    program = START + "e = torch.npu.Event(); e.record(); e.synchronize(); print('went on')"
    ended = run(program, fault="event_never_completes=1", task_timeout_s=1)
    assert ended.returncode != 0
    assert "went on" not in ended.stdout
    assert "507014" in ended.stderr
    assert "event_never_completes" in ended.stderr


def test_device_memory_setting_is_what_torch_sees() -> None:
    program = "import torch; print(torch.npu.mem_get_info(0)); torch.empty(1 << 30, device='npu')"
    ended = run(program, device_memory="256MiB")
    assert "OutOfMemoryError" in ended.stderr
    assert str((256 << 20, 256 << 20)) in ended.stdout
