"""FactorVAE: permuted latents, separate gradients, and what the critic's logit estimates."""

import functools
import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from vae_lightning import VAE, FactorVAE
from vae_lightning.distributions.likelihoods import Gaussian
from vae_lightning.models.factor_vae import permute_dimensions
from vae_lightning.nets import MLPDecoder, MLPEncoder
from vae_lightning.randomness import Noise


def model(**kwargs) -> FactorVAE:
    options = {"image_shape": (1, 8, 8), "latent_dim": 3, "critic_hidden": (16, 16)}
    return FactorVAE(**{**options, **kwargs})


def noise(n, *keys):
    return Noise(torch.arange(n), *keys)


# Permutations


def test_permutations_keep_the_values_of_each_dimension_and_break_the_rows():
    z = torch.randn(500, 1).expand(-1, 4) + torch.arange(4)  # all dimensions say the same
    permuted = permute_dimensions(z, noise(500, "test"))
    assert permuted.sort(0).values.equal(z.sort(0).values)
    assert not permuted.equal(z)
    correlations = torch.corrcoef(permuted.T) - torch.eye(4)
    assert correlations.abs().max() < 4 / math.sqrt(500)
    # No dimension stays where it is, either.
    for d in range(4):
        assert torch.corrcoef(torch.stack([permuted[:, d], z[:, d]]))[0, 1].abs() < 0.2


def test_permutations_are_uniform():
    """Each of the 6 orders of 3 rows, to 4.5 standard errors."""
    z, n = torch.arange(3.0)[:, None], 2000
    orders = torch.stack([permute_dimensions(z, noise(3, "test", i))[:, 0] for i in range(n)])
    counts = torch.unique(orders, dim=0, return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts / n - 1 / 6).abs() < 4.5 * math.sqrt(5 / 36 / n)).all()


def test_permutations_are_a_function_of_the_keys_and_have_no_gradient():
    z = torch.randn(20, 3, requires_grad=True)
    first, again = (permute_dimensions(z, noise(20, "test", 1)) for _ in range(2))
    assert first.equal(again)
    assert not first.equal(permute_dimensions(z, noise(20, "test", 2)))
    assert not first.requires_grad
    # Whatever has been drawn before.
    used = noise(20, "test", 1)
    used.normal(3)
    assert permute_dimensions(z, used).equal(first)


# Terms


def test_terms_are_those_of_the_paper(batch):
    """Loss of the critic in float64: cross-entropy with labels 1 for z and 0 for permuted z."""
    factor = model(num_samples=2)
    terms = factor.terms(batch.x, None, Noise(batch.indices, "test"))
    z = factor.posterior(batch.x).rsample(Noise(batch.indices, "test"), 2).z[:, 0]
    permuted = permute_dimensions(z, Noise(batch.indices, "test"))
    real, fake = factor.critic(z)[:, 0].double(), factor.critic(permuted)[:, 0].double()
    expected = -0.5 * (real.sigmoid().log() + (1 - fake.sigmoid()).log())
    torch.testing.assert_close(terms.critic.double(), expected, rtol=1e-5, atol=1e-6)
    # log D / (1 - D) is the logit itself.
    d = real.sigmoid()
    expected = (d / (1 - d)).log()
    torch.testing.assert_close(terms.total_correlation.double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        factor.objective(terms), terms.reconstruction + terms.kl + 6 * terms.total_correlation
    )
    assert factor.critic_objective(terms).equal(terms.critic)


def test_without_a_weight_it_is_the_plain_vae(batch):
    factor, vae = model(gamma=0.0), VAE(image_shape=(1, 8, 8), latent_dim=3)
    vae.load_state_dict({k: v for k, v in factor.state_dict().items() if "critic" not in k})
    ours = factor.objective(factor.terms(batch.x, None, Noise(batch.indices, "test")))
    theirs = vae.objective(vae.terms(batch.x, None, Noise(batch.indices, "test")))
    torch.testing.assert_close(ours, theirs)


