import pytest
import torch
import torch.distributions as td

from vae_lightning.likelihoods import Bernoulli, Gaussian, Likelihood

X = torch.rand(6, 2, 4, 5)
PARAMS = 3 * torch.randn(6, 2, 4, 5)


def test_bernoulli_is_that_of_torch_distributions():
    x = X.round()
    expected = td.Bernoulli(logits=PARAMS).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(Bernoulli().log_prob(PARAMS, x), expected)


def test_bernoulli_sums_to_one_over_all_images():
    params = torch.randn(1, 1, 1, 4)
    images = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4).view(16, 1, 1, 4)
    total = Bernoulli().log_prob(params.expand(16, -1, -1, -1), images).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("sigma", [0.05, 0.1, 1.0])
def test_gaussian_is_that_of_torch_distributions(sigma):
    expected = td.Normal(PARAMS, sigma).log_prob(X).sum((1, 2, 3))
    torch.testing.assert_close(Gaussian(sigma).log_prob(PARAMS, X), expected, rtol=1e-4, atol=1e-3)


def test_gaussian_integrates_to_one():
    grid = torch.linspace(-3, 4, 20_001)
    density = Gaussian(0.2).log_prob(torch.full((20_001, 1, 1, 1), 0.3), grid.view(-1, 1, 1, 1))
    assert torch.trapezoid(density.exp(), grid).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian()], ids=["bernoulli", "gaussian"])
class TestEveryLikelihood:
    def test_sums_pixels_and_keeps_images_apart(self, likelihood: Likelihood):
        whole = likelihood.log_prob(PARAMS, X)
        assert whole.shape == (6,)
        columns = likelihood.log_prob(PARAMS[..., :3], X[..., :3])
        rest = likelihood.log_prob(PARAMS[..., 3:], X[..., 3:])
        torch.testing.assert_close(columns + rest, whole)

    def test_computes_in_float32(self, likelihood: Likelihood):
        half = PARAMS.bfloat16()
        log_prob = likelihood.log_prob(half, X)
        assert log_prob.dtype == torch.float32
        torch.testing.assert_close(log_prob, likelihood.log_prob(half.float(), X))

    def test_mean_is_an_image(self, likelihood: Likelihood):
        mean = likelihood.mean(10 * PARAMS)
        assert mean.min() >= 0
        assert mean.max() <= 1


def test_bernoulli_survives_large_logits():
    params = torch.tensor([[[[200.0, -200.0]]]])
    assert Bernoulli().log_prob(params, torch.tensor([[[[1.0, 0.0]]]])).item() == 0
    assert Bernoulli().log_prob(params, torch.tensor([[[[0.0, 1.0]]]])).item() == -400


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_gaussian_refuses_a_sigma_that_is_none(sigma):
    with pytest.raises(ValueError, match="sigma must be positive"):
        Gaussian(sigma)
