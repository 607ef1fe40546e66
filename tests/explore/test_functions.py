"""Samples, traversals, interpolations, latents and scores, against what they are defined as."""

import io
import math
from functools import partial

import pytest
import torch
from PIL import Image

from vae_lightning import (
    VAE,
    VQVAE,
    WAE,
    HierarchicalVAE,
    JointVAE,
    LadderVAE,
    VampPrior,
    explore,
)
from vae_lightning.distributions import likelihoods
from vae_lightning.distributions.mixture_prior import MixtureOfGaussians
from vae_lightning.distributions.posteriors import GaussianPosterior
from vae_lightning.distributions.priors import StandardNormal
from vae_lightning.distributions.product import ProductPosterior, ProductPrior
from vae_lightning.distributions.von_mises_fisher import UniformSphere, VonMisesFisherPosterior
from vae_lightning.explore.interpolation import path_vectors
from vae_lightning.explore.traversal import dimension_use, middle, most_used
from vae_lightning.models.capabilities import MissingCapabilityError
from vae_lightning.nets import MLPDecoder, MLPEncoder
from vae_lightning.randomness import Noise, generator

SHAPE = (1, 4, 4)
MLP = {"image_shape": SHAPE, "encoder": MLPEncoder, "decoder": MLPDecoder}


@pytest.fixture
def vae():
    torch.manual_seed(1)
    return VAE(latent_dim=3, **MLP)


@pytest.fixture
def cvae():
    torch.manual_seed(1)
    return VAE(latent_dim=3, conditional=True, num_classes=4, **MLP)


# Samples


def test_samples_are_decoded_draws_from_the_prior(vae):
    images = explore.sample(vae, 5, seed=3)
    z = vae.sample_latents(5, None, generator(3, "sample"))
    assert images.equal(vae.decode(z))
    assert not images.equal(explore.sample(vae, 5, seed=4))


@pytest.mark.parametrize("draw", [False, True])
def test_samples_do_not_depend_on_the_batch_size(cvae, draw):
    one, many = (explore.sample(cvae, 7, draw=draw, batch_size=size) for size in (7, 2))
    torch.testing.assert_close(one, many)
    assert set(one.unique().tolist()) <= {0.0, 1.0} or not draw


def test_samples_of_classes(cvae):
    z = cvae.sample_latents(4, cvae.encode_labels(torch.arange(4), 4), generator(0, "sample"))
    torch.testing.assert_close(explore.sample(cvae, 4), cvae.decode(z, torch.arange(4)))
    torch.testing.assert_close(explore.sample(cvae, 4, 2), cvae.decode(z, 2))


def test_a_temperature_scales_the_latents(vae):
    z = vae.sample_latents(5, None, generator(0, "sample"))
    images = explore.sample(vae, 5, temperature=0.5)
    torch.testing.assert_close(images, vae.decode(0.5 * z))


@pytest.mark.parametrize("prior", [VampPrior, MixtureOfGaussians])
def test_other_priors_have_no_temperature(prior):
    with pytest.raises(ValueError, match="temperature is defined for samples from a normal"):
        explore.sample(VAE(latent_dim=2, prior=prior, **MLP), 2, temperature=0.5)


def test_a_stack_of_latents_is_sampled():
    model = HierarchicalVAE(latent_dim=3, top_dim=2, hidden=(8,), **MLP)
    assert explore.sample(model, 3, batch_size=2).shape == (3, *SHAPE)
    z = model.sample_latents(3, None, generator(0, "sample"))
    hot = model.from_noise(2 * model.to_noise(z))
    torch.testing.assert_close(explore.sample(model, 3, temperature=2), model.decode(hot))


def test_sampling_leaves_the_model_and_generators_alone(vae):
    vae.train()
    before = torch.get_rng_state()
    explore.sample(vae, 3, draw=True)
    assert torch.get_rng_state().equal(before)
    assert vae.training


