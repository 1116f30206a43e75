# SPDX-License-Identifier: Apache-2.0
"""A driver for Triton on a machine without a GPU: it compiles for one as ever, and starts nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from triton.backends.compiler import GPUTarget


class Driver:
    """For ``triton.runtime.driver.set_active``. ``launched`` has the name of every kernel that would have run."""

    DEVICE = 97  # no real one: what is compiled for it stays apart in Triton's memory

    def __init__(self, arch: int = 80) -> None:
        self.target, self.launched = GPUTarget("cuda", arch, 32), []
        self.utils = SimpleNamespace(
            load_binary=lambda name, kernel, shared, device: (name, name, 32, 0, 1024),
            unload_module=lambda module: None,
            get_device_properties=lambda device: {"max_shared_mem": 160 * 1024},
        )

    def get_current_device(self) -> int:
        return self.DEVICE

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *arguments: self.launched.append(metadata.name)
