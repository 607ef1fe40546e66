"""Mixtures of logistics and categorical pixels against sums over their 256 values, in float64."""

import math

import pytest
import torch
import torch.distributions as td
from contract_checks import check_terms

from vae_lightning import VAE
from vae_lightning.batch import Batch
from vae_lightning.distributions.likelihoods import DiscretizedLogistic
from vae_lightning.distributions.pixel_likelihoods import Categorical256, MixtureOfLogistics
from vae_lightning.nets import MLPDecoder, MLPEncoder

LEVELS = torch.arange(256) / 255
N = 100_000

MIXTURES = {
    "two modes": [[0.0, 0.5], [0.1, 0.9], [-5.0, -4.0]],
    "unequal weights": [[2.0, -3.0], [0.3, 0.7], [-3.0, -2.0]],
    "outside": [[0.0, 0.0], [-0.4, 1.3], [-2.0, -1.0]],
    "narrow": [[1.0, 0.0], [0.301, 1.0], [-200.0, -8.0]],
    "wide": [[0.0, -1.0], [0.0, 2.0], [3.0, 0.5]],
    "far and wide": [[0.0, 0.0], [-5.0, 40.0], [2.0, 5.0]],
    "one of three": [[-30.0, 30.0, 0.0], [0.1, 0.45, 0.9], [-4.0, -3.5, -4.0]],
}
CASES = pytest.mark.parametrize("case", MIXTURES)


def mixture(case):
    """A likelihood, and its parameters for one pixel, (3 K, 1, 1)."""
    groups = torch.tensor(MIXTURES[case])
    return MixtureOfLogistics(components=groups.shape[1]), groups.view(-1, 1, 1)


def exact_probabilities(case, smallest=-7.0):
    """By differences of distribution functions in float64, (256,)."""
    logits, mu, log_scale = torch.tensor(MIXTURES[case], dtype=torch.float64)
    scale = (smallest + torch.nn.functional.softplus(log_scale - smallest)).exp()
    edges = (torch.arange(1, 256, dtype=torch.float64)[:, None] - 0.5) / 255
    above = ((mu - edges) / scale).sigmoid()  # P(X > edge)
    one, zero = torch.ones(1, len(mu)), torch.zeros(1, len(mu))
    p = -torch.cat([one, above, zero]).diff(dim=0)
    return (logits.softmax(0) * p).sum(1)


def check_draws(likelihood, params, p):
    """Check that draws have the probabilities ``p`` (256,), and are exactly k / 255."""
    x = likelihood.sample(params.expand(N, -1, -1, -1), torch.Generator().manual_seed(3))
    levels = (x.double() * 255).round().flatten()
    torch.testing.assert_close(x.double().flatten(), levels / 255, rtol=0, atol=1e-7)
    observed = levels.long().bincount(minlength=256).double() / N
    assert ((observed - p).abs() <= 5 * (p * (1 - p) / N).sqrt() + 5 / N).all()
    mean = (p * LEVELS).sum().item()
    deviation = (p * (LEVELS - mean).square()).sum().sqrt().item()
    assert x.mean().item() == pytest.approx(mean, abs=5 * deviation / math.sqrt(N) + 1e-6)


class TestMixtureOfLogistics:
    @CASES
    def test_is_the_mixture_of_differences_of_distribution_functions(self, case):
        likelihood, params = mixture(case)
        p, expected = (
            likelihood.log_prob(params, LEVELS.view(-1, 1, 1, 1)).double().exp(),
            exact_probabilities(case),
        )
        assert p.sum().item() == pytest.approx(1, abs=1e-4)
        torch.testing.assert_close(p, expected, rtol=2e-4, atol=1e-7)

    @CASES
    def test_mean_is_that_of_its_probabilities(self, case):
        """To a twentieth of a gray level."""
        likelihood, params = mixture(case)
        expected = (exact_probabilities(case) * LEVELS).sum().item()
        assert likelihood.mean(params).item() == pytest.approx(expected, abs=0.05 / 255)

    @CASES
    def test_draws_have_its_probabilities(self, case):
        likelihood, params = mixture(case)
        check_draws(likelihood, params, exact_probabilities(case))

    def test_one_component_is_a_discretized_logistic(self):
        params = 3 * torch.randn(6, 2, 4, 5)
        one = torch.cat([torch.randn(6, 1, 4, 5), params], 1)
        x = torch.rand(6, 1, 4, 5)
        torch.testing.assert_close(
            MixtureOfLogistics(1).log_prob(one, x), DiscretizedLogistic().log_prob(params, x)
        )

    def test_parameters_are_weights_then_means_then_scales_of_all_channels(self):
        """Channels are innermost, so that those of a channel are every C-th."""
        logits = torch.tensor([[9.0, -9.0], [-9.0, 9.0]])  # (component, channel)
        mu = torch.tensor([[0.2, 0.4], [0.6, 0.8]])
        params = torch.cat([logits, mu, torch.full((2, 2), -6.0)]).view(-1, 1, 1)
        mean = MixtureOfLogistics(2).mean(params)
        assert mean.flatten().tolist() == pytest.approx([0.2, 0.8], abs=1e-3)

    @pytest.mark.parametrize("log_scale", [-7.0, -2.0, 0.0, 3.0, 29.0])
    def test_clipped_mean_keeps_its_digits(self, log_scale):
        """Against the integral of P(X > t), for means far outside [0, 1] as well."""
        scale = math.exp(-7 + math.log1p(math.exp(log_scale + 7)))
        t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
        for mu in (-1e6, -3.0, -0.1, 0.0, 0.499, 0.5, 0.8, 1.0, 2.0, 1e6):
            expected = ((mu - t) / scale).sigmoid().mean().item()
            params = torch.tensor([0.0, mu, log_scale]).view(3, 1, 1)
            found = MixtureOfLogistics(1).mean(params).item()
            assert found == pytest.approx(expected, abs=2e-6), mu

    def test_scales_stay_above_the_smallest(self):
        x = torch.full((1, 1, 1), 0.5)
        for smallest in (-7.0, -3.0):
            low, bound = (torch.tensor([0.0, 0.6, v]).view(3, 1, 1) for v in (-1e4, smallest))
            found = MixtureOfLogistics(1, smallest).log_prob(low, x)
            expected = MixtureOfLogistics(1, -1e3).log_prob(bound, x)
            torch.testing.assert_close(found, expected)

    def test_fits_two_modes(self):
        """As a single logistic cannot: half of the pixels dark, half bright."""
        x = torch.tensor([0.2, 0.8]).view(2, 1, 1, 1).repeat(32, 1, 1, 1)
        nats = {}
        starts = {
            MixtureOfLogistics(2): [0.0, 0.0, 0.4, 0.6, -2.0, -2.0],
            DiscretizedLogistic(): [0.5, -2.0],
        }
        for likelihood, start in starts.items():
            params = torch.tensor(start).view(-1, 1, 1).requires_grad_()
            optimizer = torch.optim.Adam([params], lr=0.1)
            for _ in range(200):
                optimizer.zero_grad()
                loss = -likelihood.log_prob(params, x).mean()
                loss.backward()
                optimizer.step()
            nats[type(likelihood)] = loss.item()
        assert nats[MixtureOfLogistics] < 2.5  # log 2, with scales of 0
        assert nats[DiscretizedLogistic] > 5

    def test_needs_a_component(self):
        with pytest.raises(ValueError, match="components must be positive, got 0"):
            MixtureOfLogistics(0)
        assert MixtureOfLogistics(4).n_params == 12


