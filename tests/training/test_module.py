"""Several updates in one call of training_step are the updates that would be made one by one."""

import csv
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.loggers import CSVLogger

from vae_lightning import VAE, VQVAE, BetaVAE
from vae_lightning.nets import MLPDecoder, MLPEncoder
from vae_lightning.schedules import LinearWarmup
from vae_lightning.training.module import LitVAE
from vae_lightning.training.multi_step import choose_steps_per_call


class Warmup6(LinearWarmup):
    def __init__(self) -> None:
        super().__init__(6)


class StepLR(torch.optim.lr_scheduler.StepLR):
    """A class, so that a checkpoint can hold it."""

    def __init__(self, optimizer) -> None:
        super().__init__(optimizer, step_size=1, gamma=0.5)


def variant(name, steps_per_call):
    torch.manual_seed(3)
    common = {"image_shape": (1, 8, 8), "num_classes": 4}
    if name == "VQVAE":
        model = VQVAE(embedding_dim=8, **common)
    else:
        model = BetaVAE(schedule=Warmup6, **common)
    return LitVAE(model, steps_per_call=steps_per_call, lr_scheduler=StepLR)


def train(lit, data, folder, ckpt_path=None, **kwargs):
    trainer = pl.Trainer(
        **{
            "default_root_dir": folder,
            "accelerator": "cpu",
            "logger": CSVLogger(folder, name="", version="log"),
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 2,
            "max_epochs": 3,
            **kwargs,
        }
    )
    chosen = Chosen()
    trainer.callbacks.append(chosen)
    trainer.fit(lit, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    trainer.steps_per_call = chosen.steps_per_call
    return trainer


class Chosen(pl.Callback):
    """Keeps how many steps a call had."""

    steps_per_call = None

    def on_train_start(self, trainer, pl_module) -> None:
        self.steps_per_call = pl_module.steps_per_call


def rows(folder):
    with (folder / "log" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def optimizer_state(trainer):
    (optimizer,) = trainer.optimizers
    return optimizer.state_dict()


@pytest.fixture
def seventy(blobs):
    """70 images in batches of 16, the last one of 6: calls of 3 batches have 48 and 22 images."""
    return lambda **kwargs: blobs(70, binarization="dynamic", **kwargs)


@pytest.mark.parametrize("name", ["BetaVAE", "VQVAE"])
@pytest.mark.parametrize("steps_per_call", [3, 5, None])
def test_updates_are_the_same(seventy, tmp_path, name, steps_per_call):
    one = train(variant(name, 1), seventy(), tmp_path / "one")
    several = train(variant(name, steps_per_call), seventy(), tmp_path / "several")
    assert one.steps_per_call == 1
    assert several.steps_per_call == (steps_per_call or 64)
    assert one.global_step == several.global_step == 15
    assert one.lightning_module.step == several.lightning_module.step == 15
    for key, value in one.lightning_module.state_dict().items():
        assert value.equal(several.lightning_module.state_dict()[key]), key
    torch.testing.assert_close(optimizer_state(one), optimizer_state(several), rtol=0, atol=0)
    assert optimizer_state(one)["param_groups"][0]["lr"] == 1e-3 / 8
    # The log has the same numbers at the same steps.
    assert rows(tmp_path / "one") == rows(tmp_path / "several")
    assert {row["step"] for row in rows(tmp_path / "one")} >= {"1", "3", "13"}


@pytest.mark.parametrize(("before", "after"), [(3, 3), (1, 4), (4, 1)])
def test_resumes_whatever_the_number_was(seventy, tmp_path, before, after):
    whole = train(variant("BetaVAE", 1), seventy(), tmp_path / "whole")
    first = train(variant("BetaVAE", before), seventy(), tmp_path / "first", max_epochs=2)
    first.save_checkpoint(tmp_path / "a.ckpt")
    resumed = train(
        variant("BetaVAE", after), seventy(), tmp_path / "rest", ckpt_path=tmp_path / "a.ckpt"
    )
    assert resumed.global_step == resumed.lightning_module.step == 15
    for key, value in whole.lightning_module.state_dict().items():
        assert value.equal(resumed.lightning_module.state_dict()[key]), key
    known = {row["step"]: row for row in rows(tmp_path / "whole")}
    for row in rows(tmp_path / "rest"):
        assert {k: v for k, v in known[row["step"]].items() if k in row} == row


class SaveInside(pl.Callback):
    """Writes a checkpoint in the middle of an epoch."""

    def __init__(self, path, epoch, batch_idx) -> None:
        self.path, self.when = path, (epoch, batch_idx)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if (trainer.current_epoch, batch_idx) == self.when:
            trainer.save_checkpoint(self.path)


class Dropping(MLPEncoder):
    """An encoder that draws from torch's own generator."""

    def forward(self, x, condition):
        return torch.dropout(super().forward(x, condition), 0.3, self.training)


def test_networks_that_draw_from_the_generator_of_torch_resume_too(seventy, tmp_path):
    def model():
        torch.manual_seed(3)
        return LitVAE(VAE(image_shape=(1, 8, 8), encoder=Dropping, decoder=MLPDecoder))

    whole = train(model(), seventy(), tmp_path / "whole")
    train(model(), seventy(), tmp_path, callbacks=[SaveInside(tmp_path / "a.ckpt", 1, 2)])
    torch.manual_seed(99)
    resumed = train(model(), seventy(), tmp_path / "rest", ckpt_path=tmp_path / "a.ckpt")
    for key, value in whole.lightning_module.state_dict().items():
        assert value.equal(resumed.lightning_module.state_dict()[key]), key


@pytest.mark.parametrize("name", ["BetaVAE", "VQVAE"])
@pytest.mark.parametrize(
    ("steps_per_call", "workers", "epoch", "batch_idx"),
    [(1, 0, 1, 2), (1, 1, 1, 0), (2, 0, 1, 1), (2, 0, 0, 0), (1, 0, 1, 4)],
)
def test_resumes_in_the_middle_of_an_epoch(
    seventy, tmp_path, name, steps_per_call, workers, epoch, batch_idx
):
    """Bit for bit: weights, optimizer, learning rate, codebook, and what is logged after."""
    saver = SaveInside(tmp_path / "a.ckpt", epoch, batch_idx)
    whole = train(
        variant(name, steps_per_call),
        seventy(num_workers=workers),
        tmp_path / "whole",
        callbacks=[saver],
    )
    torch.manual_seed(99)  # another process is in another random state
    resumed = train(
        variant(name, steps_per_call),
        seventy(num_workers=workers),
        tmp_path / "rest",
        ckpt_path=tmp_path / "a.ckpt",
    )
    assert resumed.global_step == whole.global_step == 15
    for key, value in whole.lightning_module.state_dict().items():
        assert value.equal(resumed.lightning_module.state_dict()[key]), key
    torch.testing.assert_close(optimizer_state(whole), optimizer_state(resumed), rtol=0, atol=0)
    rest = rows(tmp_path / "rest")
    assert rest == rows(tmp_path / "whole")[-len(rest) :]


class Counting(LitVAE):
    """Keeps how many places it has counted when an epoch ends."""

    def on_train_epoch_end(self) -> None:
        self.counted = [*getattr(self, "counted", []), int(self.train_codes.counts[""].sum())]
        super().on_train_epoch_end()


@pytest.mark.parametrize("batch_idx", [2, 4])
def test_codes_are_counted_once_whether_or_not_the_epoch_goes_on(seventy, tmp_path, batch_idx):
    def model():
        torch.manual_seed(3)
        return Counting(VQVAE(image_shape=(1, 8, 8), embedding_dim=8), steps_per_call=1)

    saver = SaveInside(tmp_path / "a.ckpt", 1, batch_idx)
    train(model(), seventy(), tmp_path / "whole", callbacks=[saver])
    resumed = model()
    train(resumed, seventy(), tmp_path / "rest", ckpt_path=tmp_path / "a.ckpt")
    of_epoch = 70 * 2 * 2
    assert resumed.counted == ([of_epoch] if batch_idx == 4 else [of_epoch, of_epoch])


class DroppingImages(LitVAE):
    """Trains on every second image of a batch."""

    def evaluate_terms(self, batch, *args):
        x, indices = batch.x[::2], batch.indices[::2]
        return super().evaluate_terms(batch._replace(x=x, y=None, indices=indices), *args)


def test_modules_that_drop_images_get_the_noise_of_those_they_keep(seventy, tmp_path):
    def weights(steps_per_call):
        torch.manual_seed(3)
        lit = DroppingImages(VAE(image_shape=(1, 8, 8)), steps_per_call=steps_per_call)
        train(lit, seventy(), tmp_path / str(steps_per_call), max_epochs=1)
        return lit.state_dict()

    one, several = weights(1), weights(3)
    for name, value in one.items():
        assert value.equal(several[name]), name


def test_training_ends_at_max_steps(seventy, tmp_path):
    trainer = train(variant("BetaVAE", None), seventy(), tmp_path, max_epochs=-1, max_steps=7)
    assert trainer.steps_per_call == 1
    assert trainer.global_step == 7
    assert optimizer_state(trainer)["param_groups"][0]["lr"] == 1e-3 / 2  # one epoch has ended


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (None, 1), (2, 1)])
@pytest.mark.parametrize("moment", ["validation end", "inside"])
def test_resumes_with_another_number_wherever_the_checkpoint_is(
    seventy, tmp_path, before, after, moment
):
    if moment == "inside":
        saver = SaveInside(tmp_path / "a.ckpt", 1, 0)
    else:
        saver = SaveAtValidation(tmp_path / "a.ckpt", 1)
    options = {"check_val_every_n_epoch": 2, "max_epochs": 4}
    whole = train(
        variant("BetaVAE", before), seventy(), tmp_path / "a", callbacks=[saver], **options
    )
    resumed = train(
        variant("BetaVAE", after),
        seventy(),
        tmp_path / "b",
        ckpt_path=tmp_path / "a.ckpt",
        **options,
    )
    assert resumed.global_step == whole.global_step == 20
    assert resumed.lightning_module.step == 20
    for key, value in whole.lightning_module.state_dict().items():
        assert value.equal(resumed.lightning_module.state_dict()[key]), key


