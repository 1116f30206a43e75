# SPDX-License-Identifier: Apache-2.0
"""Names that every docstring example finds (`pytest --doctest-modules fastcnn/ops fastcnn/nn`)."""

import pytest
import torch

import fastcnn


@pytest.fixture(autouse=True)
def names_of_the_examples(doctest_namespace: dict) -> None:
    doctest_namespace.update(torch=torch, nn=torch.nn, fastcnn=fastcnn)
