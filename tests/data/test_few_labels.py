"""Few labels: which are shown, how batches are made of them, and what they may influence."""

import functools

import lightning.pytorch as pl
import pytest
import torch

from vae_lightning import CVAE, M2
from vae_lightning.batch import Batch
from vae_lightning.data.datasets import Images, InMemory, Joined
from vae_lightning.data.digits import Digits
from vae_lightning.data.few_labels import FewLabels, LabeledSampler, choose_labeled, labels_in
from vae_lightning.errors import UserError
from vae_lightning.nets import MLPDecoder, MLPEncoder
from vae_lightning.training.module import LitVAE

N, CLASSES = 100, 4
Y = torch.arange(N) % CLASSES


def images(y=Y):
    return InMemory(Images(torch.arange(len(y)).byte()[:, None, None, None], y))


# Which labels are shown


def test_classes_are_balanced():
    y = torch.cat([torch.zeros(60), torch.ones(30), torch.full((10,), 2)]).long()
    assert y[choose_labeled(y, 12, 0)].bincount().tolist() == [4, 4, 4]
    assert y[choose_labeled(y, 40, 0)].bincount().tolist() == [15, 15, 10]  # all there are
    counts = [y[choose_labeled(y, 10, seed)].bincount() for seed in range(20)]
    assert all(sorted(count.tolist()) == [3, 3, 4] for count in counts)
    assert len({tuple(count.tolist()) for count in counts}) == 3  # chance decides on the last one
    assert choose_labeled(y, 100, 0).equal(torch.arange(100))


def test_the_choice_follows_the_seed_only():
    first, again, other = (choose_labeled(Y, 20, seed) for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)
    assert len(first.unique()) == 20


def test_images_without_a_label_are_not_chosen():
    y = torch.where(torch.arange(N) < 50, Y, -1)
    assert choose_labeled(y, 30, 0).max() < 50
    with pytest.raises(UserError, match=r"between 4, one for each class, and 50"):
        choose_labeled(y, 51, 0)
    with pytest.raises(UserError, match=r"between 4"):
        choose_labeled(y, 3, 0)


def test_hidden_labels_are_minus_one():
    data = FewLabels(images(), Y, 20, seed=0)
    batch = data.__getitems__([5, 3, 99])
    shown = data.y >= 0
    assert shown.sum() == 20
    assert data.y[shown].equal(Y[shown])
    assert batch.y.equal(data.y[[5, 3, 99]])
    assert batch.x.flatten().tolist() == [5, 3, 99]
    assert len(data) == N
    assert data[7].y.equal(data.y[7:8])


def test_labels_are_found_in_every_kind_of_data_set():
    joined = Joined(images(), images(Y[:10]))
    assert labels_in(joined).equal(torch.cat([Y, Y[:10]]))
    assert labels_in(Joined(images(), InMemory(Images(torch.zeros(3, 1, 1, 1), None)))) is None
    assert labels_in(FewLabels(images(), Y, 20, 0)).ge(0).sum() == 20


# Batches


def sampler(labels=12, batch_size=8, processes=1, rank=0, seed=0, y=Y):
    data = FewLabels(images(y), y, labels, 0)
    return LabeledSampler(data, data.y >= 0, batch_size, processes, rank, seed), data.y >= 0


def test_every_batch_has_enough_of_both_kinds():
    made, labeled = sampler()
    order = torch.tensor(list(made))
    assert len(order) == len(made) == 14 * 8  # 88 images without a label, 6 of them in a batch
    assert labeled[order].view(-1, 8).sum(1).eq(2).all()
    others = order[~labeled[order]]
    assert len(others.unique()) == len(others) == 84
    counts = order[labeled[order]].bincount(minlength=N)[labeled]
    assert counts.max() - counts.min() <= 1


def test_many_labels_keep_their_share():
    made, labeled = sampler(labels=50)
    assert labeled[torch.tensor(list(made))].view(-1, 8).sum(1).eq(4).all()
    made, labeled = sampler(labels=96)
    assert labeled[torch.tensor(list(made))].view(-1, 8).sum(1).eq(7).all()


