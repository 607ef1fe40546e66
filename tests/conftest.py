"""Shared by all tests: one thread per worker, a small data set, and where real data may be."""

import os
import sys

# Two test processes with two threads each wait for one another most of the time.
os.environ["OMP_NUM_THREADS"] = "1"
# Below the ports that other programs are given, so that test processes do not meet on one.
os.environ["MASTER_PORT"] = str(20_000 + os.getpid() % 10_000)
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

from pathlib import Path

import pytest
import torch

from vae_lightning.data import Batch, ImageData
from vae_lightning.data.base import Images, InMemory

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items):
    """Mark tests as slow, but those of the parameters that ``slow_except`` names."""
    for item in items:
        marker = item.get_closest_marker("slow_except")
        if marker is not None and not {*marker.args} & {*item.callspec.id.split("-")}:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Tests share drawn digits, and leave the user's own cache alone."""
    folder = tmp_path_factory.getbasetemp().parent / "cache"
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _processes_have_parted():
    """What a training with several processes leaves in this one, others would take for theirs."""
    names = "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"
    before = {name: os.environ.get(name) for name in names}
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(autouse=True)
def _trackers_have_ended():
    """A W&B run belongs to a process, and the next test would continue it."""
    yield
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.finish()


@pytest.fixture(scope="session")
def parse_only():
    """`vae_lightning.cli.command.Command` that ends when its options are parsed."""
    from vae_lightning.cli.command import Command

    class ParseOnly(Command):
        def before_instantiate_classes(self):
            pass

        def instantiate_classes(self):
            pass

        def _run_subcommand(self, subcommand):
            pass

    return ParseOnly


@pytest.fixture
def mnist_root():
    """The folder of real MNIST; the test is skipped without."""
    root = os.environ.get("VAE_DATA_ROOT")
    if not root or not (Path(root) / "MNIST" / "raw").is_dir():
        pytest.skip("needs VAE_DATA_ROOT with MNIST in it")
    return Path(root)


class Blobs(ImageData):
    """Small images with a bright square whose place is the class; nothing to download or draw."""

    image_shape = (1, 8, 8)
    num_classes = 4

    def __init__(self, size: int = 64, **kwargs) -> None:
        super().__init__(**{"batch_size": 16, **kwargs})
        self.size = size

    def split_size(self, split):
        return self.size

    def load(self, split):
        generator = torch.Generator().manual_seed(len(split))
        y = torch.arange(self.size) % 4
        x = torch.randint(0, 100, (self.size, 1, 8, 8), generator=generator)
        for i, label in enumerate(y.tolist()):
            row, column = divmod(label, 2)
            x[i, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 155
        return InMemory(Images(x.to(torch.uint8), y))


@pytest.fixture
def blobs():
    return Blobs


@pytest.fixture
def batch():
    """A batch of the images of `Blobs`, as models get them."""
    data = Blobs()
    data.setup("fit")
    raw = data.datasets["train"].__getitems__(range(16))
    return Batch(raw.x / 255, raw.y, raw.indices)