class TestCategorical256:
    def logits(self, *shape):
        return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))

    def test_is_that_of_torch_distributions(self):
        logits, levels = self.logits(5, 256, 3, 4, 6), torch.randint(256, (5, 3, 4, 6))
        expected = td.Categorical(logits=logits.double().movedim(1, -1)).log_prob(levels)
        log_prob = Categorical256().log_prob(logits.flatten(1, 2), levels / 255)
        torch.testing.assert_close(log_prob.double(), expected.sum((1, 2, 3)), rtol=1e-5, atol=1e-3)

    def test_sums_to_one_over_its_values(self):
        params = self.logits(256, 1, 1)
        p = Categorical256().log_prob(params, LEVELS.view(-1, 1, 1, 1)).double().exp()
        assert p.sum().item() == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(p, params.double().flatten().softmax(0), rtol=1e-5, atol=1e-9)
        expected = (p * LEVELS).sum().item()
        assert Categorical256().mean(params).item() == pytest.approx(expected, abs=1e-6)

    def test_draws_have_its_probabilities(self):
        params = self.logits(256, 1, 1)
        check_draws(Categorical256(), params, params.double().flatten().softmax(0))

    def test_draws_nothing_impossible(self):
        """A value of probability 0 at either end, for any number of the generator."""
        params = torch.full((256, 1, 1), -1e4)
        params[[7, 130]] = 0.0
        x = Categorical256().sample(params.expand(20_000, -1, -1, -1))
        assert set((x * 255).round().flatten().tolist()) == {7.0, 130.0}

    @pytest.mark.parametrize("end", [0.0, 1 - 2.0**-24])
    def test_draws_nothing_impossible_at_the_ends_of_the_generator(self, end, monkeypatch):
        module = "vae_lightning.distributions.pixel_likelihoods.uniform_like"
        monkeypatch.setattr(module, lambda like, generator: torch.full_like(like, end))
        params = self.logits(256, 40, 50)
        params[[0, 255]] = -1e4
        levels = Categorical256().sample(params) * 255
        assert levels.min() > 0.5
        assert levels.max() < 254.5

    def test_all_values_of_eight_bits_are_told_apart(self):
        """And a value between two counts as the nearest one, as after an augmentation."""
        params = torch.eye(256)[:, :, None, None] * 30
        for shift in (-0.4, 0.0, 0.4):
            x = LEVELS.view(-1, 1, 1, 1) + shift / 255
            log_prob = Categorical256().log_prob(params, x)
            assert log_prob.max() <= 0
            assert log_prob.min() > -1e-3

    def test_start_has_the_mean_and_leaves_every_value_possible(self):
        image = torch.tensor([0.0, 0.2, 0.5, 1.0]).view(1, 2, 2)
        params = Categorical256().params_at(image)
        log_p = params.view(256, 4).log_softmax(0)
        assert log_p.min() > math.log(3e-6)
        # Apart from the uniform share, the values have exponential probabilities.
        steps = (log_p.exp() - 1e-3 / 256).log()[:, 1].diff()
        torch.testing.assert_close(steps, steps.mean().expand(255), atol=1e-2, rtol=0)


@pytest.mark.parametrize("cls", [MixtureOfLogistics, Categorical256])
def test_models_of_color_images(cls):
    parts = {"encoder": MLPEncoder, "decoder": MLPDecoder, "init_bias_from_data": True}
    model = VAE(image_shape=(3, 8, 8), latent_dim=2, likelihood=cls, **parts)
    x = torch.randint(256, (5, 3, 8, 8)) / 255
    check_terms(model, Batch(x, None, torch.arange(5)))
    assert model.sample(3).shape == (3, 3, 8, 8)
    assert model.params_shape[0] == 3 * model.likelihood.n_params
    with pytest.raises(ValueError, match=f"{cls.__name__} is a distribution of values in"):
        VAE(image_shape=(3, 8, 8), bounded=False, likelihood=cls)
