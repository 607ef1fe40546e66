"""What every likelihood promises; a new one is found here by itself. Then each one's own maths."""

import functools
import math

import pytest
import torch
import torch.distributions as td
from contract_checks import implementations, small

from vae_lightning import VAE
from vae_lightning.distributions.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    Likelihood,
)
from vae_lightning.training.module import LitVAE

X = torch.rand(6, 2, 8, 9)
PARAMS = 3 * torch.randn(6, 2, 8, 9)


def learned_sigma() -> Gaussian:
    return Gaussian(learn_sigma=True)


LIKELIHOODS = [*implementations(Likelihood), learned_sigma]
DISTRIBUTIONS = [build for build in LIKELIHOODS if small(build)().normalized]


def test_every_likelihood_is_here():
    assert {Bernoulli, ContinuousBernoulli, Gaussian, DiscretizedLogistic} <= set(DISTRIBUTIONS)


@pytest.fixture
def likelihood(request) -> Likelihood:
    return small(request.param)()


@pytest.fixture
def params(likelihood):
    """For images of the shape of X."""
    return 3 * torch.randn(6, 2 * likelihood.n_params, *X.shape[2:])


def one_pixel(likelihood, values):
    """Combinations of parameters out of ``values``: all of them, or some, (N, n_params, 1, 1)."""
    values, n = torch.tensor(values), likelihood.n_params
    if n > 3:
        chosen = torch.randint(len(values), (500, n), generator=torch.Generator().manual_seed(0))
        return values[chosen].view(-1, n, 1, 1)
    return torch.cartesian_prod(*[values] * n).view(-1, n, 1, 1)


def names(build):
    return build.__name__


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=names, indirect=True)
class TestEveryLikelihood:
    def test_keeps_images_apart(self, likelihood, params):
        whole = likelihood.log_prob(params, X)
        assert whole.shape == (6,)
        each = [likelihood.log_prob(params[[i]], X[[i]]) for i in range(6)]
        torch.testing.assert_close(torch.cat(each), whole)

    def test_parameters_belong_to_their_channel(self, likelihood, params):
        channels = [
            likelihood.log_prob(params[:, channel::2], X[:, [channel]]) for channel in range(2)
        ]
        torch.testing.assert_close(channels[0] + channels[1], likelihood.log_prob(params, X))
        mean = likelihood.mean(params)
        torch.testing.assert_close(likelihood.mean(params[:, 1::2]), mean[:, [1]])

    def test_leading_dimensions_are_broadcast(self, likelihood, params):
        draws = torch.stack([params, params.flip(0), 2 * params], dim=1)
        together = likelihood.log_prob(draws, X[:, None])
        assert together.shape == (6, 3)
        loop = [likelihood.log_prob(draws[:, k], X) for k in range(3)]
        torch.testing.assert_close(together, torch.stack(loop, dim=1))
        alone = likelihood.log_prob(params[0], X[0])
        torch.testing.assert_close(alone, likelihood.log_prob(params, X)[0])

    def test_computes_in_float32(self, likelihood, params):
        half = params.bfloat16()
        log_prob = likelihood.log_prob(half, X)
        assert log_prob.dtype == likelihood.mean(half).dtype == torch.float32
        torch.testing.assert_close(log_prob, likelihood.log_prob(half.float(), X))

    def test_mean_is_an_image(self, likelihood, params):
        mean = likelihood.mean(10 * params)
        assert mean.shape == X.shape
        if likelihood.bounded:
            assert mean.min() >= 0
            assert mean.max() <= 1

    def test_starts_at_about_a_mean_image(self, likelihood):
        image = torch.linspace(0, 1, 101).expand(2, 3, 101)
        params = likelihood.params_at(image)
        assert params.shape == (2 * likelihood.n_params, 3, 101)
        assert params.isfinite().all()
        mean = likelihood.mean(params[None])[0]
        torch.testing.assert_close(mean, image, rtol=0, atol=1.001e-3)
        torch.testing.assert_close(mean[..., 50], torch.full((2, 3), 0.5))
        assert (mean.diff() >= 0).all()
        assert ((mean - 0.5) * (image - 0.5) >= -1e-7).all()

    def test_says_what_its_values_are(self, likelihood):
        assert likelihood.num_values in (None, 2, 256)
        assert (likelihood.num_values == 2) == likelihood.binary
        assert likelihood.loss_name


