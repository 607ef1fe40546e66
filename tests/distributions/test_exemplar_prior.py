"""The exemplar prior against an explicit loop over its exemplars, and leave-one-out by hand."""

import copy
import functools
import math

import lightning.pytorch as pl
import pytest
import torch
from contract_checks import FewImages
from torch.distributions import Independent, Normal

from vae_lightning import VAE, HierarchicalVAE, load
from vae_lightning.distributions.exemplar_prior import ExemplarPrior, exemplar_log_prob
from vae_lightning.nets import MLPDecoder, MLPEncoder
from vae_lightning.training.module import LitVAE

NETS = {
    "encoder": functools.partial(MLPEncoder, hidden=(8,), activation="tanh"),
    "decoder": functools.partial(MLPDecoder, hidden=(8,), activation="tanh"),
}


def exemplar_vae(batch=None, exemplars=6, subset=6, **kwargs) -> VAE:
    prior = functools.partial(ExemplarPrior, exemplars=exemplars, subset=subset, seed=7)
    options = {**NETS, "image_shape": (1, 8, 8), "latent_dim": 2, "prior": prior}
    model = VAE(**{**options, **kwargs})
    if batch is not None:
        model.init_from_data(FewImages(batch.x))
        model.prior.log_var.data.fill_(-0.7)
    return model


def loop(z, means, log_var, left_out=None):
    """log of the mean density over the components that count, one after the other, in float64."""
    found = torch.empty(z.shape[:2], dtype=torch.float64)
    scale = (0.5 * log_var.double()).exp()
    for i in range(z.shape[0]):
        for k in range(z.shape[1]):
            terms = [
                Independent(Normal(mean.double(), scale), 1).log_prob(z[i, k].double())
                for m, mean in enumerate(means)
                if left_out is None or not left_out[i, m]
            ]
            found[i, k] = torch.stack(terms).logsumexp(0) - math.log(len(terms))
    return found


@pytest.mark.parametrize("some_left_out", [False, True])
def test_density_is_that_of_a_loop(some_left_out):
    z, means, log_var = torch.randn(4, 3, 5), 2 * torch.randn(7, 5), torch.tensor(-1.3)
    left_out = (torch.rand(4, 7) < 0.4) if some_left_out else None
    found = exemplar_log_prob(z, means, log_var, left_out)
    assert found.dtype == torch.float32
    expected = loop(z, means, log_var, left_out)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_density_keeps_its_digits_with_a_small_variance():
    means, log_var = 5 + 2 * torch.randn(7, 5), torch.tensor(-18.0)
    z = means[torch.arange(12) % 7].view(4, 3, 5) + (0.5 * log_var).exp() * torch.randn(4, 3, 5)
    found = exemplar_log_prob(z, means, log_var)
    torch.testing.assert_close(found.double(), loop(z, means, log_var), rtol=1e-6, atol=1e-5)


def test_a_row_without_any_component_keeps_all():
    z, means = torch.randn(2, 3, 2), torch.randn(4, 2)
    left_out = torch.tensor([[True] * 4, [False] * 4])
    found = exemplar_log_prob(z, means, torch.zeros(()), left_out)
    torch.testing.assert_close(found, exemplar_log_prob(z, means, torch.zeros(())))


def test_evaluation_sees_all_exemplars(batch):
    model = exemplar_vae(batch, subset=2).eval()  # which only training sees
    means = model.posterior(model.prior.images(torch.arange(6))).mean
    z = torch.randn(3, 4, 2)
    expected = loop(z, means, model.prior.log_var)
    torch.testing.assert_close(model.log_prior(z).double(), expected, rtol=1e-4, atol=1e-4)


def test_samples_have_the_moments_of_the_mixture(batch):
    prior = exemplar_vae(batch).eval().prior
    z = prior.sample(40_000, generator=torch.Generator().manual_seed(1))
    means = prior.means()
    torch.testing.assert_close(z.mean(0), means.mean(0), rtol=0, atol=0.02)
    expected = means.var(0, correction=0) + math.exp(-0.7)
    torch.testing.assert_close(z.var(0), expected, rtol=0.03, atol=0)


def test_training_leaves_out_the_image_itself(batch):
    model = exemplar_vae(batch).train()
    prior, z = model.prior, torch.randn(16, 2, 2)
    prior.batch_indices = batch.indices
    left_out = batch.indices[:, None] == prior.indices
    assert left_out.any(0).all()  # every exemplar is in the batch
    means = model.posterior(batch.x[prior.indices]).mean
    expected = loop(z, means, prior.log_var, left_out)
    torch.testing.assert_close(prior.log_prob(z).double(), expected, rtol=1e-4, atol=1e-4)
    prior.batch_indices = None
    assert (prior.log_prob(z) - expected)[left_out.any(1)].abs().max() > 1e-3