class SaveAtValidation(pl.Callback):
    """Writes a checkpoint at the end of the validation of an epoch."""

    def __init__(self, path, epoch) -> None:
        self.path, self.epoch = path, epoch

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking and trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)


class OwnStep(LitVAE):
    def training_step(self, batch, batch_idx):
        return 2 * super().training_step(batch, batch_idx)


class OwnOptimizer(LitVAE):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-5)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-4, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@pytest.mark.parametrize("own", [OwnStep, OwnOptimizer])
def test_modules_with_steps_of_their_own_get_single_batches(seventy, tmp_path, own):
    trainer = train(own(VAE(image_shape=(1, 8, 8))), seventy(), tmp_path)
    assert trainer.steps_per_call == 1
    assert trainer.global_step == 15


class CountBatches(pl.Callback):
    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_end(self, *args) -> None:
        self.batches += 1


def test_callbacks_that_see_batches_see_each(seventy, tmp_path):
    counter = CountBatches()
    assert (
        train(variant("BetaVAE", None), seventy(), tmp_path, callbacks=[counter]).steps_per_call
        == 1
    )
    assert counter.batches == 15


def test_averaged_weights_are_trained_ones(seventy, tmp_path):
    average = EMAWeightAveraging(decay=0.5, update_every_n_steps=2)
    trainer = train(variant("BetaVAE", None), seventy(), tmp_path, callbacks=[average])
    before = dict(variant("BetaVAE", None).named_parameters())
    assert trainer.steps_per_call == 1
    assert not any(
        value.equal(before[name]) for name, value in trainer.lightning_module.named_parameters()
    )
    with pytest.raises(ValueError, match="EMAWeightAveraging acts on single updates"):
        train(variant("BetaVAE", 3), seventy(), tmp_path / "b", callbacks=[average])