def test_the_share_of_labels_is_rounded_to_the_nearest_number():
    made, labeled = sampler(labels=46)  # 3.68 of 8
    assert labeled[torch.tensor(list(made))].view(-1, 8).sum(1).eq(4).all()


def test_labeled_images_have_another_order_in_each_pass():
    made, labeled = sampler()
    order = torch.tensor(list(made))
    first, second = order[labeled[order]][:24].view(2, 12)
    assert first.sort().values.equal(second.sort().values)
    assert not first.equal(second)


def test_processes_share_the_images_of_an_epoch():
    parts = [sampler(processes=2, rank=rank) for rank in range(2)]
    orders = [torch.tensor(list(made)) for made, _ in parts]
    labeled = parts[0][1]
    assert len(orders[0]) == len(orders[1]) == len(parts[0][0]) == 7 * 8
    both = torch.cat(orders)
    others = both[~labeled[both]]
    assert len(others.unique()) == len(others) == 84
    counts = both[labeled[both]].bincount(minlength=N)[labeled]
    assert counts.max() - counts.min() <= 1
    for order in orders:
        assert labeled[order].view(-1, 8).sum(1).eq(2).all()


def test_the_order_follows_seed_and_epoch_and_can_be_continued():
    made, _ = sampler()
    first = list(made)
    assert first == list(sampler()[0])
    assert first != list(sampler(seed=1)[0])
    made.set_epoch(1)
    second = list(made)
    assert second != first
    made.done = (1, 24)
    assert list(made) == second[24:]
    made.set_epoch(2)
    assert len(list(made)) == len(made)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": 1}, "batch_size must be at least 2"), ({"batch_size": 200}, "do not fill")],
)
def test_impossible_batches_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        sampler(**options)


# Training


class FewDigits(Digits):
    """Digits, the labels of some of which can be changed."""

    changed: torch.Tensor | None = None

    def load(self, split):
        found = super().load(split)
        if split == "train" and self.changed is not None:
            y = torch.where(self.changed, (found.images.y + 1) % 10, found.images.y)
            found = InMemory(found.images._replace(y=y))
        return found


def data(**kwargs):
    sizes = {"train_size": 400, "val_size": 60, "test_size": 40, "batch_size": 16}
    return FewDigits(**{**sizes, "num_labels": 30, **kwargs})


def model(**kwargs):
    torch.manual_seed(0)
    parts = {
        "encoder": functools.partial(MLPEncoder, hidden=(16,)),
        "decoder": functools.partial(MLPDecoder, hidden=(16,)),
        "classifier": functools.partial(MLPEncoder, hidden=(16,)),
    }
    sizes = {"num_classes": 10, "num_labeled": 30, "num_train": 340, "latent_dim": 3}
    return M2(**{**parts, **sizes, **kwargs})


def fit(module, images, tmp_path, ckpt_path=None, **kwargs):
    run = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1, "log_every_n_steps": 1, **kwargs},
    )
    run.fit(module, datamodule=images, ckpt_path=ckpt_path, weights_only=True)
    return run


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.model.parameters()])


def trained(images, tmp_path):
    torch.manual_seed(0)
    module = LitVAE(model())
    fit(module, images, tmp_path, max_epochs=2)
    return weights(module)


def test_hidden_labels_cannot_influence_the_training(tmp_path):
    """Wrong labels of images that have none, as far as the model knows, change nothing."""
    images = data()
    images.setup("fit")
    shown = images.datasets["train"].y >= 0
    assert shown.sum() == 30
    reference = trained(data(), tmp_path)

    class FixedChoice(FewDigits):
        """The same images are labeled, whatever their labels are."""

        def _with_few_labels(self, dataset, num_labels):
            found = super()._with_few_labels(dataset, num_labels)
            found.y = torch.where(shown, labels_in(dataset), -1)
            return found

    def with_changed(which):
        changed = FixedChoice(
            train_size=400, val_size=60, test_size=40, batch_size=16, num_labels=30
        )
        changed.changed = which
        return changed

    assert trained(with_changed(~shown), tmp_path).equal(reference)
    assert not trained(with_changed(shown), tmp_path).equal(reference)


