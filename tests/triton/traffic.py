# SPDX-License-Identifier: Apache-2.0
"""Bytes that Triton kernels ask for, counted in the interpreter: a model of the memory, not a measurement.

Every load and store of a program passes through the interpreter's memory builder, with the address and the mask of
each lane. From them, for each argument of each launch: bytes requested, bytes that differ, and what leaves L1 when a
program never asks twice for a 32-byte sector. It knows no time, no threads, no L2. An address outside of every argument
is an AssertionError, so that a mask that is missing shows even where the value is not used.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from triton.runtime import interpreter

SECTOR = 32


class Buffer:
    """What one launch asked of one storage; arguments that share a storage share this."""

    def __init__(self, x: torch.Tensor) -> None:
        storage = x.untyped_storage()
        self.first, self.bytes, self.itemsize = storage.data_ptr(), storage.nbytes(), x.itemsize
        self.loaded = self.stored = self.left_l1 = 0
        self._programs: dict[str, list[np.ndarray]] = {"loaded": [], "stored": []}  # what each asked for, once
        self._of_program: dict[str, list[np.ndarray]] = {"loaded": [], "stored": []}

    def holds(self, address: np.ndarray) -> bool:
        return bool((address >= self.first).all() and (address + self.itemsize <= self.first + self.bytes).all())

    def add(self, address: np.ndarray, kind: str) -> None:
        setattr(self, kind, getattr(self, kind) + self.itemsize * address.size)
        self._of_program[kind].append(address)

    def end_program(self) -> None:
        for kind, addresses in self._of_program.items():
            if addresses:
                once = np.unique(np.concatenate(addresses)) - np.uint64(self.first)
                self._programs[kind].append(once)
                addresses.clear()
                if kind == "loaded":
                    self.left_l1 += SECTOR * np.unique(once // SECTOR).size

    def _once(self, kind: str) -> int:
        return self.itemsize * np.unique(np.concatenate([np.empty(0, np.uint64), *self._programs[kind]])).size

    @property
    def loaded_once(self) -> int:
        """Bytes read at least once."""
        return self._once("loaded")

    @property
    def stored_once(self) -> int:
        return self._once("stored")


class Launch:
    """``launch["x"]``: what the kernel asked of its argument x."""

    def __init__(self, kernel: str, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        self.kernel, self.grid, self.arguments = kernel, grid, arguments
        buffers: dict[int, Buffer] = {}
        self._buffers = {}
        for name, x in arguments.items():
            if isinstance(x, torch.Tensor):
                self._buffers[name] = buffers.setdefault(x.untyped_storage().data_ptr(), Buffer(x))
        self._distinct = list(buffers.values())

    def __getitem__(self, name: str) -> Buffer:
        return self._buffers[name]

    def add(self, address: np.ndarray, kind: str) -> None:
        if address.size == 0:
            return
        buffer = next((b for b in self._distinct if b.holds(address)), None)
        assert buffer is not None, f"{self.kernel}: {kind} outside of every argument"
        buffer.add(address, kind)

    def end_program(self) -> None:
        for buffer in self._distinct:
            buffer.end_program()


class Traffic(list):
    """The launches, in order. ``traffic["kernel"]`` is the only one of that kernel."""

    def __getitem__(self, kernel: str) -> Launch:
        found = [launch for launch in self if launch.kernel == kernel]
        assert len(found) == 1, f"{len(found)} launches of {kernel} among {[launch.kernel for launch in self]}"
        return found[0]


@contextlib.contextmanager
def counted() -> Iterator[Traffic]:
    """Counts what every kernel launched in the ``with`` block asks for."""
    traffic, builder = Traffic(), interpreter.interpreter_builder
    originals = {n: getattr(builder, n) for n in ("create_masked_load", "create_masked_store", "set_grid_idx")}
    run = interpreter.InterpretedFunction.run
    running: list[Launch] = []

    def recorded_run(self, *args, grid, warmup=False, **kwargs):
        known = {name: value for name, value in kwargs.items() if name in self.arg_names}
        arguments = inspect.signature(self.fn).bind(*args, **known).arguments
        running[:] = [Launch(self.fn.__name__.strip("_"), grid, arguments)]
        traffic.append(running[0])
        run(self, *args, grid=grid, warmup=warmup, **kwargs)
        running[0].end_program()
        running.clear()

    def active(ptrs, mask) -> np.ndarray:
        return ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape).astype(bool)]

    def load(ptrs, mask, *rest):
        running[0].add(active(ptrs, mask), "loaded")
        return originals["create_masked_load"](ptrs, mask, *rest)

    def store(ptrs, value, mask, *rest):
        running[0].add(active(ptrs, mask), "stored")
        return originals["create_masked_store"](ptrs, value, mask, *rest)

    def next_program(*index):
        running[0].end_program()
        originals["set_grid_idx"](*index)

    with contextlib.ExitStack() as stack:
        for name, replacement in zip(originals, (load, store, next_program)):
            stack.enter_context(mock.patch.object(builder, name, replacement))
        stack.enter_context(mock.patch.object(interpreter.InterpretedFunction, "run", recorded_run))
        yield traffic
