# SPDX-License-Identifier: Apache-2.0
"""torch.compile and torch.export see each op as one node, and two processes of DDP train through them."""

import os
import socket
import sys
from subprocess import PIPE, Popen

import pytest
import torch
from torch import nn

from fastcnn import _library
from fastcnn.ops._register import INFERENCE_ONLY
from tests.cross.adversarial import OF_A_MAP, X
from tests.cross.adversarial_uses import PICTURE, Small, small

FORWARD_OPS = {name for name in _library.SCHEMAS if not name.endswith(("_backward", "_train")) and name != "activation"}
FORWARD_OPS -= INFERENCE_ONLY  # what accelerate puts in, no layer calls


def ops_of(graph: torch.fx.Graph) -> set[str]:
    return {node.target.name().split("::")[1].split(".")[0] for node in graph.nodes if "fastcnn" in str(node.target)}


def test_the_small_net_has_every_op():
    program = torch.export.export(small(), (PICTURE,))
    assert ops_of(program.graph) == FORWARD_OPS
    torch.testing.assert_close(program.module()(PICTURE), small()(PICTURE))


@pytest.mark.parametrize("channels_last", [False, True])
def test_export_with_a_dynamic_batch(channels_last):
    x = PICTURE.contiguous(memory_format=torch.channels_last) if channels_last else PICTURE
    program = torch.export.export(small(), (x,), dynamic_shapes=({0: torch.export.Dim("N", min=1)},))
    for n in (1, 2, 5):
        batch = torch.randn(n, *x.shape[1:]).contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )
        torch.testing.assert_close(program.module()(batch), small()(batch))


@pytest.mark.parametrize("name", OF_A_MAP)
def test_compiled_in_one_graph_forward_and_backward(name):
    """aot_eager: the tracing of inductor without its code."""
    function = OF_A_MAP[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for x in (X, X.contiguous(memory_format=torch.channels_last), torch.randn(3, 4, 7, 8)):
        results = []
        for call in (function, compiled):
            leaf = x.clone().requires_grad_()
            y = call(leaf)
            y.square().sum().backward()
            results.append((y.detach(), leaf.grad))
        for wanted, got in zip(*results, strict=True):
            assert got.stride() == wanted.stride()
            torch.testing.assert_close(got, wanted)


@pytest.mark.long
def test_inductor_compiles_the_small_net_in_training_and_eval():
    for training in (False, True):
        nets = [Small().train(training) for _ in range(2)]
        nets[1].load_state_dict(nets[0].state_dict())
        for step in range(2):
            losses = []
            for call in (nets[0], torch.compile(nets[1], fullgraph=True)):
                loss = call(PICTURE).square().mean()
                loss.backward()
                losses.append(loss.item())
            assert losses[0] == pytest.approx(losses[1], rel=1e-4), f"{training=}, step {step}"
        for (key, mine), theirs in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
            torch.testing.assert_close(
                mine.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
            )
        for (key, mine), theirs in zip(nets[0].named_buffers(), nets[1].buffers(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


WORKER = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tests.cross.adversarial_uses import PICTURE, Small
rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(rank)
net = DistributedDataParallel(Small().train())
optimizer = torch.optim.SGD(net.parameters(), 0.1)
for step in range(3):
    optimizer.zero_grad()
    net(PICTURE + 0.1 * rank).square().mean().backward()
    optimizer.step()
flat = torch.cat([p.detach().flatten() for p in net.parameters()])
both = [torch.empty_like(flat) for _ in range(2)]
dist.all_gather(both, flat)
assert torch.equal(*both) and flat.isfinite().all()
dist.destroy_process_group()
print("trained")
"""


@pytest.mark.long
def test_two_processes_of_ddp_stay_equal():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    workers = [
        Popen([sys.executable, "-c", WORKER, str(rank), address], stdout=PIPE, stderr=PIPE, text=True, env=os.environ)
        for rank in (0, 1)
    ]
    for worker in workers:
        out, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors[-3000:]
        assert "trained" in out


@pytest.mark.long
def test_sync_batch_norm_is_kept():
    """convert_sync_batchnorm replaces the child; the layer then runs it as itself instead of its fused form."""
    net = nn.SyncBatchNorm.convert_sync_batchnorm(small())
    assert isinstance(net.stem[1], nn.SyncBatchNorm)
    torch.testing.assert_close(net.eval()(PICTURE), small()(PICTURE))
