import math

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from vae_lightning import VAE
from vae_lightning.data import Batch
from vae_lightning.data.base import Images, InMemory, Joined, split_indices
from vae_lightning.data.sampling import ShardSampler, evaluation_batch_size
from vae_lightning.errors import UserError
from vae_lightning.randomness import Noise
from vae_lightning.training.module import LitVAE


def loaded(data, stage="fit"):
    data.prepare_data()
    data.setup(stage)
    return data


@pytest.mark.parametrize("n", [1, 7, 64, 100])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_covers_every_image_once(n, processes):
    seen = []
    for rank in range(processes):
        sampler = ShardSampler(range(n), processes, rank, shuffle=False)
        indices = list(sampler)
        assert len(indices) == len(sampler)
        seen += indices
    assert sorted(seen) == list(range(n))


@pytest.mark.parametrize(("n", "processes"), [(64, 1), (101, 2), (7, 3)])
def test_training_gives_every_process_as_many_images(n, processes):
    samplers = [ShardSampler(range(n), processes, rank, shuffle=True) for rank in range(processes)]
    shards = [list(sampler) for sampler in samplers]
    assert {len(shard) for shard in shards} == {n // processes} == {len(s) for s in samplers}
    together = [index for shard in shards for index in shard]
    assert len(set(together)) == len(together)


def test_processes_together_see_the_batches_of_one():
    one = list(ShardSampler(range(64), 1, 0, shuffle=True, seed=4))
    two = [list(ShardSampler(range(64), 2, rank, shuffle=True, seed=4)) for rank in range(2)]
    for start in range(0, 64, 16):
        half = start // 2
        joined = two[0][half : half + 8] + two[1][half : half + 8]
        assert sorted(joined) == sorted(one[start : start + 16])


def test_order_is_a_function_of_seed_and_epoch():
    sampler = ShardSampler(range(50), 1, 0, shuffle=True, seed=1)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(ShardSampler(range(50), 1, 0, shuffle=True, seed=2)) != first


def test_batches_are_cut_at_once(blobs):
    data = loaded(blobs())
    batches = list(data.train_dataloader())
    assert [len(batch.x) for batch in batches] == [16] * 4
    for batch in batches:
        assert isinstance(batch, Batch)
        assert batch.x.dtype == torch.uint8
        images = data.datasets["train"].images
        assert batch.x.equal(images.x[batch.indices])
        assert batch.y.equal(images.y[batch.indices])


@pytest.mark.parametrize("batch_size", [16, 7])
def test_train_on_val_is_all_images_once_per_epoch(blobs, batch_size):
    data, apart = loaded(blobs(train_on_val=True, batch_size=batch_size)), loaded(blobs())
    parts = [apart.datasets[split].images for split in ("train", "val")]
    x, y = (torch.cat(both) for both in zip(*parts, strict=True))
    orders = []
    for epoch in range(2):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        index = torch.cat([batch.indices for batch in batches])
        assert sorted(index.tolist()) == list(range(128))
        assert torch.cat([batch.x for batch in batches]).equal(x[index])
        assert torch.cat([batch.y for batch in batches]).equal(y[index])
        for batch in batches:  # the bright square is where the label says
            quarters = batch.x.float().unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean((1, 3, 5))
            assert quarters.flatten(1).argmax(1).equal(batch.y)
        assert {len(batch.x) for batch in batches[:-1]} == {batch_size}
        orders.append(index)
    assert not orders[0].equal(orders[1])


def test_train_on_val_leaves_validation_and_test_as_they_are(blobs):
    data, apart = blobs(train_on_val=True), blobs()
    for split in ("val", "test"):
        loaders = []
        for d in (data, apart):
            loaded(d, {"val": "validate"}.get(split, split))
            loaders.append(getattr(d, f"{split}_dataloader")())
        for ours, other in zip(*loaders, strict=True):
            assert all(a.equal(b) for a, b in zip(ours, other, strict=True))


def test_joined_batches_of_either_part_or_both():
    x = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1)
    for y in (None, 10 * torch.arange(7)):
        images = Images(x, y)
        parts = [InMemory(images.take(torch.arange(4))), InMemory(images.take(torch.arange(4, 7)))]
        joined = Joined(*parts)
        assert len(joined) == 7
        for indices in ([1, 3], [6, 4], [5, 0, 4, 2]):
            batch = joined.__getitems__(indices)
            assert sorted(batch.indices.tolist()) == sorted(indices)
            assert batch.x.flatten().tolist() == batch.indices.tolist()
            assert batch.y is None if y is None else batch.y.equal(10 * batch.indices)
        assert joined[5].x.item() == 5


