"""Variables of two categories are Bernoulli variables, relaxed by the binary concrete."""

import functools

import pytest
import torch
from scipy import stats
from torch.distributions import Bernoulli, RelaxedBernoulli, kl_divergence

from vae_lightning import CategoricalVAE
from vae_lightning.distributions.categorical import Categorical, UniformCategorical
from vae_lightning.distributions.gumbel_softmax import GumbelSoftmaxPosterior
from vae_lightning.randomness import Noise


def posterior(logits: torch.Tensor, temperature: float | None = None) -> Categorical:
    """Bernoulli variables with these logits (B, N), as variables of two categories."""
    scores = torch.stack([logits, torch.zeros_like(logits)], 2)
    return Categorical(scores.log_softmax(2), temperature)


@pytest.mark.parametrize("temperature", [0.3, 0.67, 1.5])
@pytest.mark.parametrize("logit", [-1.3, 0.0, 2.0])
def test_relaxed_draws_follow_the_binary_concrete(logit, temperature):
    """A sigmoid of a logistic variable, against the density that torch has of it."""
    q = posterior(torch.tensor([[logit]]), temperature)
    z = q.rsample(Noise(torch.arange(1), "test"), 20_000).z[0]
    torch.testing.assert_close(z.sum(1), torch.ones(20_000))
    values = z[:, 0].double().log() - z[:, 1].double().log()  # logits, which are logistic
    found = stats.kstest(values.numpy(), lambda t: stats.logistic.cdf(temperature * t - logit))
    assert found.pvalue > 1e-3
    # And this is torch's binary concrete.
    t = torch.linspace(-8, 8, 33, dtype=torch.float64)
    concrete = RelaxedBernoulli(
        torch.tensor(temperature).double(), logits=torch.tensor(logit).double()
    )
    logsigmoid = torch.nn.functional.logsigmoid
    density = concrete.log_prob(t.sigmoid()) + logsigmoid(t) + logsigmoid(-t)
    expected = torch.from_numpy(stats.logistic.logpdf(temperature * t.numpy() - logit))
    torch.testing.assert_close(density, expected + torch.tensor(temperature).double().log())


def test_relaxed_draws_are_sigmoids_of_the_difference_of_the_noise():
    """One logistic number for each variable: the binary concrete of Maddison et al."""
    logits, noise = torch.randn(3, 4), Noise(torch.arange(3), "test")
    z = posterior(logits, 0.67).rsample(noise.restart()).z.view(3, 4, 2)
    gumbel = -(-noise.uniform(8).log()).log()
    logistic = gumbel[:, ::2] - gumbel[:, 1::2]
    expected = RelaxedBernoulli(torch.tensor(0.67), logits=logits)
    torch.testing.assert_close(z[..., 0], ((logits + logistic) / expected.temperature).sigmoid())


def test_kl_probabilities_and_gradients_are_those_of_bernoulli_variables():
    logits = torch.randn(5, 7, requires_grad=True)
    q, bernoulli = posterior(logits), Bernoulli(logits=logits)
    kl = UniformCategorical(14, num_categories=2).kl(q)
    expected = kl_divergence(bernoulli, Bernoulli(logits=torch.zeros(5, 7)))
    torch.testing.assert_close(kl, expected, rtol=1e-4, atol=1e-6)
    found, wanted = (
        torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (kl, expected)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    draws = q.rsample(Noise(torch.arange(5), "test"), 9)
    on = draws.z.unflatten(2, (7, 2))[..., 0]
    assert ((on == 0) | (on == 1)).all()
    log_prob = bernoulli.log_prob(on.transpose(0, 1)).sum(2).T
    torch.testing.assert_close(draws.log_prob, log_prob, rtol=1e-5, atol=1e-5)


def test_frequencies_of_exact_draws():
    logits = torch.tensor([[-2.0, 0.0, 1.0]])
    z = posterior(logits).rsample(Noise(torch.arange(1), "test"), 40_000).z[0].unflatten(1, (3, 2))
    p = logits[0].sigmoid()
    assert ((z[..., 0].mean(0) - p).abs() < 4 * (p * (1 - p) / 40_000).sqrt()).all()


def test_a_decoder_sees_each_variable_twice_which_changes_no_function():
    """z and 1 - z: any linear layer of Bernoulli variables is one of these vectors."""
    vae = CategoricalVAE(image_shape=(1, 8, 8), num_variables=6, num_categories=2)
    assert vae.latent_dim == 12
    z = vae.prior.sample(100).unflatten(1, (6, 2))
    assert z[..., 0].equal(1 - z[..., 1])
    assert functools.reduce(
        bool.__and__, [0.2 < share < 0.8 for share in z[..., 0].mean(0).tolist()]
    )
    family = GumbelSoftmaxPosterior(12, num_categories=2)
    features = torch.randn(3, 12)
    logits = features.unflatten(1, (6, 2)).diff(dim=2).neg().squeeze(2)
    torch.testing.assert_close(family.eval()(features).mean[:, ::2], logits.sigmoid())