@pytest.mark.parametrize("likelihood", DISTRIBUTIONS, ids=names, indirect=True)
class TestEveryDistribution:
    """Of independent pixels."""

    def test_sums_pixels(self, likelihood, params):
        columns = likelihood.log_prob(params[..., :3], X[..., :3])
        rest = likelihood.log_prob(params[..., 3:], X[..., 3:])
        torch.testing.assert_close(columns + rest, likelihood.log_prob(params, X))

    @pytest.mark.parametrize("level", [0, 1, 128, 254, 255])
    def test_finite_everywhere_with_a_finite_gradient(self, likelihood, level):
        values = [-200.0, -30, -1, -1e-4, 0, 1e-4, 1e-2, 1, 30, 200]
        params = one_pixel(likelihood, values).requires_grad_()
        log_prob = likelihood.log_prob(params, torch.full((1, 1, 1, 1), level / 255))
        assert params[~log_prob.isfinite()].flatten(1).tolist() == []
        log_prob.sum().backward()
        finite = params.grad.isfinite().flatten(1).all(1)
        assert params[~finite].flatten(1).tolist() == []
        for parameter in likelihood.parameters():
            assert not parameter.requires_grad or parameter.grad.isfinite()

    @pytest.mark.parametrize("x", [0, 0.4, 1])
    def test_gradient_is_the_limit_of_differences(self, likelihood, x):
        """At 0 too, where formulas change over."""
        params = one_pixel(likelihood, [-3.0, -1, 0, 1, 3]).requires_grad_()
        x = torch.full((1, 1, 1, 1), x)
        likelihood.log_prob(params, x).sum().backward()
        for i in range(0, likelihood.n_params, max(1, likelihood.n_params // 20)):
            step = torch.zeros_like(params)
            step[:, i] = 0.01
            with torch.no_grad():
                ends = [likelihood.log_prob(params + sign * step, x) for sign in (1, -1)]
            expected = (ends[0] - ends[1]) / 0.02
            torch.testing.assert_close(params.grad[:, i, 0, 0], expected, rtol=1e-2, atol=2e-2)


def test_bernoulli_is_that_of_torch_distributions():
    x = X.round()
    expected = td.Bernoulli(logits=PARAMS).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(Bernoulli().log_prob(PARAMS, x), expected)


def test_bernoulli_sums_to_one_over_all_images():
    params = torch.randn(1, 1, 1, 4)
    images = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4).view(16, 1, 1, 4)
    total = Bernoulli().log_prob(params.expand(16, -1, -1, -1), images).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-5)


def test_bernoulli_survives_large_logits():
    params = torch.tensor([[[[200.0, -200.0]]]])
    assert Bernoulli().log_prob(params, torch.tensor([[[[1.0, 0.0]]]])).item() == 0
    assert Bernoulli().log_prob(params, torch.tensor([[[[0.0, 1.0]]]])).item() == -400


def integrate(likelihood, params, grid, weight=1.0):
    """Of the density of one pixel, times ``weight``, over ``grid``."""
    params = torch.tensor(params).view(1, -1, 1, 1)
    density = likelihood.log_prob(params, grid.float().view(-1, 1, 1, 1)).double().exp()
    return torch.trapezoid(density * weight, grid).item()


UNIT = torch.linspace(0, 1, 20_001, dtype=torch.float64)
# On both sides of the places where series take over, 0.01 and 0.1.
SIZES = [1e-4, 0.009, 0.011, 0.09, 0.11, 3.0, 30.0]
LOGITS = [0.0, *SIZES, *(-size for size in SIZES)]


