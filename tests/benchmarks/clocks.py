# SPDX-License-Identifier: Apache-2.0
"""Clocks that tell what a test wants."""


class FakeClock:
    """Every call runs once and costs ``seconds``, or what ``cost`` says of it."""

    def __init__(self, seconds=1e-3, cost=None):
        self.cost = cost or (lambda call: seconds)
        self.asked = []

    def samples(self, call, count, queued):
        call()
        self.asked.append((call, count, queued))
        return [self.cost(call)] * count


class Seconds:
    """A time that moves on by ``step`` whenever it is asked."""

    def __init__(self, step=0.0):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now
