# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs: a program is recorded once per input shape and replayed, one launch for all of its kernels.

A graph reads and writes fixed memory, so inputs are copied in and outputs are copied out: a result stays what it is
when the model is called again. What is copied costs one read and one write of the inputs and the outputs. Every graph
keeps the memory of its activations, which is why only the last :data:`MOST` shapes are kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

MOST = 8  # recordings that are kept
WARM_UP = 3  # runs before a recording: kernels are compiled, workspaces allocated, algorithms chosen


class Recording:
    """One CUDA graph of a program: fixed inputs, fixed outputs, and the order of its uses among streams.

    Attributes:
        inputs: filled before :meth:`replay`.
        outputs: what the program returned; tensors among them hold the result after :meth:`replay`.
    """

    def __init__(self, program: Callable[..., Sequence[Any]], inputs: tuple[Tensor, ...]) -> None:
        self.inputs = tuple(torch.empty_like(x).copy_(x) for x in inputs)
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                program(*self.inputs)
        current.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may go on allocating: only this one's calls are recorded.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self.outputs = tuple(program(*self.inputs))
        self._copied_out = torch.cuda.Event()
        self._copied_out.record()

    def wait(self) -> None:
        """The current stream goes on when the last use, perhaps on another stream, has copied its outputs."""
        torch.cuda.current_stream().wait_event(self._copied_out)

    def replay(self) -> None:
        self._graph.replay()

    def done(self) -> None:
        """The outputs are copied on the current stream: the next use may begin behind that."""
        self._copied_out.record()

    def close(self) -> None:
        """Wait until nothing runs that reads the memory, which is freed with the recording."""
        self._copied_out.synchronize()


class _Kept(NamedTuple):
    """``weights`` are held so that no other tensor can come to lie at one of ``addresses``."""

    recording: Recording
    addresses: list[int]
    weights: list[Tensor]


class CudaGraphs(nn.Module):
    """The recordings of one program. A module, so that ``.to`` and ``load_state_dict`` of its owner reach it; no weights.

    Copies (``deepcopy``, ``pickle``) start without recordings.
    """

    def __init__(self) -> None:
        super().__init__()
        self.__setstate__({})

    def call(self, program: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Sequence[Any]:
        """``program(*inputs)`` by replay, recorded first where these shapes are new.

        Without a graph where none can be: on another device than CUDA, under a dispatch mode, inside a capture of the
        caller's. The caller sees to it that nothing is traced and no gradient is wanted.

        Raises: RuntimeError for a program that cannot be recorded, with CUDA's reason.
        """
        if not usable(inputs):
            return program(*inputs)
        with self._lock, _on(inputs[0]):
            recording = self._recording(program, inputs)
            recording.wait()
            with torch.no_grad():
                for fixed, x in zip(recording.inputs, inputs, strict=True):
                    fixed.copy_(x)
                recording.replay()
                outputs = _copied(recording, inputs)
            recording.done()
        return outputs

    def clear(self) -> None:
        """Drop the recordings, once they have run."""
        with self._lock:
            while self._recordings:
                self._recordings.popitem()[1].recording.close()

    def _recording(self, program: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Recording:
        key = (_autocast(), *((x.device, x.dtype, tuple(x.shape), x.stride()) for x in inputs))
        weights = self._weights(program)
        addresses = [weight.data_ptr() for weight in weights]
        kept = self._recordings.get(key)
        # A weight at another address has been replaced; values that changed in place are read by every replay.
        if kept is not None and kept.addresses == addresses:
            self._recordings.move_to_end(key)
            return kept.recording
        if kept is not None:
            self._recordings.pop(key).recording.close()
        while len(self._recordings) >= MOST:
            self._recordings.popitem(last=False)[1].recording.close()
        # Normal tensors whatever the caller's mode is: the next caller may be outside of inference mode.
        with torch.inference_mode(False), torch.no_grad():
            try:
                recording = Recording(program, inputs)
            except RuntimeError as error:
                shapes = ", ".join(str(list(x.shape)) for x in inputs)
                raise RuntimeError(
                    f"accelerated model: cuda_graph=True: no CUDA graph can be recorded for {shapes}: {error}"
                ) from error
            self._recordings[key] = _Kept(recording, addresses, [weight.detach() for weight in weights])
        return recording

    def _weights(self, program: fx.GraphModule) -> list[Tensor]:
        """The program's weights now, without a walk over its modules for every call."""
        if self._slots is None or self._slots[0] is not program:
            slots = [
                (tensors, name)
                for module in program.modules()
                for tensors in (module._parameters, module._buffers)
                for name, tensor in tensors.items()
                if tensor is not None
            ]
            self._slots = (program, slots)
        return [tensors[name] for tensors, name in self._slots[1]]

    def _apply(self, fn: Callable, recurse: bool = True) -> CudaGraphs:
        self.clear()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: held for name, held in self.__dict__.items() if name not in ("_lock", "_recordings", "_slots")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        self._recordings: OrderedDict[Any, _Kept] = OrderedDict()
        self._slots: tuple[fx.GraphModule, list] | None = None


def usable(inputs: tuple[Tensor, ...]) -> bool:
    """Whether this call may run as a CUDA graph of our own."""
    if torch._C._len_torch_dispatch_stack() or not all(map(_is_cuda, inputs)):
        return False
    return not torch.cuda.is_current_stream_capturing()


def _is_cuda(x: Tensor) -> bool:
    return x.is_cuda


def _on(x: Tensor) -> Any:
    return torch.cuda.device(x.device)


def _autocast() -> torch.dtype | None:
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None


def _copied(recording: Recording, inputs: tuple[Tensor, ...]) -> list[Any]:
    """The outputs in memory of the caller's; one that is returned twice is copied once, an input is the input itself."""
    known: dict[int, Any] = {id(fixed): x for fixed, x in zip(recording.inputs, inputs, strict=True)}
    for each in recording.outputs:
        if id(each) not in known:
            known[id(each)] = each.clone() if isinstance(each, Tensor) else each
    return [known[id(each)] for each in recording.outputs]
