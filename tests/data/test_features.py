"""Training data that a frozen network has encoded once."""

import numpy as np
import pytest
import torch

from vae_lightning.batch import Batch
from vae_lightning.data import features
from vae_lightning.data.base import Images, InMemory
from vae_lightning.data.features import Features, encode_images


def dataset(n=600, labels=True):
    x = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 2, 2).contiguous()
    return InMemory(Images(x, torch.arange(n) % 3 if labels else None))


def encode(batch):
    """Codes that say which image they are of."""
    return (batch.indices[:, None] + torch.arange(4)).to(torch.int16)


@pytest.mark.parametrize("labels", [True, False])
def test_features_keep_the_order_and_the_labels(labels):
    data = dataset(labels=labels)
    found = Features(len(data))
    assert len(found) == 600
    found.fill(*encode_images(data, encode))
    batch = found.__getitems__([7, 599, 0])
    assert isinstance(batch, Batch)
    assert batch.x.dtype == torch.int16
    assert batch.x[:, 0].tolist() == [7, 599, 0]
    assert batch.indices.tolist() == [7, 599, 0]
    assert (batch.y is None) == (not labels)
    if labels:
        assert batch.y.tolist() == [1, 2, 0]
    assert found[5].x.tolist() == [[5, 6, 7, 8]]


def test_large_features_are_kept_in_a_file(monkeypatch):
    in_memory, _ = encode_images(dataset(), encode)
    monkeypatch.setattr(features, "_IN_MEMORY", 100)
    made = []
    real = np.memmap
    monkeypatch.setattr(np, "memmap", lambda *args, **kw: made.append(kw) or real(*args, **kw))
    in_file, _ = encode_images(dataset(), encode)
    assert made == [{"shape": (600, 4)}]
    assert in_file.equal(in_memory)


def test_each_image_is_encoded_once():
    seen = []

    def counting(batch):
        seen.extend(batch.indices.tolist())
        return encode(batch)

    encode_images(dataset(), counting)
    assert seen == list(range(600))