def test_validation_labels_are_for_measuring_only(tmp_path):
    module = LitVAE(model())
    run = fit(module, data(), tmp_path)
    measured = {name: value.item() for name, value in run.callback_metrics.items()}
    assert 0 <= measured["val/accuracy"] <= 1
    assert measured["val/loss"] == measured["val/negative_elbo"]
    images = data()
    images.setup("fit")
    x = torch.cat([batch.x for batch in images.val_dataloader()]).float() / 255
    y = torch.cat([batch.y for batch in images.val_dataloader()])
    assert y.ge(0).all()
    right = module.model.classify(x).argmax(1).eq(y).float().mean().item()
    assert measured["val/accuracy"] == pytest.approx(right)
    assert "train/accuracy" not in measured
    assert "train/class_cross_entropy" in measured


class SaveInside(pl.Callback):
    """Save a checkpoint in the middle of the first epoch."""

    def __init__(self, path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if pl_module.step == 12:
            trainer.save_checkpoint(self.path)


def test_resume_inside_an_epoch(tmp_path):
    whole, path = LitVAE(model()), tmp_path / "a.ckpt"
    fit(whole, data(), tmp_path, max_epochs=2, callbacks=[SaveInside(path)])
    rest = LitVAE(model())
    before = weights(rest)
    fit(rest, data(), tmp_path, path, max_epochs=2)
    assert not weights(rest).equal(before)
    torch.testing.assert_close(weights(rest), weights(whole), rtol=0, atol=0)


def test_several_steps_per_call_are_the_same(tmp_path):
    found = []
    for steps in (1, 4):
        module = LitVAE(model(), steps_per_call=steps)
        fit(module, data(), tmp_path)
        found.append(weights(module))
    torch.testing.assert_close(found[0], found[1])


def test_what_the_data_say_of_themselves():
    images = data()
    assert images.num_labeled == 30
    assert "30 training images with a label" in images.summary()
    assert images.class_counts() == ()
    images.setup("fit")
    assert sum(images.class_counts()) == 30
    assert data(num_labels=None).num_labeled == 340
    joined = data(train_on_val=True, num_labels=50)
    joined.setup("fit")
    assert joined.datasets["train"].y.ge(0).sum() == 50
    assert len(joined.datasets["train"]) == 400


def test_labels_are_hidden_in_training_only():
    images = data(predict_split="train")
    images.setup("predict")
    assert next(iter(images.predict_dataloader())).y.ge(0).all()


def test_models_that_need_all_labels_refuse(tmp_path):
    cvae = LitVAE(CVAE(num_classes=10))
    with pytest.raises(ValueError, match="CVAE needs the class of every image"):
        fit(cvae, data(), tmp_path)


def test_data_without_labels_are_refused():
    class Unlabeled(FewDigits):
        def load(self, split):
            return InMemory(super().load(split).images._replace(y=None))

    images = Unlabeled(train_size=400, val_size=60, test_size=40, num_labels=30)
    with pytest.raises(UserError, match="which has none"):
        images.setup("fit")


def test_batches_of_others_may_have_labels_of_some(tmp_path):
    """As of a data module that knows nothing of `num_labels`."""
    made = model().train()
    module = LitVAE(made)
    y = torch.tensor([-1, 3, -1, 5])
    batch = Batch(torch.rand(4, 1, 28, 28), y, torch.arange(4))
    terms, objective = module.evaluate_terms(batch, "train", 0, 0)
    assert objective.isfinite().all()
    assert terms.kl_class[[1, 3]].sub(torch.tensor(10.0).log()).abs().max() < 1e-5
