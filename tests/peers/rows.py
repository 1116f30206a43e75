# SPDX-License-Identifier: Apache-2.0
"""A net that every engine computes at once, engines that need no package, and rows of made-up times."""

import torch
from torch import nn

from fastcnn.analysis.peers.engines import EAGER, FASTCNN, OPENVINO, OPENVINO_STREAMS, ORT, Engine
from fastcnn.analysis.peers.measure import Row

SIZE = (3, 12, 12)


def net() -> nn.Module:
    """Its batch norm has statistics of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(8)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
        ).eval()


def off_by(error: float) -> Engine:
    """An engine whose output is wrong by ``error``, of its largest value."""

    def make(case):
        def call():
            y = case.model(case.x)
            return y + error * y.abs().max()

        return call

    return Engine(make)


def row(model="torchvision:mobilenet_v2", ours=2.0, dtype="float32", batch=1, peak=1e4, **more) -> Row:
    """fastcnn takes ``ours`` milliseconds, ONNX Runtime 3, OpenVINO 4 and as two streams 2.5, eager 20."""
    times = {FASTCNN: ours, ORT: 3.0, OPENVINO: 4.0, OPENVINO_STREAMS: 2.5, EAGER: 20.0}
    found = Row(model, batch, [3, 224, 224], dtype, 2, macs=500_000_000, milliseconds=times, peak_gflops=peak, **more)
    found.quartiles = {label: (time - 0.1, time + 0.2) for label, time in times.items()}
    found.minimum = {label: time - 0.25 for label, time in times.items()}
    found.errors = dict.fromkeys(times, 1e-6)
    return found
