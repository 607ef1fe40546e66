import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vae_lightning.nets import (
    ConvDecoder,
    ConvEncoder,
    Decoder,
    MLPDecoder,
    MLPEncoder,
    ResidualDecoder,
    ResidualEncoder,
)
from vae_lightning.nets.layers import FromMap, ToMap, UpConv, channels_last

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 27, 30), (2, 1, 5), (1, 33, 17)]
PAIRS = [(ConvEncoder, ConvDecoder), (MLPEncoder, MLPDecoder), (ResidualEncoder, ResidualDecoder)]


@pytest.mark.parametrize("cond_features", [0, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_a_pair_gives_back_the_size_of_the_image(encoder, decoder, shape, cond_features):
    x = torch.rand(2, *shape)
    condition = torch.eye(4)[:2] if cond_features else None
    features = encoder(shape, 6, cond_features)(x, condition)
    assert features.shape[:2] == (2, 6)
    assert decoder(shape, 6, cond_features)(features, condition).shape == x.shape


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


@pytest.mark.parametrize("cond_features", [0, 4])
def test_decoder_starts_at_the_parameters_given(cond_features):
    net = MLPDecoder((2, 9, 7), 6, cond_features)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    params = torch.randn(2, 9, 7)
    net.start_at(params)
    output = net(torch.randn(3, 6), torch.eye(4)[:3] if cond_features else None)
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
    assert "leave out init_bias_from_data" in str(error.value)
    assert "\n" not in str(error.value)


def up_conv(in_channels, out_channels):
    """`UpConv` and torch's layer with the same parameters, in float64."""
    ours = UpConv(in_channels, out_channels).double()
    theirs = nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1).double()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(1, 1), (3, 4), (7, 2)])
@pytest.mark.parametrize("out_channels", [1, 2, 3, 4, 5])
def test_up_conv_is_torchs_transposed_convolution(out_channels, size, order):
    ours, theirs = up_conv(5, out_channels)
    x = torch.randn(2, 5, *size).double().to(memory_format=order).requires_grad_()
    gradient = torch.randn(2, out_channels, 2 * size[0], 2 * size[1]).double()
    torch.testing.assert_close(ours(x), theirs(x))
    found = torch.autograd.grad(ours(x), [x, *ours.parameters()], gradient)
    torch.testing.assert_close(
        found, torch.autograd.grad(theirs(x), [x, *theirs.parameters()], gradient)
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own
@pytest.mark.parametrize("out_channels", [1, 3])
def test_derivatives_of_up_conv(out_channels):
    """Of all kinds: both modes, of batches, second ones; of some arguments only."""
    layer, _ = up_conv(2, out_channels)

    def function(x, weight, bias):
        parameters = {"weight": weight, "bias": bias}
        return torch.func.functional_call(layer, parameters, (x,))

    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    given = (torch.randn(2, 2, 3, 2).double().requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(function, given, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, given)
    layer.requires_grad_(False)
    layer(given[0]).sum().backward()
    assert given[0].grad.abs().min() > 0
    assert layer.weight.grad is None


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_networks_are_compiled_whole(encoder, decoder):
    """Not in pieces with Python between them."""
    x, z = torch.rand(2, 1, 8, 8), torch.rand(2, 4)
    if decoder is ResidualDecoder:
        z = torch.rand(2, 4, 2, 2)
    for net, given in ((encoder((1, 8, 8), 4), x), (decoder((1, 8, 8), 4), z)):
        explained = torch._dynamo.explain(net)(given)
        assert explained.graph_break_count == 0
        assert explained.graph_count == 1


def test_up_conv_takes_part_in_autocast():
    layer = UpConv(5, 1)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(torch.randn(2, 5, 3, 3))
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_linear_layers_of_maps_are_torchs(order):
    shape = (3, 4, 5)
    from_map, to_map = FromMap(shape, 7).double(), ToMap(7, shape).double()
    x = torch.randn(2, *shape).double().to(memory_format=order).requires_grad_()
    z = torch.randn(2, 7).double().requires_grad_()
    plain = nn.functional.linear
    for output, expected, layer, given in (
        (from_map(x), plain(x.flatten(1), from_map.weight, from_map.bias), from_map, x),
        (to_map(z), plain(z, to_map.weight, to_map.bias).view(2, *shape), to_map, z),
    ):
        torch.testing.assert_close(output, expected)
        gradient = torch.randn(output.shape).double()
        torch.testing.assert_close(
            torch.autograd.grad(output, [given, *layer.parameters()], gradient),
            torch.autograd.grad(expected, [given, *layer.parameters()], gradient),
        )


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_keeps_the_images(channels):
    x = torch.rand(2, channels, 4, 5, requires_grad=True)
    y = channels_last(x)
    torch.testing.assert_close(y, x)
    assert y.stride() == (20 * channels, 1, 5 * channels, channels)
    y.sum().backward()
    assert x.grad.equal(torch.ones_like(x))


class Copies(TorchDispatchMode):
    """Sizes of what is copied, or put into another order."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.clone, torch.ops.aten.copy_):
            self.sizes.append(tuple(result.shape))
        return result


@pytest.mark.parametrize("size", [28, 27])
@pytest.mark.parametrize(
    ("encoder", "decoder"), [(ConvEncoder, ConvDecoder), (ResidualEncoder, ResidualDecoder)]
)
def test_a_step_copies_no_map(encoder, decoder, size):
    """They stay in the order in memory that convolutions are fastest in, there and back."""
    encoder, decoder = encoder((1, size, size), 20), decoder((1, size, size), 20)
    layers = [m for net in (encoder, decoder) for m in net.modules()]
    layers = [layer for layer in layers if isinstance(layer, nn.Conv2d | UpConv)]
    orders = []
    for layer in layers:
        layer.register_forward_pre_hook(lambda _layer, given: orders.append(given[0].stride(1)))
    with Copies() as copies:
        decoder(encoder(torch.rand(128, 1, size, size))).square().sum().backward()
    assert orders == [1] * len(layers)
    largest_weights = max(math.prod(p.shape) for p in encoder.parameters())
    image = 128 * 30 * 30
    sizes = [s for s in copies.sizes if math.prod(s) > max(largest_weights, image)]
    assert not sizes
