# SPDX-License-Identifier: Apache-2.0
"""The collection: what every net of it must be, measured on its reference; those that stand for files and families."""

import json
from pathlib import Path
from typing import Any

# name: reference ("plain:name": ours, in tests/models/plain), input size, classes, parameters, multiply-adds of the
# convolutions and linear layers at batch 1, tensors of the state_dict; null where no package has the net
COLLECTION: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))

# A net of each model file and an input that takes little time: every kind of block, padding and head.
REPRESENTATIVE: dict[str, tuple[int, int]] = {
    "alexnet": (65, 97),
    "alexnet_cifar": (32, 32),
    "amoebanet_a": (65, 97),
    "bit_r50x1": (65, 97),
    "bn_inception": (65, 97),
    "densenet100_k12_bc_cifar10": (32, 32),
    "densenet121": (65, 97),
    "efficientnet_b0": (65, 97),
    "efficientnet_lite0": (65, 97),
    "googlenet_aux": (97, 97),
    "googlenet_cifar": (32, 32),
    "highway_cnn": (32, 32),
    "inception_resnet_v1": (107, 107),
    "inception_resnet_v2": (75, 75),
    "inception_v3": (107, 107),
    "inception_v4": (107, 107),
    "lenet5": (32, 32),
    "lenet5_cifar": (32, 32),
    "lenet_bn": (28, 28),
    "mlp_cifar": (32, 32),
    "mnasnet0_5": (65, 97),
    "mnasnet_a1": (65, 97),
    "mobilenet_v1_x0_25": (65, 97),
    "mobilenet_v2": (65, 97),
    "mobilenet_v3_small": (65, 97),
    "nasnet_a_mobile": (97, 97),
    "nin_cifar10": (32, 32),
    "preact_resnet18": (65, 97),
    "preact_resnet20_cifar10": (32, 32),
    "preact_resnet50_timm": (65, 97),
    "resnet18": (65, 97),
    "resnet20_cifar10": (32, 32),
    "resnet_cifar_seed": (32, 32),
    "resnext29_32x4d_cifar10": (32, 32),
    "se_resnet18": (65, 97),
    "se_resnet18_tv": (65, 97),
    "se_resnext50_32x4d": (65, 97),
    "senext_block_seed": (14, 14),
    "shufflenet_v1_x0_5_g3": (65, 97),
    "shufflenet_v1_x1_0_g3": (65, 97),
    "shufflenet_v2_50": (65, 97),
    "shufflenet_v2_x0_5": (65, 97),
    "shufflenetv2b_w1": (65, 97),
    "tf_efficientnet_b0": (65, 97),
    "tf_mobilenetv3_small_075": (65, 97),
    "tiny_vgg": (64, 64),
    "vgg11_cifar": (32, 32),
    "xception": (107, 107),
    "zfnet": (224, 224),
}
# Files without one there: tens of millions of parameters more, and the blocks of files that have one.
TOO_LARGE = {"alexnet_lrn": "zfnet", "nasnet_large": "nasnet", "vgg": "vgg_cifar"}

# One of each family: these run in `make test`, the others of REPRESENTATIVE beside all nets in `make test-all`.
OF_EACH_FAMILY = {
    "alexnet_cifar",
    "amoebanet_a",
    "bit_r50x1",
    "densenet100_k12_bc_cifar10",
    "efficientnet_b0",
    "efficientnet_lite0",
    "googlenet_aux",
    "highway_cnn",
    "inception_resnet_v1",
    "inception_v3",
    "lenet5",
    "mlp_cifar",
    "mnasnet0_5",
    "mobilenet_v1_x0_25",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "nasnet_a_mobile",
    "nin_cifar10",
    "preact_resnet20_cifar10",
    "resnet18",
    "resnext29_32x4d_cifar10",
    "se_resnet18",
    "shufflenet_v1_x0_5_g3",
    "shufflenet_v2_x0_5",
    "tiny_vgg",
    "vgg11_cifar",
    "xception",
}