def test_wrong_arguments_of_samples(vae):
    with pytest.raises(ValueError, match="must be positive, got 0"):
        explore.sample(vae, 0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        explore.sample(vae, 1, temperature=math.nan)
    with pytest.raises(MissingCapabilityError):
        explore.sample(VQVAE(image_shape=(1, 8, 8)), 1)


# Traversals


def test_a_traversal_moves_one_dimension(vae):
    z = torch.tensor([0.3, -1.2, 2.0])
    made = explore.traverse(vae, z, [2, 0], steps=5, limit=2)
    assert made.axis_label == "value of the latent dimension"
    assert (made.names, made.counts) == (["z2", "z0"], [5, 5])
    torch.testing.assert_close(made.values, torch.tensor([-2.0, -1, 0, 1, 2]))
    torch.testing.assert_close(made.own, torch.tensor([2.0, 0.3]))
    torch.testing.assert_close(made.decoded, vae.decode(z[None])[0])
    for row, dimension in enumerate([2, 0]):
        for column, value in enumerate(made.values):
            moved = z.clone()
            moved[dimension] = value
            torch.testing.assert_close(
                made.images[row, column], vae.decode(moved[None])[0], atol=1e-5, rtol=0
            )
    # Where the moved value is its own, nothing has changed.
    torch.testing.assert_close(made.images[0, -1], made.decoded, atol=1e-5, rtol=0)


def test_own_values_on_the_scale_of_another_prior():
    torch.manual_seed(0)
    model = VAE(latent_dim=2, prior=MixtureOfGaussians, **MLP)
    values = torch.linspace(-2, 2, 9, dtype=torch.float64)
    quantiles = model.latent_quantiles(torch.special.ndtr(values))
    made = explore.traverse(model, quantiles[3].float(), [0, 1], steps=9, limit=2)
    assert made.axis_label.startswith("prior quantile")
    torch.testing.assert_close(made.own, torch.full((2,), values[3].item()), atol=1e-3, rtol=0)


def test_a_traversal_goes_through_categories():
    """Of two numbers, a variable of three categories and one of seven, more than the steps."""
    torch.manual_seed(0)
    vae = JointVAE(num_continuous=2, categories=[3, 7], **MLP)
    z = torch.tensor([0.3, -1.2, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0])
    made = explore.traverse(vae, z, [3, 1, 2], steps=5, limit=2)
    assert made.names == ["c3", "z1", "c2"]
    assert made.counts == [7, 7, 3]
    torch.testing.assert_close(made.values, torch.linspace(-2, 2, 7))
    torch.testing.assert_close(made.own, torch.tensor([4 / 3, -1.2, -4 / 3]))
    for row, (first, size) in [(0, (5, 7)), (2, (2, 3))]:
        for category in range(size):
            moved = z.clone()
            moved[first : first + size] = 0
            moved[first + category] = 1
            torch.testing.assert_close(
                made.images[row, category], vae.decode(moved[None])[0], atol=1e-5, rtol=0
            )
    assert made.images[2, 3:].eq(made.images[2, 2]).all()
    moved = z.repeat(7, 1)
    moved[:, 1] = made.values
    torch.testing.assert_close(made.images[1], vae.decode(moved), atol=1e-5, rtol=0)
    only = explore.traverse(vae, z, [2], steps=5)
    assert (only.values.tolist(), only.own.tolist()) == ([0, 1, 2], [1])
    assert only.axis_label == "category"
    start = middle(vae)
    assert start[:2].abs().max() < 1e-6
    assert [part.sum().item() for part in start[2:].split([3, 7])] == [1, 1]
    assert start[2:].unique().tolist() == [0, 1]


def test_points_of_a_curved_part_are_not_moved():
    parts = {
        "prior": partial(ProductPrior, priors=(StandardNormal, UniformSphere), sizes=(2, 3)),
        "posterior": partial(
            ProductPosterior, posteriors=(GaussianPosterior, VonMisesFisherPosterior), sizes=(2, 3)
        ),
    }
    vae = VAE(latent_dim=5, **parts, **MLP)
    x = torch.rand(6, *SHAPE)
    use, unit = dimension_use(vae, x)
    torch.testing.assert_close(use, vae.latent_kl(x).mean(0))
    assert (len(use), unit) == (3, "KL")
    assert most_used(vae, torch.tensor([0.1, 0.2, 9.0]), rows=5) == [1, 0]
    with pytest.raises(ValueError, match="latent dimension 2 is a point"):
        explore.traverse(vae, torch.zeros(5), [2])
    torch.testing.assert_close(middle(vae)[2:].norm(), torch.tensor(1.0))
    sphere = {"prior": UniformSphere, "posterior": VonMisesFisherPosterior}
    vae = VAE(latent_dim=3, **sphere, **MLP)
    with pytest.raises(MissingCapabilityError, match="no latent variables that could be moved"):
        explore.traverse(vae, torch.zeros(3), [0])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dimensions": [3]}, "no latent dimension 3: give 0..2"),
        ({"dimensions": [-1]}, "no latent dimension -1"),
        ({"dimensions": [0], "steps": 1}, "at least 2"),
        ({"dimensions": [0], "limit": 0}, "limit positive"),
    ],
)
def test_wrong_arguments_of_traversals(vae, kwargs, message):
    with pytest.raises(ValueError, match=message):
        explore.traverse(vae, torch.zeros(3), **kwargs)