def test_validation_by_the_clock_is_possible(seventy, tmp_path):
    train(variant("BetaVAE", None), seventy(), tmp_path, val_check_interval="00:01:00:00")


def test_a_batch_that_is_evaluated_several_times_counts_once(seventy, tmp_path):
    optimizer = partial(torch.optim.LBFGS, lr=1e-3, max_iter=3)
    lit = LitVAE(VAE(image_shape=(1, 8, 8)), optimizer=optimizer)
    trainer = train(lit, seventy(), tmp_path, max_epochs=1)
    assert trainer.steps_per_call == 1
    assert lit.step == 5


def test_a_trained_model_can_be_trained_in_another_way(seventy, tmp_path):
    lit, data = variant("BetaVAE", None), seventy()
    trainer = train(lit, data, tmp_path / "a", max_epochs=1)
    assert trainer.global_step == 5
    assert [len(batch.x) for batch in data.train_dataloader()] == [16, 16, 16, 16, 6]
    assert train(lit, seventy(), tmp_path / "b", gradient_clip_val=1.0).steps_per_call == 1


def test_a_second_training_counts_from_the_start(seventy, tmp_path):
    lit = variant("BetaVAE", 3)
    train(lit, seventy(), tmp_path / "a", max_epochs=1)
    train(lit, seventy(), tmp_path / "b", max_epochs=1)
    assert lit.step == lit.trainer.global_step == 5


