"""What each of several processes runs: one ``vae`` command after the other, from a JSON file.

Starting processes takes longer than what the tests let them do. The classes are those of a user.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from vae_lightning.__main__ import main
from vae_lightning.nets import ConvEncoder


class BatchNormEncoder(ConvEncoder):
    """An encoder with buffers."""

    def __init__(self, image_shape, features, cond_features=0, channels=(4, 8)):
        super().__init__(image_shape, features, cond_features, channels)
        self.norm = nn.BatchNorm1d(features)

    def forward(self, x, condition=None):
        return self.norm(super().forward(x, condition))


class FailingEncoder(ConvEncoder):
    """An encoder that raises an error in the second of the processes."""

    def forward(self, x, condition=None):
        if dist.is_initialized() and dist.get_rank() == 1:
            raise ValueError("the second process cannot go on")
        return super().forward(x, condition)


class CPUFSDP(FSDPStrategy):
    """FSDP, which Lightning refuses on a CPU by its exact class, and torch unless it is told."""

    def _setup_model(self, model):
        cpu = torch.device("cpu")
        return FullyShardedDataParallel(
            model, sharding_strategy=self.sharding_strategy, device_id=cpu, **self.kwargs
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for command in json.loads(Path(sys.argv[1]).read_text()):
        main(command)
