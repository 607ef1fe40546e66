import math

import pytest
import torch
from torch import nn

from vae_lightning.nets import (
    ConvDecoder,
    ConvEncoder,
    Decoder,
    MLPDecoder,
    MLPEncoder,
    ResidualDecoder,
    ResidualEncoder,
)

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 27, 30), (2, 1, 5), (1, 33, 17)]
PAIRS = [(ConvEncoder, ConvDecoder), (MLPEncoder, MLPDecoder), (ResidualEncoder, ResidualDecoder)]


@pytest.mark.parametrize("condition_features", [0, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_a_pair_gives_back_the_size_of_the_image(encoder, decoder, shape, condition_features):
    x = torch.rand(2, *shape)
    condition = torch.eye(4)[:2] if condition_features else None
    features = encoder(shape, 6, condition_features)(x, condition)
    assert features.shape[:2] == (2, 6)
    assert decoder(shape, 6, condition_features)(features, condition).shape == x.shape


@pytest.mark.parametrize("build", [ConvEncoder, ConvDecoder, MLPEncoder, MLPDecoder])
def test_the_condition_changes_the_output(build):
    net = build((1, 8, 8), 6, 3)
    first = torch.rand(1, 6) if "Decoder" in build.__name__ else torch.rand(1, 1, 8, 8)
    outputs = [net(first, torch.eye(3)[[label]]) for label in range(3)]
    assert (outputs[0] - outputs[1]).abs().max() > 0
    assert (outputs[1] - outputs[2]).abs().max() > 0


def test_default_pair_is_that_of_the_lesson():
    """The same layers, written down plainly, have the same parameters and the same output."""
    encoder, decoder = ConvEncoder((1, 28, 28), 40), ConvDecoder((1, 28, 28), 20)
    lesson_encoder = nn.Sequential(
        nn.Conv2d(1, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 40),
    )
    lesson_decoder = nn.Sequential(
        nn.Linear(20, 64 * 7 * 7),
        nn.Unflatten(1, (64, 7, 7)),
        nn.ConvTranspose2d(64, 32, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 1, 4, 2, 1),
    )
    for ours, lesson, size in (
        (encoder, lesson_encoder, (3, 1, 28, 28)),
        (decoder, lesson_decoder, (3, 20)),
    ):
        lesson.load_state_dict(
            dict(zip(lesson.state_dict(), ours.state_dict().values(), strict=True))
        )
        x = torch.rand(size)
        torch.testing.assert_close(ours(x), lesson(x))


@pytest.mark.parametrize(
    "build",
    [
        lambda: ConvEncoder((1, 28, 28), 4, channels=(32, 0)),
        lambda: ConvDecoder((1, 28, 28), 4, channels=()),
        lambda: ConvEncoder((1, 0, 28), 4),
        lambda: MLPEncoder((1, 28, 28), 4, hidden=(-1,)),
        lambda: ResidualEncoder((1, 28, 28), 4, downsamplings=0),
    ],
)
def test_sizes_must_be_positive(build):
    with pytest.raises(ValueError, match="must be positive"):
        build()


def test_unknown_activation():
    with pytest.raises(ValueError, match="activation must be one of relu, tanh"):
        MLPEncoder((1, 28, 28), 4, activation="swish")


def linear_layers(net):
    return [module for module in net.modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu", "gelu", "gated"])
@pytest.mark.parametrize("build", [MLPEncoder, MLPDecoder])
def test_hidden_sizes(build, activation):
    net = build((1, 4, 4), 3, 2, hidden=(7, 5), activation=activation)
    first, last = (16, 3) if build is MLPEncoder else (3, 16)
    layers = linear_layers(net)
    # The condition is appended to the input; a gated layer has a gate of its own size.
    assert [layer.in_features for layer in layers] == [first + 2, 7, 5]
    twice = 2 if activation == "gated" else 1
    assert [layer.out_features for layer in layers] == [7 * twice, 5 * twice, last]


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", lambda a: a.clamp(min=0)),
        ("tanh", lambda a: 1 - 2 / ((2 * a).exp() + 1)),
        ("silu", lambda a: a / (1 + (-a).exp())),
        ("gelu", lambda a: a * (1 + (a / math.sqrt(2)).erf()) / 2),
        ("gated", lambda a: a[:, : a.shape[1] // 2] / (1 + (-a[:, a.shape[1] // 2 :]).exp())),
    ],
)
def test_mlp_by_its_formula(activation, function):
    """Not after the last layer, whose output may be any number."""
    net = MLPEncoder((1, 4, 4), 3, hidden=(7, 5), activation=activation)
    first, second, last = linear_layers(net)
    x = torch.rand(6, 1, 4, 4)
    a = function(x.flatten(1) @ first.weight.T + first.bias)
    a = function(a @ second.weight.T + second.bias)
    torch.testing.assert_close(net(x), a @ last.weight.T + last.bias)


@pytest.mark.parametrize("build", [MLPEncoder, MLPDecoder])
def test_tanh_starts_as_in_glorot_and_bengio(build):
    layers = linear_layers(build((1, 8, 8), 50, hidden=(200, 100), activation="tanh"))
    assert len(layers) == 3
    for layer in layers:
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        # Of a uniform distribution, to 4 standard errors of that many weights.
        tolerance = 4 * math.sqrt(0.8 / layer.weight.numel())
        assert layer.weight.var().item() == pytest.approx(bound**2 / 3, rel=tolerance)
        assert layer.bias.abs().max() == 0
    for layer in linear_layers(build((1, 8, 8), 50, hidden=(200, 100))):  # as torch does
        bound = 1 / math.sqrt(layer.in_features)
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert layer.bias.abs().max() > 0


@pytest.mark.parametrize("condition_features", [0, 4])
def test_decoder_starts_at_the_parameters_given(condition_features):
    net = MLPDecoder((2, 9, 7), 6, condition_features)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    params = torch.randn(2, 9, 7)
    net.start_at(params)
    output = net(torch.randn(3, 6), torch.eye(4)[:3] if condition_features else None)
    torch.testing.assert_close(output, params.expand(3, -1, -1, -1))


def test_starting_changes_only_the_last_bias_and_keeps_it_trainable():
    net = MLPDecoder((1, 8, 8), 6)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.start_at(torch.full((1, 8, 8), 5.0))
    changed = {name for name, value in net.state_dict().items() if not value.equal(before[name])}
    assert changed == {list(before)[-1]}
    net(torch.randn(2, 6)).sum().backward()
    assert net.get_parameter(changed.pop()).grad.abs().min() > 0


def test_a_decoder_without_a_start_says_so():
    class OtherDecoder(Decoder):
        def forward(self, z, condition=None):
            return z

    with pytest.raises(ValueError, match="OtherDecoder") as error:
        OtherDecoder().start_at(torch.zeros(1, 8, 8))
    assert "leave out start_at_mean" in str(error.value)
    assert "\n" not in str(error.value)
