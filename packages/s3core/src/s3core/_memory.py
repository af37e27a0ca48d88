"""Raw memory: writable views, bytes objects that are filled before anyone sees them, copies without the GIL."""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Callable
from typing import Any

_api = ctypes.pythonapi
_PyBUF_SIMPLE = 0


class _Py_buffer(ctypes.Structure):  # noqa: N801 (the C name)
    """https://docs.python.org/3/c-api/buffer.html#c.Py_buffer."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get_buffer = _api.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_Py_buffer), ctypes.c_int)
_get_buffer.restype = ctypes.c_int
_release_buffer = _api.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_Py_buffer),)
_release_buffer.restype = None
_new_bytes = _api.PyBytes_FromStringAndSize
_new_bytes.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t)
_new_bytes.restype = ctypes.py_object
_new_bytearray = _api.PyByteArray_FromStringAndSize
_new_bytearray.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t)
_new_bytearray.restype = ctypes.py_object
_view_memory = _api.PyMemoryView_FromMemory
_view_memory.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_view_memory.restype = ctypes.py_object
_PyBUF_WRITE = 0x200
_bytes_address = _api.PyBytes_AsString
_bytes_address.argtypes = (ctypes.py_object,)
_bytes_address.restype = ctypes.c_void_p

# Maps the pages of a range at one go. Linux 5.14: https://man7.org/linux/man-pages/man2/madvise.2.html
_MADV_POPULATE_WRITE = 23
_MAPPED_AT_ONCE = 8 * 2**20


def _find_madvise() -> Any:
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    function.restype = ctypes.c_int
    return function


_madvise = _find_madvise()


def new_buffer(size: int) -> bytearray:
    """Make a `bytearray` whose contents are still to come; `bytearray(size)` would clear it, with a fault per page."""
    buffer: bytearray = _new_bytearray(None, size)
    Destination.of_buffer(buffer).slot(0, size).map_pages()
    return buffer


class Destination:
    """A stretch of memory that the tasks of a pool fill, each its own slice, and that can be closed to all of them.

    Args:
        owner: What keeps the memory alive.
        address: Where it begins.
        size: Its length in bytes.
    """

    __slots__ = ("_address", "_owner", "size")

    def __init__(self, owner: object, address: int, size: int) -> None:
        self._owner = owner
        self._address = address
        self.size = size

    @classmethod
    def of_buffer(cls, buffer: Any) -> Destination:
        """Fill a writable buffer of the caller's.

        Args:
            buffer: A `bytearray`, a writable C-contiguous `memoryview`, an array, a tensor's memory, ….

        Raises:
            TypeError: The buffer is read-only, not contiguous, or no buffer at all.
        """
        view = memoryview(buffer)
        if view.readonly:
            raise TypeError(f"a read-only {type(buffer).__name__} cannot be read into; pass a writable buffer")
        if not view.c_contiguous:
            raise TypeError(f"a {type(buffer).__name__} that is not C-contiguous cannot be read into")
        if view.nbytes == 0:
            return cls(view, 0, 0)
        flat = view.cast("B")
        return cls(flat, ctypes.addressof(ctypes.c_char.from_buffer(flat)), view.nbytes)

    @classmethod
    def of_new_bytes(cls, size: int) -> tuple[Destination, bytes]:
        """Make a `bytes` of `size` whose contents are still to come; nobody else may see it until they have.

        The C API allows exactly this between making and publishing an object
        (https://docs.python.org/3/c-api/bytes.html#c.PyBytes_FromStringAndSize). It saves the copy from a `bytearray`.
        """
        if size == 0:
            return cls(b"", 0, 0), b""
        new = _new_bytes(None, size)
        return cls(new, _bytes_address(new), size), new

    def release(self) -> None:
        """Let go of the caller's buffer, so that it can be resized or unmapped at once; all slots are full or closed.

        Without this a task that is just ending, or the traceback of an error, would hold it a little longer.
        """
        if isinstance(self._owner, memoryview):
            self._owner.release()

    def view(self) -> memoryview:
        """All of the memory, writable; it does not keep the owner alive."""
        return _view_memory(self._address, self.size, _PyBUF_WRITE) if self.size else memoryview(b"")

    def slot(self, start: int, end: int) -> Slot:
        """The slice `[start, end)` for one task to fill."""
        return Slot(self._owner, self._address + start, end - start)


class Slot:
    """One task's slice of a `Destination`; after `close()` not one more byte goes into it.

    That matters when a read fails or is interrupted: the caller gets its buffer back at once, while a task may still
    sit in a call to the network.
    """

    __slots__ = ("_address", "_gate", "_interrupt", "_lock", "_open", "_owner", "filled", "size")

    def __init__(self, owner: object, address: int, size: int) -> None:
        self._owner = owner
        self._address = address
        self._lock = threading.Lock()  # Held by whoever writes to the memory.
        self._gate = threading.RLock()  # Reentrant, because the garbage collector may call `stop` in a section of it.
        self._interrupt: Callable[[], None] | None = None
        self._open = True
        self.size = size
        self.filled = 0

    def write(self, chunk: Any) -> bool:
        """Copy a chunk behind the last one, without the GIL.

        Args:
            chunk: Any contiguous buffer.

        Returns:
            False when the slot was closed: stop the transfer.

        Raises:
            OverflowError: More bytes came than were asked for.
        """
        source = _Py_buffer()
        if _get_buffer(chunk, source, _PyBUF_SIMPLE):
            raise BufferError("the chunk is not a contiguous buffer")
        try:
            with self._lock:
                if not self._open:
                    return False
                if self.filled + source.len > self.size:
                    raise OverflowError(f"{self.filled + source.len} bytes came for a range of {self.size}")
                ctypes.memmove(self._address + self.filled, source.buf, source.len)
                self.filled += source.len
                return True
        finally:
            _release_buffer(source)

    def receive(self, read: Callable[[memoryview], int], most: int, interrupt: Callable[[], None]) -> int | None:
        """Have bytes read straight into the place behind the last ones.

        Args:
            read: Fills as much of a view as it can, and may wait for the network.
            most: The most bytes to read, within the slot.
            interrupt: Called by a thread that closes the slot: has a `read` that waits return or fail at once.

        Returns:
            How many bytes came; None when the slot was closed: stop the transfer.
        """
        with self._lock:
            with self._gate:
                if not self._open:
                    return None
                self._interrupt = interrupt
            try:
                count = read(
                    _view_memory(self._address + self.filled, min(most, self.size - self.filled), _PyBUF_WRITE)
                )
            finally:
                with self._gate:
                    self._interrupt = None
            self.filled += count
            return count if self._open else None

    def map_pages(self) -> None:
        """Have the system map the pages that are about to be filled, where it can; a fault for each costs more.

        1 GiB of new memory took 0.39 s of CPU time to fill so, and 0.60 s by faults; where all of its pages are mapped,
        asking takes 0.03 s.
        """
        start = -(-self._address // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (self._address + self.size) // mmap.PAGESIZE * mmap.PAGESIZE
        for low in range(start, end, _MAPPED_AT_ONCE):
            with self._lock:  # not for longer, since `close` waits for it, after Ctrl-C too
                if not self._open or _madvise is None:
                    return
                if _madvise(low, min(_MAPPED_AT_ONCE, end - low), _MADV_POPULATE_WRITE):
                    return  # An older kernel refuses, which is no loss.

    def restart(self) -> None:
        """Begin again from the slot's first byte."""
        self.filled = 0

    def stop(self) -> None:
        """Let no further byte in soon; waits for nothing, so that it is safe in a destructor."""
        with self._gate:
            self._open = False
            if self._interrupt is not None:
                self._interrupt()

    def close(self) -> None:
        """Let no further byte in; returns when none is on its way."""
        self.stop()
        with self._lock:
            pass

    @property
    def is_open(self) -> bool:
        """Whether bytes are still wanted."""
        return self._open
