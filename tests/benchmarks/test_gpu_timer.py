# SPDX-License-Identifier: Apache-2.0
"""The protocol of `make bench-gpu` on clocks of our own: who is timed when, how long, what is kept."""

import pytest
import torch

from benchmarks.gpu import timer
from benchmarks.gpu.timer import Budget, CudaClock, HostClock, copy_bandwidth, interleave
from tests.benchmarks.clocks import FakeClock, Seconds


def test_a_budget_runs_out_and_is_shared():
    seconds = Seconds()
    budget = Budget(10.0, seconds)
    half = budget.share(0.5)
    seconds.now = 6.0
    assert (budget.left, half.left) == (4.0, -1.0)


def test_rounds_begin_with_another_implementation_each():
    first, second = (lambda: None), (lambda: None)
    clock = FakeClock()
    timings = interleave({"first": first, "second": second}, clock, Budget(60), queued=True, rounds=4, count=3)
    rounds = [call for call, count, _ in clock.asked if count == 3][2:]  # the warm-up asks each for three too
    assert rounds == [first, second, second, first, first, second, second, first]
    assert all(queued for *_, queued in clock.asked)
    assert [len(t.rounds) for t in timings.values()] == [4, 4]


def test_a_round_keeps_the_median_of_its_calls():
    class Drifting(FakeClock):
        def samples(self, call, count, queued):
            super().samples(call, count, queued)
            return [1.0, 9.0, 2.0][:count]

    timing = interleave({"it": lambda: None}, Drifting(), Budget(60), queued=False, rounds=5)["it"]
    assert timing.rounds == [2.0] * 5


@pytest.mark.parametrize(("seconds", "calls"), [(1e-4, 25), (0.1, 13), (2.0, 3)])
def test_slow_calls_warm_up_less_often(seconds, calls):
    clock = FakeClock(seconds)
    interleave({"it": lambda: None}, clock, Budget(60), queued=True, rounds=0)
    assert sum(count for _, count, _ in clock.asked) == calls


def test_a_budget_that_is_over_leaves_the_least_rounds():
    timing = interleave({"it": lambda: None}, FakeClock(), Budget(-1.0), queued=True, rounds=11)["it"]
    assert len(timing.rounds) == timer.LEAST_ROUNDS


def test_nothing_to_time_is_no_error():
    assert interleave({}, FakeClock(), Budget(60), queued=True) == {}


def test_the_roof_counts_reads_and_writes_of_the_best_copy():
    assert copy_bandwidth(FakeClock(1e-3), "cpu", size=1 << 20) == pytest.approx(2 * (1 << 20) / 1e-3)


def test_the_hosts_clock_calls_as_often_as_asked():
    calls = []
    found = HostClock().samples(lambda: calls.append(1), 4, False)
    assert len(calls) == len(found) == 4
    assert min(found) >= 0


@pytest.mark.parametrize("queued", [True, False])
def test_the_cuda_clock_flushes_before_each_call_and_records_around_it(monkeypatch, queued):
    """The order of what it asks of CUDA, on a stand-in."""
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")

        def elapsed_time(self, end):
            return 2.5

    class Cache:
        def zero_(self):
            log.append("flush")

    def empty(size, dtype, device):
        assert (size, dtype, device) == (100 << 20, torch.uint8, "cuda")
        return Cache()

    properties = type("Properties", (), {"L2_cache_size": 50 << 20})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(timer.torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("sleep"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    found = CudaClock().samples(lambda: log.append("call"), 2, queued)
    assert log == ["flush", "sleep" if queued else "wait", "event", "call", "event"] * 2 + ["wait"]
    assert found == [2.5e-3, 2.5e-3]
