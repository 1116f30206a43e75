# SPDX-License-Identifier: Apache-2.0
"""Published weights on 20 labelled pictures: right as often as the reference packages are."""

from importlib.metadata import PackageNotFoundError, distribution

import pytest
import torch

import fastcnn
from fastcnn.cli.demo import labelled_pictures
from fastcnn.data import load_image, preprocess
from fastcnn.models import metadata


@pytest.mark.parametrize(
    ("name", "top1", "top5"),
    [
        ("mobilenet_v2", 18, 20),
        ("efficientnet_lite0", 18, 19),
        ("efficientnet_lite1", 18, 20),
        ("efficientnet_lite2", 18, 20),
    ],
)
def test_accuracy(name: str, top1: int, top5: int) -> None:
    for package in ("foolbox", metadata(name)["weights"]["imagenet"]["package"]):
        try:
            distribution(package)
        except PackageNotFoundError:
            pytest.skip(f"{package} is not installed; `make test` installs it")
    net = fastcnn.create_model(name, weights="imagenet").eval().to(memory_format=torch.channels_last)
    right = [0, 0]
    for path, label in labelled_pictures():
        pixels = preprocess(load_image(path), metadata(name))[None].to(memory_format=torch.channels_last)
        with torch.inference_mode():
            best = net(pixels)[0].topk(5).indices.tolist()
        right[0] += label == best[0]
        right[1] += label in best
    assert right == [top1, top5]