class Foreign(pl.LightningDataModule):
    """Somebody's data module, which knows nothing of this project."""

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.rand(12, 1, 8, 8), batch_size=4)

    def val_dataloader(self):
        return self.train_dataloader()


SINGLE = {
    "gradient_clip_val": {"gradient_clip_val": 1.0},
    "accumulate_grad_batches": {"accumulate_grad_batches": 2},
    "limit_train_batches": {"limit_train_batches": 1, "log_every_n_steps": 1},
    "val_check_interval": {"val_check_interval": 1},
    "max_steps": {"max_steps": 7},
}


@pytest.mark.parametrize("option", SINGLE)
def test_options_that_need_single_batches_get_them(seventy, tmp_path, option):
    lit = variant("BetaVAE", None)
    assert train(lit, seventy(), tmp_path, max_epochs=1, **SINGLE[option]).steps_per_call == 1
    with pytest.raises(ValueError, match=f"steps_per_call is 3, but trainer.{option}"):
        train(variant("BetaVAE", 3), seventy(), tmp_path / "b", max_epochs=1, **SINGLE[option])


def test_checkpoints_every_n_steps_need_single_batches(seventy, tmp_path):
    lit = variant("BetaVAE", None)
    saver = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=2, save_top_k=-1)
    trainer = train(
        lit, seventy(), tmp_path, max_epochs=1, callbacks=[saver], enable_checkpointing=True
    )
    assert trainer.steps_per_call == 1
    assert len(list(tmp_path.glob("checkpoints/*.ckpt"))) == 2


class Plateau(ReduceLROnPlateau):
    def __init__(self, optimizer) -> None:
        super().__init__(optimizer, monitor="val/loss", patience=0, threshold=1e6)


def test_a_learning_rate_that_follows_a_loss_needs_single_batches(seventy, tmp_path):
    lit = LitVAE(VAE(image_shape=(1, 8, 8)), lr_scheduler=Plateau)
    assert train(lit, seventy(), tmp_path).steps_per_call == 1
    assert lit.trainer.optimizers[0].param_groups[0]["lr"] < 1e-3


def test_data_of_others_come_one_batch_at_a_time(tmp_path):
    lit = LitVAE(VAE(image_shape=(1, 8, 8)))
    trainer = train(lit, Foreign(), tmp_path, max_epochs=1)
    assert trainer.steps_per_call == 1
    assert trainer.global_step == 3


def test_large_images_come_one_batch_at_a_time(blobs, tmp_path):
    data = blobs(70, batch_size=128)
    lit = LitVAE(VAE(image_shape=(1, 8, 8)))
    lit.trainer = pl.Trainer(logger=False)
    lit.trainer.datamodule = data
    for shape, expected in {(1, 8, 8): 64, (1, 28, 28): 16, (3, 64, 64): 1}.items():
        data.image_shape = shape
        assert choose_steps_per_call(lit.trainer, lit, LitVAE) == expected


def test_a_number_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="steps_per_call must be at least 1, got 0"):
        LitVAE(VAE(), steps_per_call=0)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_is_fused_unless_asked_otherwise(optimizer):
    def fused(**kwargs):
        lit = LitVAE(VAE(image_shape=(1, 8, 8)), optimizer=partial(optimizer, **kwargs))
        return lit.configure_optimizers().param_groups[0]["fused"]

    assert fused()
    assert fused(fused=False) is False
    assert not fused(foreach=True)


def test_fused_follows_the_loop_over_parameters(seventy, tmp_path):
    models = []
    for fused in None, False:
        torch.manual_seed(3)
        optimizer = partial(torch.optim.Adam, fused=fused)
        models.append(LitVAE(VAE(image_shape=(1, 8, 8)), optimizer=optimizer))
        train(models[-1], seventy(), tmp_path / str(fused))
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_other_optimizers_are_left_alone():
    lit = LitVAE(VAE(image_shape=(1, 8, 8)), optimizer=torch.optim.SGD)
    assert lit.configure_optimizers().param_groups[0]["fused"] is None


def test_a_training_that_is_continued_goes_on_counting(seventy, tmp_path):
    lit, data = variant("BetaVAE", None), seventy()
    trainer = train(lit, data, tmp_path, max_epochs=2)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(lit, datamodule=data)
    assert trainer.global_step == lit.step == 20