@pytest.mark.parametrize("logit", LOGITS)
class TestContinuousBernoulli:
    def test_integrates_to_one(self, logit):
        assert integrate(ContinuousBernoulli(), logit, UNIT) == pytest.approx(1, abs=2e-5)

    def test_mean_is_that_of_its_density(self, logit):
        expected = integrate(ContinuousBernoulli(), logit, UNIT, weight=UNIT)
        mean = ContinuousBernoulli().mean(torch.tensor(logit)).item()
        assert mean == pytest.approx(expected, abs=2e-5)
        reference = td.ContinuousBernoulli(logits=torch.tensor(logit, dtype=torch.float64))
        # The closed form is a difference of large numbers where logits are small.
        tolerance = 2e-7 if abs(logit) < 0.1 else 2e-6
        assert mean == pytest.approx(reference.mean.item(), abs=tolerance)

    def test_is_that_of_torch_distributions(self, logit):
        x = torch.linspace(0, 1, 11, dtype=torch.float64)
        reference = td.ContinuousBernoulli(logits=torch.tensor(logit, dtype=torch.float64))
        log_prob = ContinuousBernoulli().log_prob(torch.tensor(logit), x.view(-1, 1, 1, 1))
        # torch's own reference loses digits near certainty.
        torch.testing.assert_close(
            log_prob.double(), reference.log_prob(x), rtol=2e-6, atol=1e-4 if logit == 30 else 1e-6
        )

    def test_gradient_is_the_distance_from_the_mean(self, logit):
        params = torch.tensor(logit).requires_grad_()
        for x in (0.0, 0.3, 1.0):
            log_prob = ContinuousBernoulli().log_prob(params, torch.full((1, 1, 1), x))
            (gradient,) = torch.autograd.grad(log_prob, params)
            expected = x - ContinuousBernoulli().mean(params)
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("logit", [200.0, -200.0])
def test_continuous_bernoulli_survives_large_logits(logit):
    """Where its closed form in float64 still can be evaluated."""
    exact = torch.tensor(logit, dtype=torch.float64)
    x = torch.linspace(0, 1, 5, dtype=torch.float64)
    expected = exact * x - (exact.expm1() / exact).log()
    log_prob = ContinuousBernoulli().log_prob(exact.float(), x.view(-1, 1, 1, 1))
    torch.testing.assert_close(log_prob.double(), expected, rtol=1e-6, atol=1e-5)
    expected = (1 / -(-exact).expm1() - 1 / exact).float()
    torch.testing.assert_close(ContinuousBernoulli().mean(exact), expected)


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize("sigma", [0.05, 0.1, 1.0])
def test_gaussian_is_that_of_torch_distributions(sigma, learn_sigma):
    expected = td.Normal(PARAMS, sigma).log_prob(X).sum((1, 2, 3))
    log_prob = Gaussian(sigma, learn_sigma).log_prob(PARAMS, X)
    torch.testing.assert_close(log_prob, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_gaussian_integrates_to_one(learn_sigma):
    grid = torch.linspace(-3, 4, 20_001, dtype=torch.float64)
    likelihood = Gaussian(0.2, learn_sigma)
    assert integrate(likelihood, 0.3, grid) == pytest.approx(1, abs=1e-4)
    with torch.no_grad():
        likelihood.log_sigma += 1  # as after some training
    assert integrate(likelihood, 0.3, grid) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_gaussian_refuses_a_sigma_that_is_none(sigma):
    with pytest.raises(ValueError, match="sigma must be positive"):
        Gaussian(sigma)


def test_gaussian_gradient_of_a_learned_sigma():
    """Sum over images of (squared error / sigma^2 - pixels), so its zero is the RMSE."""
    squared = (X - PARAMS).square().sum()
    for sigma in (0.3, 5.0):
        likelihood = Gaussian(sigma, learn_sigma=True)
        likelihood.log_prob(PARAMS, X).sum().backward()
        expected = squared / sigma**2 - X.numel()
        torch.testing.assert_close(likelihood.log_sigma.grad, expected, rtol=1e-4, atol=1e-2)


def test_gaussian_learns_the_root_mean_squared_error():
    rmse = (X - PARAMS).square().mean().sqrt().item()
    assert rmse > 2
    likelihood = Gaussian(1.0, learn_sigma=True)
    optimizer = torch.optim.SGD(likelihood.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        (-likelihood.log_prob(PARAMS, X).mean() / X[0].numel()).backward()
        optimizer.step()
    assert likelihood.log_sigma.exp().item() == pytest.approx(rmse, rel=1e-4)


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_gaussian_sigma_is_trained_only_if_learned(learn_sigma):
    likelihood = functools.partial(Gaussian, learn_sigma=learn_sigma)
    model = VAE(image_shape=(1, 8, 8), likelihood=likelihood)
    own = [p for p in model.likelihood.parameters() if p.requires_grad]
    assert len(own) == learn_sigma
    trained = LitVAE(model).configure_optimizers().param_groups[0]["params"]
    assert {id(p) for p in own} <= {id(p) for p in trained}
    model.likelihood.log_prob(PARAMS.clone().requires_grad_(), X).sum().backward()
    assert all(p.grad.abs() > 0 for p in own)


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_gaussian_says_its_sigma(learn_sigma):
    assert Gaussian(0.3, learn_sigma).sigma == pytest.approx(0.3)


LEVELS = torch.arange(256) / 255


@pytest.mark.parametrize("log_scale", [-200.0, -8.0, -7.0, -5.0, -2.0, 0.0, 3.0, 30.0])
@pytest.mark.parametrize("mu", [-2.0, 0.0, 0.301, 0.5, 1.0, 1.7])
class TestDiscretizedLogistic:
    def log_prob(self, mu, log_scale):
        params = torch.tensor([mu, log_scale]).view(2, 1, 1)
        return DiscretizedLogistic().log_prob(params, LEVELS.view(-1, 1, 1, 1))

    def test_sums_to_one_over_its_values(self, mu, log_scale):
        total = self.log_prob(mu, log_scale).double().exp().sum().item()
        assert total == pytest.approx(1, abs=1e-4)

    def test_is_the_difference_of_distribution_functions(self, mu, log_scale):
        """In float64; of values where the difference keeps its digits."""
        log_scale64 = torch.tensor(log_scale, dtype=torch.float64)
        scale = (-7 + torch.nn.functional.softplus(log_scale64 + 7)).exp()
        edges = (torch.arange(257, dtype=torch.float64) - 0.5) / 255
        below = ((edges - mu) / scale).sigmoid()
        below[0], below[-1] = 0, 1
        above = ((mu - edges) / scale).sigmoid()  # keeps digits on the other side of mu
        above[0], above[-1] = 1, 0
        p = torch.maximum(below.diff(), -above.diff())
        exact = p > 1e-10
        assert exact.any()
        log_prob = self.log_prob(mu, log_scale).double()
        torch.testing.assert_close(log_prob[exact], p[exact].log(), rtol=1e-4, atol=1e-3)


def test_discretized_logistic_keeps_digits_far_from_its_mean():
    """log p of a value d away is about -d / scale, long after p itself is 0 in float32."""
    params = torch.tensor([0.2, -6.0]).view(2, 1, 1)
    log_prob = DiscretizedLogistic().log_prob(params, torch.full((1, 1, 1), 204 / 255))
    scale = math.exp(-7 + math.log1p(math.exp(1)))
    # The tail between a and b > a: e^-a - e^-b.
    a, b = (203.5 / 255 - 0.2) / scale, (204.5 / 255 - 0.2) / scale
    expected = -a + math.log(-math.expm1(a - b))
    assert expected < -80
    assert log_prob.item() == pytest.approx(expected, rel=1e-4)


def test_discretized_logistic_mean_and_scale_are_separate_channels():
    params = torch.tensor([0.1, 0.9, -3.0, -1.0]).view(4, 1, 1)  # two means, two log-scales
    means = [DiscretizedLogistic().mean(params[i::2]).item() for i in range(2)]
    assert DiscretizedLogistic().mean(params).flatten().tolist() == pytest.approx(means)
    x = torch.tensor([51, 204]).view(2, 1, 1) / 255
    each = [DiscretizedLogistic().log_prob(params[i::2], x[[i]]) for i in range(2)]
    torch.testing.assert_close(DiscretizedLogistic().log_prob(params, x), each[0] + each[1])


@pytest.mark.parametrize("mu", [-0.3, 0.02, 0.5, 0.98])
@pytest.mark.parametrize("log_scale", [-5.0, -3.0, 0.0])
def test_the_mean_of_a_discretized_logistic_is_that_of_its_values(mu, log_scale):
    likelihood = DiscretizedLogistic()
    params = torch.tensor([mu, log_scale]).view(2, 1, 1)
    values = torch.arange(256) / 255
    p = likelihood.log_prob(params, values.view(-1, 1, 1, 1)).double().exp()
    expected = (p * values).sum().item()
    assert likelihood.mean(params).item() == pytest.approx(expected, abs=0.1 / 255)


def test_discretized_logistic_scales_stay_above_the_smallest():
    x = torch.full((1, 1, 1), 0.5)
    params = torch.tensor([0.6, -1e4]).view(2, 1, 1)
    for smallest in (-7.0, -3.0):
        bound = torch.tensor([0.6, smallest]).view(2, 1, 1)
        # A bound far below leaves a log-scale as it is.
        expected = DiscretizedLogistic(-1e3).log_prob(bound, x)
        torch.testing.assert_close(DiscretizedLogistic(smallest).log_prob(params, x), expected)


@pytest.mark.parametrize("size", [0.0, 1e-3, 0.09, 0.11, 50.0, 1e4, 1e30])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("build", LIKELIHOODS, ids=names)
def test_gradients_are_finite_for_any_parameter(build, size, sign):
    likelihood = small(build)()
    limited = min(size, 1e15) if isinstance(likelihood, Gaussian | DiscretizedLogistic) else size
    params = torch.full((1, likelihood.n_params, 8, 8), sign * limited, requires_grad=True)
    x = torch.tensor([0.0, 0.3, 0.7, 1.0]).view(1, 1, 2, 2).repeat(1, 1, 4, 4)
    value = likelihood.log_prob(params, x) + likelihood.mean(params).sum()
    value.sum().backward()
    assert params.grad.isfinite().all()


def test_a_learned_sigma_is_bounded():
    likelihood = Gaussian(learn_sigma=True)
    likelihood.log_sigma.data.fill_(-1e4)
    x = torch.zeros(1, 1, 2, 2)
    value = likelihood.log_prob(x, x)
    value.sum().backward()
    assert value.isfinite().all()
    assert likelihood.log_sigma.grad.isfinite()


@pytest.mark.parametrize("log_sigma", [-1e4, 1e4])
def test_draws_have_the_bounded_sigma(log_sigma):
    likelihood = Gaussian(learn_sigma=True)
    likelihood.log_sigma.data.fill_(log_sigma)
    x = likelihood.sample(torch.zeros(1, 1, 50, 50)).double()
    assert x.std().item() == pytest.approx(likelihood.sigma, rel=0.1)


class _Images:
    """Training images with a standard deviation of 3 around a mean that differs by pixel."""

    def random_images(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        mean = torch.linspace(-50, 50, 16).view(1, 4, 4)
        return mean + 3 * torch.randn(n, 1, 4, 4, generator=generator)


def test_sigma_starts_from_the_data():
    likelihood = Gaussian(sigma=None, learn_sigma=True)
    likelihood.init_from_data(_Images())
    assert likelihood.sigma == pytest.approx(1, rel=0.02)
    fixed = Gaussian(sigma=0.5, learn_sigma=True)
    fixed.init_from_data(_Images())
    assert fixed.sigma == pytest.approx(0.5)
    with pytest.raises(ValueError, match="only with learn_sigma"):
        Gaussian(sigma=None)