def gradients(factor, loss):
    named = dict(factor.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    return dict(zip(named, grads, strict=True))


def test_gradients_are_separate(batch):
    """The objective does not train the critic, and the critic's loss nothing else."""
    factor = model()
    terms = factor.terms(batch.x, None, Noise(batch.indices))
    of_objective = gradients(factor, factor.objective(terms).mean())
    of_critic = gradients(factor, factor.critic_objective(terms).mean())
    for name in of_objective:
        mine, other = of_objective[name], of_critic[name]
        if name.startswith("critic"):
            mine, other = other, mine
        assert mine.abs().sum() > 0, name
        assert other is None, name


def test_total_correlation_trains_the_encoder_through_the_critic(batch):
    factor = model()
    terms = factor.terms(batch.x, None, Noise(batch.indices, "test"))
    found = gradients(factor, terms.total_correlation.mean())
    z = factor.posterior(batch.x).rsample(Noise(batch.indices, "test")).z[:, 0]
    expected = gradients(factor, factor.critic(z).mean())
    for name, gradient in found.items():
        if name.startswith("encoder"):
            torch.testing.assert_close(gradient, expected[name])
            assert gradient.abs().sum() > 0
        else:
            assert gradient is None


# What the critic learns


class Identity(nn.Module):
    """An encoder of images that are latents, with hardly any noise."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x, condition=None):
        return torch.cat([x.flatten(1), torch.full((len(x), 2), -20.0)], 1)


def test_logit_of_a_trained_critic_is_the_log_density_ratio():
    """Of Gaussians with correlation r, whose total correlation is -log(1 - r^2) / 2."""
    r = 0.8
    factor = FactorVAE(
        image_shape=(1, 1, 2),
        latent_dim=2,
        critic_hidden=(16, 16),
        encoder=functools.partial(MLPEncoder, hidden=(2,)),
        decoder=functools.partial(MLPDecoder, hidden=(2,)),
        likelihood=Gaussian,
    )
    factor.encoder = Identity()
    p = MultivariateNormal(torch.zeros(2), torch.tensor([[1, r], [r, 1]]))
    optimizer = torch.optim.Adam(factor.critic.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for step in range(300):
        terms = factor.terms(p.sample((1024,)).view(-1, 1, 1, 2), None, noise(1024, step))
        optimizer.zero_grad()
        factor.critic_objective(terms).mean().backward()
        optimizer.step()
        scheduler.step()
    z = p.sample((4000,))
    with torch.no_grad():
        found = factor.terms(z.view(-1, 1, 1, 2), None, noise(4000, "test")).total_correlation
    independent = MultivariateNormal(torch.zeros(2), torch.eye(2))
    expected = p.log_prob(z) - independent.log_prob(z)
    assert found.mean().item() == pytest.approx(-0.5 * math.log(1 - r**2), abs=0.07)
    typical = z.norm(dim=1) < 2
    assert (found - expected)[typical].abs().mean() < 0.1
    assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.95


def test_terms_that_depend_on_the_batch_are_named(batch):
    factor = model()
    whole = factor.terms(batch.x, None, Noise(batch.indices, "test"))
    part = factor.terms(batch.x[:5], None, Noise(batch.indices[:5], "test")).as_dict()
    for name, value in whole.as_dict().items():
        same = torch.allclose(value[:5], part[name], rtol=1e-5, atol=1e-5)
        assert same == (name not in whole.batch_dependent), name


def test_critic_has_the_layers_asked_for():
    assert [layer.out_features for layer in model().critic[::2]] == [16, 16, 1]
    assert [layer.out_features for layer in model(critic_hidden=()).critic] == [1]


@pytest.mark.parametrize("gamma", [-1.0, math.nan])
def test_gamma_must_not_be_negative(gamma):
    with pytest.raises(ValueError, match="gamma must not be negative"):
        model(gamma=gamma)
