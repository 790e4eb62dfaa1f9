"""The simulated libascendcl through its C interface, for what torch_npu does not reach."""

from __future__ import annotations

import ctypes
from typing import Any

HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, DEFAULT = 1, 2, 3, 4
SYNC, TIME_LINE = 0x1, 0x8

library = ctypes.CDLL("libascendcl.so")
library.aclGetRecentErrMsg.restype = ctypes.c_char_p


class Acl:
    """`acl.aclrtFree(pointer)`: integers are passed as 64-bit values, which every argument here accepts."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(library, name)

        def call(*arguments: Any) -> int:
            converted = [ctypes.c_uint64(a & (2**64 - 1)) if isinstance(a, int) else a for a in arguments]
            return int(function(*converted))

        return call


acl = Acl()


def message() -> str:
    """What went wrong on this thread since this was last asked."""
    return str(library.aclGetRecentErrMsg().decode())


def _created(function: str, *arguments: int) -> int:
    handle = ctypes.c_void_p()
    code = getattr(acl, function)(ctypes.byref(handle), *arguments)
    assert code == 0, (function, code, message())
    return handle.value or 0


def stream() -> int:
    """A new stream."""
    return _created("aclrtCreateStream")


def event(flags: int = SYNC) -> int:
    """A new event."""
    return _created("aclrtCreateEventExWithFlag", flags)


def device_memory(size: int) -> int:
    """The address of `size` new bytes on the device."""
    return _created("aclrtMalloc", size, 0)


def pinned_memory(size: int) -> int:
    """The address of `size` new bytes of pinned host memory."""
    return _created("aclrtMallocHost", size)


def host_bytes(address: int, size: int) -> bytes:
    """What the host sees at `address`."""
    return ctypes.string_at(address, size)


def device_bytes(address: int, size: int) -> bytes:
    """What the device holds, by a synchronous copy (which waits for no stream)."""
    buffer = ctypes.create_string_buffer(size)
    code = acl.aclrtMemcpy(buffer, size, address, size, DEVICE_TO_HOST)
    assert code == 0, (code, message())
    return buffer.raw


def event_done(handle: int) -> bool:
    """What aclrtQueryEventStatus says."""
    status = ctypes.c_int(-1)
    code = acl.aclrtQueryEventStatus(handle, ctypes.byref(status))
    assert code == 0, (code, message())
    return status.value == 1


def elapsed_ms(start: int, end: int) -> tuple[int, float]:
    """Error code and milliseconds of aclrtEventElapsedTime."""
    milliseconds = ctypes.c_float(-1)
    code = acl.aclrtEventElapsedTime(ctypes.byref(milliseconds), start, end)
    return code, milliseconds.value
