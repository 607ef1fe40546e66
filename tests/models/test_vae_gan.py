"""VAE-GAN: three networks, and which of them learns from which term."""

import copy
import functools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from vae_lightning import VAEGAN
from vae_lightning.distributions.label_normal import LabelNormal
from vae_lightning.distributions.likelihoods import Gaussian
from vae_lightning.distributions.posteriors import DiagonalGaussian
from vae_lightning.functional import scale_gradient
from vae_lightning.models.capabilities import Capability
from vae_lightning.nets.critics import ConvCritic
from vae_lightning.randomness import Noise

SHAPE, LATENT_DIM, GAMMA = (1, 8, 8), 3, 0.3


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = VAEGAN(
        image_shape=SHAPE, latent_dim=LATENT_DIM, gamma=GAMMA, critic_channels=(4, 6), num_classes=4
    )
    return made.double()


@pytest.fixture
def x():
    return torch.rand(6, *SHAPE, dtype=torch.float64)


def noise():
    return Noise(torch.arange(6), "test")


def by_hand(model, x):
    """The terms of the paper, written without any sharing between the three networks."""
    q = model.posterior(x)
    epsilon = noise().normal(LATENT_DIM)
    z = (q.mu + (0.5 * q.log_var).exp() * epsilon).double()
    z_p = model.prior.sample(6, None, noise().generator("prior")).double()
    reconstruction, sample = model.decoder(z).sigmoid(), model.decoder(z_p).sigmoid()
    logit, features = model.critic(x)
    fakes = [model.critic(image) for image in (reconstruction, sample)]
    error = 0.5 * (fakes[0][1] - features).square().flatten(1).sum(1)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(q.mu, (0.5 * q.log_var).exp()),
        torch.distributions.Normal(torch.zeros(LATENT_DIM), torch.ones(LATENT_DIM)),
    ).sum(1)
    convincing = -0.5 * sum(functional.logsigmoid(fake) for fake, _ in fakes)
    told = -0.5 * functional.logsigmoid(logit)
    told = told - 0.25 * sum(functional.logsigmoid(-fake) for fake, _ in fakes)
    return {
        "encoder": error + kl,
        "decoder": GAMMA * error + convincing,
        "critic": told,
        "error": error,
        "kl": kl,
        "convincing": convincing,
    }


def gradients(loss, module):
    return torch.autograd.grad(loss.mean(), list(module.parameters()), retain_graph=True)


def test_terms_are_those_of_the_paper(model, x):
    terms, expected = model.terms(x, None, noise()), by_hand(model, x)
    close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5, check_dtype=False)
    close(terms.feature_error, expected["error"])
    close(terms.kl, expected["kl"])
    close(terms.adversarial, expected["convincing"])
    close(terms.critic, expected["critic"])
    pixels = functional.binary_cross_entropy(
        model.decoder((model.posterior(x).rsample(noise()).z[:, 0]).double()).sigmoid(),
        x,
        reduction="none",
    )
    close(terms.reconstruction, pixels.flatten(1).sum(1))


def test_each_network_has_the_gradient_of_its_own_objective(model, x):
    terms, expected = model.terms(x, None, noise()), by_hand(model, x)
    for name, loss in {
        "encoder": model.objective(terms),
        "decoder": model.objective(terms),
        "critic": model.critic_objective(terms),
    }.items():
        module = getattr(model, name)
        found, wanted = gradients(loss, module), gradients(expected[name], module)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
            assert a.abs().sum() > 0


def test_no_network_learns_from_the_objective_of_another(model, x):
    terms = model.terms(x, None, noise())
    of_critic = torch.autograd.grad(
        model.objective(terms).mean(),
        list(model.critic.parameters()),
        retain_graph=True,
        allow_unused=True,
    )
    assert all(gradient is None for gradient in of_critic)
    others = [*model.encoder.parameters(), *model.decoder.parameters()]
    of_others = torch.autograd.grad(
        model.critic_objective(terms).mean(), others, retain_graph=True, allow_unused=True
    )
    assert all(gradient is None for gradient in of_others)
    # The encoder learns nothing from the adversarial term.
    of_encoder = torch.autograd.grad(
        terms.adversarial.mean(), list(model.encoder.parameters()), allow_unused=True
    )
    assert all(gradient is None or not gradient.any() for gradient in of_encoder)


