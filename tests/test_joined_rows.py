"""Terms of the whole batch with several processes: values and gradients of one process."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vae_lightning.distributed import gather_rows, join_rows, own_rows

ROWS = 12

# How the rows are dealt out: the first row of every process, then the second of every process, ...
SHARES = {"even": (6, 6), "uneven": (7, 5), "all but one": (11, 1)}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def data() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(ROWS, 5)


def batch_term(z):
    """Of the joined batch, (): every row meets every other, and the order matters."""
    weights = torch.linspace(1, 2, len(z))
    return (-torch.cdist(z, z)).exp().mean() + torch.cov(z.T).pow(2).sum() + (weights @ z).sum() / 9


def per_image(z):
    return z.square().sum(1)


def gradient(module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])


def dealt_out(shares) -> list[list[int]]:
    """Positions of the rows of each process in the joined batch."""
    positions: list[list[int]] = [[] for _ in shares]
    row = 0
    for i in range(max(shares)):
        for rank, share in enumerate(shares):
            if i < share:
                positions[rank].append(row)
                row += 1
    return positions


def worker(rank, port, path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {name: measured(dealt_out(shares)[rank]) for name, shares in SHARES.items()}
    if rank == 0:
        Path(path).write_text(json.dumps(found))
    dist.barrier()  # neither ends while the other still speaks to it
    dist.destroy_process_group()


def measured(mine) -> dict:
    """What this process, which has the rows ``mine``, computes together with the other."""
    x, found = data(), {}
    joined = gather_rows(x[mine])
    found["gathered"] = bool(joined.equal(x)) and not joined.requires_grad
    found["own"] = own_rows(x[mine]).tolist() == mine

    model = DistributedDataParallel(net())
    term = batch_term(join_rows(model(x[mine])))
    term.backward()
    found["value"] = term.item()
    found["batch"] = gradient(model).tolist()

    # With per-image terms: each process has the mean over its own, weighted by its share.
    model = DistributedDataParallel(net())
    z = model(x[mine])
    weight = 2 * len(mine) / ROWS
    (weight * per_image(z).mean() + batch_term(join_rows(z))).backward()
    found["both"] = gradient(model).tolist()
    return found


@pytest.fixture(scope="module")
def measurements(tmp_path_factory):
    """Measured with two processes, which take seconds to start: once for all tests."""
    path = tmp_path_factory.mktemp("joined") / "found.json"
    mp.spawn(worker, (int(os.environ["MASTER_PORT"]), str(path)), 2)
    return json.loads(path.read_text())


@pytest.mark.parametrize("shares", SHARES)
def test_gradient_is_that_of_one_process(shares, measurements):
    found = measurements[shares]
    assert found["gathered"]
    assert found["own"]
    term = batch_term((model := net())(data()))
    term.backward()
    expected = gradient(model)
    assert found["value"] == pytest.approx(term.item(), rel=1e-6)
    assert (torch.tensor(found["batch"]) - expected).abs().max() < 1e-6
    z = (model := net())(data())
    (per_image(z).mean() + batch_term(z)).backward()
    assert (torch.tensor(found["both"]) - gradient(model)).abs().max() < 1e-6
    assert expected.abs().max() > 0.01


def test_one_process_keeps_its_rows():
    x = torch.randn(4, 3, requires_grad=True)
    assert join_rows(x) is x
    assert gather_rows(x).equal(x)
    assert not gather_rows(x).requires_grad
    assert own_rows(x).tolist() == [0, 1, 2, 3]