def test_a_step_sees_a_subset_which_depends_on_the_step(batch):
    prior = exemplar_vae(batch, exemplars=12, subset=4).train().prior
    z, found = torch.randn(3, 1, 2), []
    for step in (0, 0, 1):
        prior.step = step
        found.append(prior.log_prob(z))
    assert found[0].equal(found[1])
    assert not found[0].equal(found[2])


def test_means_follow_the_encoder(batch):
    """Whatever changes the weights, and however: encoded exemplars are not stale."""
    model = exemplar_vae(batch).eval()
    before = model.prior.means()
    assert model.prior.means() is before
    for parameter in model.encoder.parameters():
        parameter.data.mul_(1.5)
    expected = model.posterior(model.prior.images(torch.arange(6))).mean
    torch.testing.assert_close(model.prior.means(), expected)
    other = exemplar_vae(batch).eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.prior.means(), expected)
    assert copy.deepcopy(model).prior.means().equal(model.prior.means())


def test_gradients_reach_the_encoder_through_the_exemplars(batch):
    model = exemplar_vae(batch).train()
    model.prior.log_prob(torch.randn(3, 1, 2)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.encoder.parameters())
    assert model.prior.log_var.grad.abs() > 0


def test_density_keeps_its_digits_under_autocast():
    z, means = torch.randn(3, 2, 4), torch.randn(5, 4)
    exact = exemplar_log_prob(z, means, torch.zeros(()))
    with torch.autocast("cpu", torch.bfloat16):
        assert exemplar_log_prob(z, means, torch.zeros(())).equal(exact)


def test_it_knows_batches_in_training_and_is_saved(blobs, batch, tmp_path):
    """Training tells it the batch, and nothing of it stays; the exemplars are in the checkpoint."""
    model, seen = exemplar_vae(), []
    log_prob = model.prior.log_prob

    def watched(z, condition=None):
        seen.append((model.training, model.prior.batch_indices))
        return log_prob(z, condition)

    model.prior.log_prob = watched
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = blobs()
    trainer.fit(LitVAE(model), datamodule=data)
    del model.prior.log_prob
    assert all((indices is not None) == training for training, indices in seen)
    assert {training for training, _ in seen} == {True, False}
    train = data.datasets["train"].__getitems__(model.prior.indices.tolist()).x
    assert model.prior.held.equal(train)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded, model = load(tmp_path / "a.ckpt"), model.eval()
    assert loaded.prior.held.dtype == torch.uint8
    assert loaded.log_prob(batch.x).equal(model.log_prob(batch.x))
    samples = [m.sample(5, generator=torch.Generator().manual_seed(1)) for m in (model, loaded)]
    assert samples[0].equal(samples[1])


def test_unbounded_images_are_kept_as_they_are(batch):
    prior = ExemplarPrior(2, exemplars=3)
    prior.bounded = False
    model = exemplar_vae()
    prior.attach(model.posterior, (1, 8, 8))
    x = 5 * torch.randn(16, 1, 8, 8)
    prior.init_from_data(FewImages(x))
    assert prior.images(torch.arange(3)).equal(x[prior.indices])


def test_a_hierarchy_has_exemplars_at_its_top(batch):
    prior = functools.partial(ExemplarPrior, exemplars=4)
    model = HierarchicalVAE(image_shape=(1, 8, 8), top_dim=3, prior=prior).eval()
    model.init_from_data(FewImages(batch.x))
    assert model.prior.means().shape == (4, 3)


class Unknown(FewImages):
    def random_indices(self, n, seed):
        return None


def test_images_of_unknown_places_are_refused(batch):
    with pytest.raises(ValueError, match="has to tell which image of a batch is which exemplar"):
        exemplar_vae().init_from_data(Unknown(batch.x))


@pytest.mark.parametrize("options", [{"exemplars": 1}, {"subset": 1}])
def test_bad_arguments(options):
    with pytest.raises(ValueError, match="must be at least 2, got 1"):
        ExemplarPrior(2, **options)


def test_conditional_models_are_refused():
    with pytest.raises(ValueError, match=r"does not know the classes .* choose another prior"):
        exemplar_vae(conditional=True, num_classes=3)