def test_use_of_dimensions(vae):
    x = torch.rand(6, *SHAPE)
    use, unit = dimension_use(vae, x)
    torch.testing.assert_close(use, vae.latent_kl(x).mean(0))
    assert unit == "KL"
    model = WAE(latent_dim=2, **MLP)
    use, unit = dimension_use(model, x)
    torch.testing.assert_close(use, model.embed(x).var(0, correction=0))
    assert unit == "variance"


# Interpolations


@pytest.mark.parametrize("path", ["linear", "spherical"])
def test_an_interpolation_ends_at_both_ends(vae, path):
    start, end = torch.randn(2, 4, 3)
    made = explore.interpolate(vae, start, end, steps=6, path=path)
    torch.testing.assert_close(made.latents[:, 0], start)
    torch.testing.assert_close(made.latents[:, -1], end)
    torch.testing.assert_close(
        made.images, vae.decode(made.latents.flatten(0, 1)).unflatten(0, (4, 6))
    )


def test_a_spherical_path_turns_evenly(vae):
    start, end = torch.randn(2, 5, 3)
    z = explore.interpolate(vae, start, end, steps=8, path="spherical").latents.double()
    lengths = z.norm(dim=2)
    expected = torch.lerp(lengths[:, :1], lengths[:, -1:], torch.linspace(0, 1, 8).double())
    torch.testing.assert_close(lengths, expected, rtol=1e-5, atol=0)
    unit = z / lengths[..., None]
    angles = (unit[:, 1:] * unit[:, :-1]).sum(2).clamp(-1, 1).acos()
    torch.testing.assert_close(angles, angles[:, :1].expand_as(angles), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("end", [[2.0, 0, 0], [-1.0, 0, 0], [0.0, 0, 0]])
def test_a_spherical_path_without_an_angle_is_finite(vae, end):
    start = torch.tensor([[1.0, 0, 0]])
    z = explore.interpolate(vae, start, torch.tensor([end]), path="spherical").latents
    assert z.isfinite().all()
    torch.testing.assert_close(z[0, 0], start[0])


def test_an_interpolation_of_a_hierarchy_goes_through_its_noise():
    model = LadderVAE(
        latent_dims=(4, 3, 2), widths=(8, 7, 6), conditional=True, num_classes=3, **MLP
    )
    x, label = torch.rand(4, *SHAPE), torch.tensor([1, 2, 1, 2])
    vectors = path_vectors(model, x, label)
    assert vectors.shape == (4, 9)
    made = explore.interpolate(model, vectors[:2], vectors[2:], label[:2], steps=3)
    decoded = model.reconstruct(x, label)
    torch.testing.assert_close(made.images[:, 0], decoded[:2])
    torch.testing.assert_close(made.images[:, 2], decoded[2:])
    middle = model.from_noise((vectors[:2] + vectors[2:]) / 2, model.encode_labels(label[:2], 2))
    torch.testing.assert_close(made.images[:, 1], model.decode(middle, label[:2]))


def test_an_interpolation_on_a_sphere_follows_great_circles():
    parts = {"prior": UniformSphere, "posterior": VonMisesFisherPosterior}
    model = VAE(latent_dim=3, **parts, **MLP).eval()
    start, end = torch.tensor([[1.0, 0, 0], [0, 1, 0]]), torch.tensor([[0.0, 0, 1], [0, -0.6, 0.8]])
    made = explore.interpolate(model, start, end, steps=5)
    z = made.latents
    torch.testing.assert_close(z[:, 0], start)
    torch.testing.assert_close(z[:, -1], end, rtol=0, atol=1e-6)
    torch.testing.assert_close(z.norm(dim=2), torch.ones(2, 5))
    cosines = (z[:, 1:] * z[:, :-1]).sum(2)
    angle = torch.arccos((start * end).sum(1)) / 4
    torch.testing.assert_close(cosines, angle.cos()[:, None].expand(2, 4))
    torch.testing.assert_close(made.images[0], model.decode(z[0]))
    with pytest.raises(ValueError, match="has no linear path: choose geodesic"):
        explore.interpolate(model, start, end, path="linear")


def test_interpolations_of_classes(cvae):
    start, end = torch.randn(2, 2, 3)
    made = explore.interpolate(cvae, start, end, torch.tensor([1, 3]), steps=3)
    torch.testing.assert_close(made.images[1], cvae.decode(made.latents[1], 3))


def test_wrong_arguments_of_interpolations(vae):
    with pytest.raises(ValueError, match="must be latents"):
        explore.interpolate(vae, torch.zeros(1, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="steps must be at least 2"):
        explore.interpolate(vae, torch.zeros(1, 3), torch.zeros(1, 3), steps=1)
    with pytest.raises(MissingCapabilityError):
        explore.interpolate(VQVAE(image_shape=(1, 8, 8)), torch.zeros(1, 3), torch.zeros(1, 3))


# Latents and scores


def test_latents_are_those_of_the_encoder(cvae):
    x, label = torch.rand(5, *SHAPE), torch.tensor([0, 1, 2, 3, 0])
    found = explore.encode(cvae, x, label, batch_size=2)
    expected = cvae.encode(x, cvae.encode_labels(label, 5))
    for name in ("mu", "log_var"):
        torch.testing.assert_close(found[name], expected[name].detach())
        assert not found[name].requires_grad


def test_scores_of_a_model_with_a_density(cvae):
    x, label = (torch.rand(5, *SHAPE) > 0.5).float(), torch.tensor([0, 1, 2, 3, 0])
    found = explore.score(cvae, x, label, num_samples=200, seed=2)
    condition = cvae.encode_labels(label, 5)
    noise = Noise(torch.arange(5), 2, "score likelihood")
    expected = -cvae.log_marginal(x, condition, noise, 200)
    torch.testing.assert_close(found["negative_log_likelihood"], expected.float())
    kl = cvae.latent_kl(x, label).sum(1)
    torch.testing.assert_close(found["kl"], kl)
    torch.testing.assert_close(found["negative_elbo"], found["reconstruction"] + found["kl"])
    error = (cvae.reconstruct(x, label) - x).square().mean((1, 2, 3))
    torch.testing.assert_close(found["squared_error"], error)
    parts = explore.score(cvae, x, label, num_samples=200, seed=2, batch_size=2)
    order = torch.tensor([3, 0, 4])
    some = explore.score(cvae, x[order], label[order], num_samples=200, seed=2, indices=order)
    for name, value in found.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(some[name], value[order], rtol=1e-4, atol=1e-4)


def test_scores_of_a_model_without_a_density():
    found = explore.score(WAE(latent_dim=2, **MLP), torch.rand(3, *SHAPE))
    assert set(found) == {"reconstruction", "squared_error"}
    found = explore.score(VQVAE(image_shape=(1, 8, 8)), torch.rand(3, 1, 8, 8))
    assert "squared_error" in found
    assert "negative_log_likelihood" not in found


@pytest.mark.parametrize("channels", [1, 3])
def test_complexity_is_the_length_of_a_file(channels):
    x = torch.rand(2, channels, 8, 8)
    x[1] = 0.5
    found = explore.complexity(x)
    assert found[0] > found[1] > 0
    pixels = (x[0] * 255).round().byte()
    pixels = pixels[0] if channels == 1 else pixels.movedim(0, -1)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG", optimize=True)
    assert found[0].item() == pytest.approx(len(file.getvalue()) * 8 * math.log(2))


def test_a_spherical_path_between_opposite_latents_keeps_its_length(vae):
    start = torch.tensor([[1.0, 2.0, -2.0]])
    made = explore.interpolate(vae, start, -start, steps=9, path="spherical")
    assert made.latents.norm(dim=2).allclose(torch.tensor(3.0), atol=1e-5)
    assert made.latents[0, 0].allclose(start[0], atol=1e-5)
    assert made.latents[0, -1].allclose(-start[0], atol=1e-5)
    turns = torch.nn.functional.cosine_similarity(
        made.latents[0, 1:], made.latents[0, :-1], dim=1
    ).acos()
    assert turns.allclose(torch.tensor(math.pi / 8), atol=1e-4)


@pytest.mark.parametrize("likelihood", ["Bernoulli", "Gaussian", "DiscretizedLogistic"])
def test_drawn_pixels_do_not_depend_on_the_batch_size(likelihood):
    torch.manual_seed(0)
    model = VAE(latent_dim=2, likelihood=getattr(likelihoods, likelihood), **MLP)
    whole = explore.sample(model, 7, draw=True)
    for size in (1, 3):
        assert explore.sample(model, 7, draw=True, batch_size=size).allclose(whole, atol=1e-6)
    assert not whole[0].equal(whole[1])