def test_each_image_is_compared_given_its_own_class(x):
    """Encoder, decoder and critic see the class, also those of reconstructions and samples."""
    model = VAEGAN(
        image_shape=SHAPE, latent_dim=LATENT_DIM, num_classes=4, conditional=True,
        critic_channels=(4, 6), prior=LabelNormal,
    ).double()  # fmt: skip
    model.prior.mu.data.normal_()
    classes = torch.eye(4).double()[[0, 1, 2, 3, 1, 0]]
    terms = model.terms(x, classes, noise())
    z = model.posterior(x, classes).rsample(noise()).z[:, 0].double()
    z_p = model.prior.sample(6, classes, noise().generator("prior")).double()
    shown = [x, *(model.decoder(latent, classes).sigmoid() for latent in (z, z_p))]
    (real, features), (fake, of_fake), (sampled, _) = (model.critic(y, classes) for y in shown)
    error = 0.5 * (of_fake - features).square().flatten(1).sum(1)
    fooled = -0.5 * (functional.logsigmoid(fake) + functional.logsigmoid(sampled))
    told = -0.5 * functional.logsigmoid(real)
    told = told - 0.25 * (functional.logsigmoid(-fake) + functional.logsigmoid(-sampled))
    close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5, check_dtype=False)
    close(terms.feature_error, error)
    close(terms.adversarial, fooled)
    close(terms.critic, told)


def test_there_is_no_likelihood_but_there_are_samples():
    model = VAEGAN(image_shape=SHAPE, latent_dim=LATENT_DIM)
    assert not model.has(Capability.DENSITY)
    assert model.has(Capability.SAMPLES)
    assert isinstance(model.posterior(torch.rand(2, *SHAPE)), DiagonalGaussian)


def test_a_class_reaches_the_critic():
    model = VAEGAN(image_shape=SHAPE, latent_dim=LATENT_DIM, num_classes=4, conditional=True)
    x, label = torch.rand(2, *SHAPE), torch.eye(4)[:2]
    first, other = model.critic(x, label)[0], model.critic(x, label.flip(0))[0]
    assert not first.allclose(other)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 20), (2, 1, 50), (1, 5, 5)])
def test_the_critic_takes_every_shape(shape):
    logit, features = ConvCritic(shape)(torch.rand(4, *shape))
    assert logit.shape == (4,)
    flat = features.flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(flat.square().mean(1), torch.ones(4), rtol=0.05, atol=0)
    part = ConvCritic(shape)
    x = torch.rand(4, *shape)
    torch.testing.assert_close(part(x)[0][:2], part(x[:2])[0])


def test_the_critic_is_that_of_its_convolutions():
    """Leaky rectifiers between them, and every map but the first is normalized as a whole."""
    critic, x = ConvCritic((2, 9, 8), 3, channels=(4, 5, 6)), torch.rand(7, 2, 9, 8)
    classes = torch.eye(3)[torch.arange(7) % 3]
    h = torch.cat([x, classes[:, :, None, None].expand(-1, -1, 9, 8)], 1)
    convolutions = [layer for layer in critic.layers if isinstance(layer, nn.Conv2d)]
    for i, layer in enumerate(convolutions):
        h = functional.conv2d(h, layer.weight, layer.bias, stride=2, padding=1)
        if i:
            variance, mean = torch.var_mean(h, (1, 2, 3), correction=0, keepdim=True)
            h = (h - mean) / (variance + 1e-5).sqrt()
        features, h = h, torch.where(h > 0, h, 0.2 * h)
    logit, found = critic(x, classes)
    torch.testing.assert_close(found, features)
    head = critic.head[-1]
    torch.testing.assert_close(logit, h.flatten(1) @ head.weight[0] + head.bias)


def test_scaled_gradients_pass_through_chains():
    x = torch.tensor([2.0], requires_grad=True)
    (scale_gradient(scale_gradient(x, 4.0).square(), 0.25)).sum().backward()
    assert x.grad.item() == 4.0
    value = torch.tensor([math.pi])
    assert scale_gradient(value, 1e4).equal(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, "gamma must be positive"),
        ({"num_samples": 2}, "one draw of each image"),
        ({"critic_channels": (4,)}, "at least two"),
        (
            {"likelihood": functools.partial(Gaussian, learn_sigma=True)},
            "does not train its likelihood",
        ),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        VAEGAN(image_shape=SHAPE, latent_dim=LATENT_DIM, **options)


def test_the_critic_does_not_change_when_it_is_asked(model, x):
    before = copy.deepcopy(model.critic.state_dict())
    model.terms(x, None, noise())
    for name, value in model.critic.state_dict().items():
        assert value.equal(before[name])


@pytest.mark.slow
def test_it_learns_to_reconstruct_without_a_loss_of_pixels():
    torch.manual_seed(0)
    rows = torch.arange(8)
    x = torch.stack([(rows == i)[None, :, None] | (rows == j) for i in rows for j in rows]).float()
    model = VAEGAN(image_shape=SHAPE, latent_dim=4, gamma=0.1, critic_channels=(16, 32))
    critic = set(model.critic.parameters())
    own = torch.optim.Adam([p for p in model.parameters() if p not in critic], lr=2e-3)
    others = torch.optim.Adam(critic, lr=2e-4, betas=(0.5, 0.999))
    before = (model.reconstruct(x) - x).square().mean()
    for step in range(200):
        terms = model.terms(x, None, Noise(torch.arange(len(x)), step))
        own.zero_grad()
        others.zero_grad()
        (model.objective(terms).mean() + model.critic_objective(terms).mean()).backward()
        own.step()
        others.step()
    assert (model.reconstruct(x) - x).square().mean() < before / 2
