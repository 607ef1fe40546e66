"""The normal prior of each class against torch.distributions in float64."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from vae_lightning import CVAE
from vae_lightning.distributions.label_normal import LabelNormal
from vae_lightning.distributions.posteriors import DiagonalGaussian, Point
from vae_lightning.models.capabilities import Capability


def prior(classes=3, size=2) -> LabelNormal:
    made = LabelNormal(size, classes)
    made.mu.data.normal_(std=2)
    made.log_var.data.normal_()
    return made


def reference(made, y) -> Independent:
    mu, log_var = made.mu.detach().double()[y], made.log_var.detach().double()[y]
    return Independent(Normal(mu, (0.5 * log_var).exp()), 1)


def one_hot(y, classes=3):
    return torch.nn.functional.one_hot(y, classes).float()


def test_density_is_that_of_the_class():
    made, y, z = prior(), torch.tensor([2, 0, 1, 1]), torch.randn(4, 5, 2)
    expected = reference(made, y).log_prob(z.double().transpose(0, 1)).T
    found = made.log_prob(z, one_hot(y))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_kl_is_that_of_torch_distributions():
    made, y = prior(), torch.tensor([2, 0, 1, 1])
    mu, log_var = torch.randn(2, 4, 2)
    q = Independent(Normal(mu.double(), (0.5 * log_var.double()).exp()), 1)
    found = made.kl(DiagonalGaussian(mu, log_var), one_hot(y))
    assert found.shape == (4, 2)
    expected = kl_divergence(q, reference(made, y))
    torch.testing.assert_close(found.sum(1).double(), expected, rtol=1e-5, atol=1e-5)
    assert made.kl(Point(mu), one_hot(y)) is None


def test_samples_have_the_moments_of_their_class():
    made, n = prior(), 60_000
    y = torch.arange(n) % 3
    z = made.sample(n, one_hot(y), torch.Generator().manual_seed(1)).detach()
    for i in range(3):
        deviation = (0.5 * made.log_var[i]).exp()
        of_class = z[y == i]
        error = 5 * deviation / len(of_class) ** 0.5
        assert ((of_class.mean(0) - made.mu[i]).abs() < error).all()
        assert ((of_class.std(0) - deviation).abs() < error).all()


def test_without_classes_it_is_one_gaussian():
    made, z = prior(classes=0), torch.randn(4, 3, 2)
    expected = reference(made, torch.zeros(1, dtype=torch.int64)).log_prob(z.double())
    torch.testing.assert_close(made.log_prob(z).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made.marginal_log_prob(z).sum(2), made.log_prob(z))


def test_classes_must_be_given():
    for call in (lambda: prior().log_prob(torch.zeros(1, 1, 2)), lambda: prior().sample(2)):
        with pytest.raises(ValueError, match="a prior given the class: give the classes"):
            call()


def test_classes_start_at_the_standard_normal():
    made = LabelNormal(2, 3)
    assert made.mu.abs().max() == made.log_var.abs().max() == 0


def test_a_conditional_model_has_a_closed_form_of_the_kl(batch):
    model = CVAE(image_shape=(1, 8, 8), num_classes=4, prior=LabelNormal)
    assert model.has(Capability.KL_PER_DIMENSION)
    assert model.latent_kl(batch.x, batch.y).shape == (16, 20)


def test_density_keeps_its_digits_under_autocast():
    made, y, z = prior(), torch.tensor([0, 1, 2]), torch.randn(3, 2, 2)
    exact = made.log_prob(z, one_hot(y))
    with torch.autocast("cpu", torch.bfloat16):
        assert made.log_prob(z, one_hot(y)).equal(exact)


def test_a_temperature_multiplies_the_standard_deviations_of_the_class():
    made, y = prior(), torch.tensor([0, 2, 1])
    z = torch.randn(3, 2)
    cold = made.tempered(z, 0.5, one_hot(y))
    mean, scale = reference(made, y).mean, reference(made, y).stddev
    torch.testing.assert_close((cold - mean) / scale, 0.5 * (z - mean) / scale)
