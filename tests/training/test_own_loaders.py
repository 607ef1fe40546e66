"""Loaders and data modules from elsewhere: training, figures and predictions."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from vae_lightning import CVAE, VAE, Gaussian
from vae_lightning.batch import Batch
from vae_lightning.errors import UserError
from vae_lightning.figures.reconstructions import Reconstructions
from vae_lightning.figures.samples import Samples
from vae_lightning.training.figures import FigureCallback
from vae_lightning.training.module import LitVAE
from vae_lightning.training.predictions import PredictionWriter

X = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(50) % 3


class Items(Dataset):
    """A data set whose items have a form."""

    def __init__(self, form):
        self.form = form

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return self.form(i)


FORMS = {
    "TensorDataset of images": TensorDataset(X),
    "TensorDataset of images and labels": TensorDataset(X, Y),
    "images": Items(lambda i: X[i]),
    "dictionary": Items(lambda i: {"x": X[i], "y": Y[i]}),
    "dictionary with other keys": Items(lambda i: {"image": X[i], "label": int(Y[i]), "id": i}),
    "dictionary of images": Items(lambda i: {"images": X[i]}),
}


def trainer(tmp_path, *callbacks):
    return pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[FigureCallback(Samples(n=4)), FigureCallback(Reconstructions(n=4)), *callbacks],
    )


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("form", FORMS)
def test_a_loader_from_elsewhere(tmp_path, form):
    labeled = form in ("TensorDataset of images and labels", "dictionary")
    model = CVAE(image_shape=(1, 8, 8), num_classes=3) if labeled else VAE(image_shape=(1, 8, 8))
    writer = PredictionWriter(tmp_path / "predictions")
    run = trainer(tmp_path, writer)
    module = LitVAE(model)
    run.fit(module, DataLoader(FORMS[form], 16, shuffle=True), DataLoader(FORMS[form], 16))
    assert len(list(tmp_path.glob("figures/*/epoch=000.png"))) == 2
    run.test(module, DataLoader(FORMS[form], 16), verbose=False)
    run.predict(module, DataLoader(FORMS[form], 16), return_predictions=False)
    assert np.array_equal(np.load(tmp_path / "predictions" / "original.npy"), X.numpy())
    assert np.load(tmp_path / "predictions" / "index.npy").tolist() == list(range(50))
    if labeled:
        assert np.load(tmp_path / "predictions" / "label.npy").tolist() == Y.tolist()


class Module(pl.LightningDataModule):
    """A data module of values that are not in [0, 1]."""

    image_shape = (1, 8, 8)
    num_classes = 0
    bounded = False

    def train_dataloader(self):
        return DataLoader(TensorDataset(5 * X - 2), batch_size=16)

    val_dataloader = predict_dataloader = train_dataloader


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|shuffle)")
def test_a_data_module_from_elsewhere(tmp_path):
    module = LitVAE(VAE(image_shape=(1, 8, 8), bounded=False, likelihood=Gaussian))
    run = trainer(tmp_path, PredictionWriter(tmp_path / "predictions"))
    run.fit(module, datamodule=Module())
    run.predict(module, datamodule=Module(), return_predictions=False)
    original = np.load(tmp_path / "predictions" / "original.npy")
    assert np.array_equal(original, (5 * X - 2).numpy())


class Endless(IterableDataset):
    def __iter__(self):
        return iter(X)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_predictions_need_a_known_number_of_items(tmp_path):
    run = trainer(tmp_path, PredictionWriter(tmp_path / "predictions"))
    with pytest.raises(UserError, match="data set with a length"):
        run.predict(LitVAE(VAE(image_shape=(1, 8, 8))), DataLoader(Endless(), 16))


@pytest.mark.parametrize(
    ("batch", "described"),
    [
        ({"pixels": X}, "a dict with pixels"),
        ({"y": Y}, "a dict with y"),
        ((X, Y, Y), r"a tuple of \(Tensor, Tensor, Tensor\)"),
        (X.numpy(), "a ndarray"),
    ],
)
def test_a_batch_of_another_form_is_refused(batch, described):
    with pytest.raises(TypeError, match=described):
        Batch.of(batch)