@pytest.mark.parametrize("train_on_val", [False, True])
@pytest.mark.parametrize("binarization", ["none", "threshold", "dynamic"])
def test_mean_image_is_that_of_what_is_trained_on(blobs, binarization, train_on_val):
    images = {"train": torch.randint(0, 256, (1203, 1, 8, 8), dtype=torch.uint8)}
    images["val"] = torch.randint(0, 256, (302, 1, 8, 8), dtype=torch.uint8)
    data = blobs(binarization=binarization, train_on_val=train_on_val)
    data.load = lambda split: InMemory(Images(images[split], None))
    mean = loaded(data).mean_image()
    x = torch.cat(list(images.values())) if train_on_val else images["train"]
    expected = (x > 127).double() if binarization == "threshold" else x.double() / 255
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, expected.mean(0).float())


def test_dynamic_images_have_the_mean_image_on_average(blobs):
    """To 4.5 standard errors."""
    data = loaded(blobs(binarization="dynamic"))
    images = data.datasets["train"].images.x
    epochs = [data.preprocess(images, torch.arange(64), 0, "train", epoch) for epoch in range(200)]
    p = images.double() / 255
    error = (p * (1 - p)).sum(0).sqrt() / 64 / math.sqrt(200)
    difference = torch.stack(epochs).double().mean((0, 1)) - data.mean_image()
    assert (difference.abs() < 4.5 * error).all()


def test_loading_leaves_the_global_generator_alone(blobs):
    data = loaded(blobs())
    before = torch.get_rng_state()
    list(data.train_dataloader())
    assert torch.get_rng_state().equal(before)


def preprocess(data, epoch=0, index=None):
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(400, -1, -1, -1)
    index = torch.arange(400) if index is None else index
    return data.preprocess(x, index, 0, "train", epoch)


def test_gray(blobs):
    x = preprocess(blobs(binarization="none"))
    assert x[0].flatten().tolist() == pytest.approx([i / 255 for i in range(256)])


def test_threshold(blobs):
    x = preprocess(blobs(binarization="threshold"))
    assert x[0].flatten().tolist() == [0.0] * 128 + [1.0] * 128


def test_dynamic_is_one_with_the_probability_of_the_gray_value(blobs):
    x = preprocess(blobs(binarization="dynamic"))
    assert set(x.unique().tolist()) == {0.0, 1.0}
    p = torch.arange(256) / 255
    error = (x.mean(0).flatten() - p).abs()
    assert (error <= 4.5 * (p * (1 - p) / 400).sqrt() + 1e-9).all()
    assert x[:, 0, 0, 0].max() == 0  # black stays black, white stays white
    assert x[:, 0, -1, -1].min() == 1


def test_dynamic_is_drawn_anew_each_epoch_and_is_a_function_of_the_image(blobs):
    data = blobs(binarization="dynamic")
    first = preprocess(data)
    assert preprocess(data).equal(first)
    assert not preprocess(data, epoch=1).equal(first)
    assert preprocess(data, index=torch.arange(400).flip(0)).equal(first.flip(0))


def test_dynamic_evaluation_never_changes(blobs):
    """Some codebases redraw the test set whenever it is looked at."""
    data = loaded(blobs(binarization="dynamic", batch_size=5))
    passes = [
        torch.cat([data.on_after_batch_transfer(b, 0).x for b in data.val_dataloader()])
        for _ in range(2)
    ]
    assert passes[0].equal(passes[1])
    other_batches = loaded(blobs(binarization="dynamic", batch_size=64))
    whole = [other_batches.on_after_batch_transfer(b, 0).x for b in other_batches.val_dataloader()]
    assert torch.cat(whole).equal(passes[0])


class Watcher(pl.Callback):
    """What the model gets to see, and with which noise, by stage and epoch."""

    def __init__(self) -> None:
        self.seen = {}

    def _see(self, stage, trainer, pl_module, batch):
        order = batch.indices.argsort()
        parts = self.seen.setdefault((stage, trainer.current_epoch), [])
        parts.append((batch.indices[order], batch.x[order]))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._see("train", trainer, pl_module, batch)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self._see("val", trainer, pl_module, batch)

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self._see("test", trainer, pl_module, batch)

    def images(self, stage, epoch):
        parts = self.seen[stage, epoch]
        x = torch.cat([x for _, x in parts])
        return x[torch.cat([index for index, _ in parts]).argsort()]


class NoiseWatcher(VAE):
    """Remembers the first noise of every batch."""

    def terms(self, x, condition, noise):
        epsilon = Noise(torch.zeros(1, dtype=torch.int64), *noise.keys).normal(1).item()
        self.__dict__.setdefault("epsilons", {}).setdefault(noise.keys[1], []).append(epsilon)
        return super().terms(x, condition, noise)


def quiet_trainer(tmp_path, *callbacks):
    return pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
    )


def watched_fit(data, tmp_path, seed=0):
    torch.manual_seed(seed)
    watcher, model = Watcher(), NoiseWatcher(image_shape=(1, 8, 8))
    quiet_trainer(tmp_path, watcher).fit(LitVAE(model), datamodule=data)
    return watcher, model.epsilons


def test_binarization_in_a_training(blobs, tmp_path):
    watcher, _ = watched_fit(blobs(binarization="dynamic"), tmp_path)
    assert not watcher.images("train", 0).equal(watcher.images("train", 1))
    assert watcher.images("val", 0).equal(watcher.images("val", 1))


