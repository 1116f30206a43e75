# SPDX-License-Identifier: Apache-2.0
"""The models of torchvision and timm that ``accelerate`` is proved on: every reference of the collection, one of each
kind and width, and what else people deploy.

>>> len(NETS) >= 64, sum(net.short for net in NETS)
(True, 20)
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastcnn.reference import reference_model
from tests.parity import randomise

NO_AUX = {"aux_logits": False, "init_weights": False}
NO_WEIGHTS = {"weights": None, "weights_backbone": None}


class Net(NamedTuple):
    """A model and what accelerate must make of it.

    ``reference`` is as in metadata.json, ``part`` a submodule of it. ``folded`` batch norms at least must be gone, and
    ``kept`` may stand, never after a convolution: ``why``. Tests run ``size`` x ``size`` pixels, the table of speed
    ``native``. ``short`` ones are in ``make test``.
    """

    reference: str
    size: int = 64
    native: int = 224
    folded: int = 0
    kept: int = 0
    why: str = ""
    short: bool = False
    kwargs: Mapping[str, Any] = MappingProxyType({})
    part: str = ""

    @property
    def name(self) -> str:
        """As a test's id and a table's row: unique."""
        options = "-".join(f"{key}_{value}" for key, value in self.kwargs.items() if key == "width_mult")
        return "-".join(
            each for each in (self.reference.replace(":", "-").replace(".", "-"), options, self.part) if each
        )

    def build(self) -> nn.Module:
        """In eval mode, random weights; batch norm and all that starts as a constant moved so that nothing hides."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            model = reference_model(self.reference, **self.kwargs)
            model = model.get_submodule(self.part) if self.part else model
            for parameter in model.parameters():
                if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()) or not parameter.any():
                    _disturb(parameter)
            randomise(model, torch.randn(4, 3, self.size, self.size))
        return model

    def pixels(self, batch: int, native: bool = False) -> Tensor:
        size = self.native if native else self.size
        return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def _disturb(parameter: Tensor) -> None:
    """Layer scales of 1e-6, gains and biases of 0, scales of 1: what is multiplied by them would not show."""
    value = float(parameter.flatten()[0])
    if parameter.dim() == 4 and parameter.shape[1] * parameter.shape[2] > 1:
        parameter.normal_(0.0, parameter[0].numel() ** -0.5)
    elif value == 0.0:
        parameter.normal_(0.0, 0.1)
    else:
        parameter.uniform_(0.5, 1.0)


def _tv(name: str, size: int = 64, **more: Any) -> Net:
    return Net(f"torchvision:{name}", size, **more)


def _timm(name: str, size: int = 64, **more: Any) -> Net:
    return Net(f"timm:{name}", size, **more)


PRE = "pre-activation: it follows a sum or a concatenation"
BRANCH = "it is a branch of its own, beside convolutions of the same input"
SUM = "it follows a sum, or stands in front of the classifier"
ATTENTION = "it follows the sum in front of an attention block"

NETS = [
    # references of the collection
    _tv("alexnet"),
    _tv("vgg11"),
    _tv("vgg11_bn", folded=8),
    _tv("googlenet", folded=57, kwargs=NO_AUX),
    _tv("inception_v3", 96, folded=94, native=299, kwargs=NO_AUX),
    _timm("inception_v4", 96, folded=149, native=299),
    _timm("inception_resnet_v2", 96, folded=204, native=299),
    _tv("resnet18", folded=20, short=True),
    _tv("resnet50", folded=53),
    _timm("resnetv2_50", folded=32, kept=4, why=PRE, short=True),
    _tv("resnext50_32x4d", folded=53),
    _timm("legacy_seresnet18", folded=20),
    _timm("seresnet18", folded=20, short=True),
    _timm("legacy_seresnext50_32x4d", folded=53),
    _timm("seresnext50_32x4d", folded=53),
    _timm("legacy_senet154", folded=157),
    _tv("densenet121", folded=59, kept=1, why=PRE),
    _tv("densenet161", folded=79, kept=82, why=PRE),
    _timm("legacy_xception", 96, folded=40, native=299),
    _timm("mobilenetv1_100", folded=27, short=True),
    _tv("mobilenet_v2", folded=52, short=True),
    _tv("mobilenet_v2", folded=52, kwargs={"width_mult": 0.35}),
    _tv("mobilenet_v3_large", folded=46),
    _tv("mobilenet_v3_small", folded=34, short=True),
    _timm("tf_mobilenetv3_large_100", folded=46),
    _timm("tf_mobilenetv3_small_075", folded=34, short=True),
    _timm("tf_mobilenetv3_large_minimal_100", folded=46),
    _timm("mobilenetv3_large_100", folded=46),
    _timm("mobilenetv3_small_050", folded=34),
    _tv("mnasnet0_5", folded=52, short=True),
    _tv("mnasnet1_0", folded=52),
    _timm("semnasnet_100", folded=49),
    _timm("mnasnet_small", folded=46),
    _tv("shufflenet_v2_x0_5", folded=56, short=True),
    _tv("shufflenet_v2_x1_0", folded=56),
    _tv("shufflenet_v2_x2_0", folded=56),
    _timm("nasnetalarge", 96, folded=264, native=331),
    _tv("efficientnet_b0", folded=49, short=True),
    _tv("efficientnet_b4", folded=96, native=380),
    _timm("tf_efficientnet_b0", folded=49),
    _timm("tf_efficientnet_lite0", folded=49, short=True),
    _timm("tf_efficientnet_lite4", folded=91, native=300),
    _timm("resnetv2_50x1_bit", native=448),
    # others
    _tv("squeezenet1_0"),
    _tv("squeezenet1_1", short=True),
    _tv("wide_resnet50_2", folded=53),
    _tv("regnet_x_400mf", folded=71, short=True),
    _tv("regnet_y_400mf", folded=53),
    _tv("efficientnet_v2_s", folded=110, native=384),
    _tv("convnext_tiny"),
    _tv("segmentation.lraspp_mobilenet_v3_large", folded=47, kwargs=NO_WEIGHTS, short=True),
    _tv("segmentation.deeplabv3_mobilenet_v3_large", folded=53, kwargs=NO_WEIGHTS),
    _tv("detection.ssdlite320_mobilenet_v3_large", folded=58, native=320, kwargs=NO_WEIGHTS, part="backbone"),
    _timm("repvgg_a2", folded=44, kept=17, why=BRANCH),
    _timm("mobileone_s0", folded=191, kept=35, why=BRANCH),
    _timm("repvit_m0_9", folded=83, kept=25, why=SUM),
    _timm("ghostnet_100", folded=80, short=True),
    _timm("ghostnetv2_100", folded=122),
    _timm("mixnet_s", folded=49, short=True),
    _timm("fbnetc_100", folded=65),
    _timm("fbnetv3_b", folded=87),
    _timm("tinynet_a", folded=58),
    _timm("lcnet_050", folded=27, short=True),
    _timm("lcnet_100", folded=27),
    _timm("hardcorenas_a", folded=34),
    _timm("rexnet_100", folded=62),
    _timm("mobilenetv4_conv_small", folded=46, short=True),
    _timm("mobilenetv4_hybrid_medium", folded=88, kept=4, why=ATTENTION),
    _timm("edgenext_small"),
    _timm("convnext_atto", short=True),
    _timm("efficientnetv2_rw_t", folded=107),
    _timm("tf_efficientnetv2_s", folded=110, native=300),
    _timm("res2net50_26w_4s", folded=85),
    _timm("dla34", folded=37),
    _timm("nfnet_l0"),
    _timm("selecsls42b", folded=41),
    _timm("ese_vovnet19b_dw", folded=23),
    _timm("cspresnet50", folded=55),
    _timm("skresnet18", folded=36, short=True),
    _timm("resnest14d", folded=23),
    _timm("ecaresnet26t", folded=31),
    _timm("dpn68", folded=45, kept=27, why=PRE),
    _timm("hrnet_w18_small", folded=91),
    _timm("xception41", 96, folded=84, native=299),
    _timm("resnet18d", folded=22),
    _timm("hgnetv2_b0", folded=42),
    _timm("efficientvit_b0", folded=26),
    _timm("starnet_s1", folded=35, kept=1, why=SUM),
]