def test_binarization_in_another_training(blobs, tmp_path):
    """Evaluation is on the same images whatever the seed, so that runs can be compared."""
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        watcher, model = Watcher(), LitVAE(VAE(image_shape=(1, 8, 8)))
        trainer, data = quiet_trainer(tmp_path, watcher), blobs(binarization="dynamic")
        trainer.fit(model, datamodule=data)
        trainer.test(model, datamodule=data, verbose=False)
        runs.append(watcher)
    first, again, other = runs
    for stage, epoch in (("val", 0), ("val", 1), ("test", 2)):
        x = first.images(stage, epoch)
        assert set(x.unique().tolist()) == {0.0, 1.0}
        assert again.images(stage, epoch).equal(x)
        assert other.images(stage, epoch).equal(x)
    for epoch in range(2):
        x = first.images("train", epoch)
        assert again.images("train", epoch).equal(x)
        assert not other.images("train", epoch).equal(x)


def test_noise_in_a_training(blobs, tmp_path):
    _, epsilons = watched_fit(blobs(), tmp_path)
    assert len(set(epsilons["train"])) == 8  # new in every step of both epochs
    assert len(set(epsilons["val"])) == 1  # always the same
    _, others = watched_fit(blobs(), tmp_path, seed=1)
    assert set(epsilons["train"]).isdisjoint(others["train"])  # another with another seed
    assert epsilons["val"] == others["val"]


def test_splits_are_seeded_and_disjoint():
    train, val = split_indices(100, 10, seed=0)
    assert len(train) == 90
    assert sorted(torch.cat([train, val]).tolist()) == list(range(100))
    again, _ = split_indices(100, 10, seed=0)
    other, _ = split_indices(100, 10, seed=1)
    assert train.equal(again)
    assert not train.equal(other)


@pytest.mark.parametrize("val_size", [0, -1, 100])
def test_a_split_must_leave_something(val_size):
    with pytest.raises(UserError, match=r"data\.val_size must be between 1 and 99"):
        split_indices(100, val_size, 0)


@pytest.mark.parametrize("kwargs", [{"batch_size": 0}, {"num_workers": -1}])
def test_bad_arguments(blobs, kwargs):
    with pytest.raises(ValueError, match=f"data.{next(iter(kwargs))} must"):
        blobs(**kwargs)


def test_batches_of_other_data_modules():
    x, y = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2])
    assert Batch.of((x, y)).y.equal(y)
    assert Batch.of(x).y is None
    assert Batch.of([x, y], first_index=6).indices.tolist() == [6, 7, 8]
    with pytest.raises(TypeError, match="a batch must be images"):
        Batch.of({"pixels": x})


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("most", [1, 2, 3, 16])
def test_all_processes_evaluate_as_many_batches(processes, most):
    for images in range(processes, 100):
        size = evaluation_batch_size(images, processes, most)
        shares = [len(range(rank, images, processes)) for rank in range(processes)]
        assert len({math.ceil(share / size) for share in shares}) == 1
        assert size <= most or most < 16
        assert size == most or images % processes


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (0.0, 255.0, r"values from 0 to 255: divide them by 255"),
        (-1.0, 1.0, r"values from -1 to 1: scale them"),
        (0.0, math.nan, "scale them"),
        (0.0, 1e4, "scale them"),
    ],
)
@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_pixels_outside_their_range_are_refused(tmp_path, low, high, message, stage):
    """Of loaders from elsewhere, which may hold anything."""
    x = torch.rand(64, 1, 8, 8).round()
    loader = DataLoader(TensorDataset(x * (high - low) + low), batch_size=16)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    lit = LitVAE(VAE(image_shape=(1, 8, 8)))
    with pytest.raises(ValueError, match=message):
        getattr(trainer, stage)(lit, *([loader] * (2 if stage == "fit" else 1)))
    for use in (lit.model.embed, lit.model.log_prob, lit.model.reconstruct):
        with pytest.raises(ValueError, match=message):
            use(x * (high - low) + low)


def test_loaders_of_tensor_data_sets_train(tmp_path):
    """Their batches are lists, of one tensor without labels."""
    x, y = torch.rand(64, 1, 8, 8), torch.arange(64) % 3
    for data in (TensorDataset(x), TensorDataset(x, y), x):
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            default_root_dir=tmp_path,
        )
        loader = DataLoader(data, batch_size=16)
        trainer.fit(LitVAE(VAE(image_shape=(1, 8, 8))), loader, loader)
        assert trainer.global_step == 4


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        ([torch.rand(2, 1, 8, 8), "cat"], r"a list of \(Tensor, str\)"),
        ([], r"a list of \(\)"),
        ({"pixel_values": torch.rand(2, 1, 8, 8), "label": 1}, "a dict with pixel_values, label"),
        ("images", "a str"),
    ],
)
def test_other_batches_are_described(batch, got):
    with pytest.raises(TypeError, match=got):
        Batch.of(batch)
