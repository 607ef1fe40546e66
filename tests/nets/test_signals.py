"""Networks that fit the image by themselves, and signals: images of height 1."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from vae_lightning.models.vae import VAE
from vae_lightning.models.vq_vae import VQVAE
from vae_lightning.nets import (
    ConvDecoder,
    ConvEncoder,
    MLPDecoder,
    MLPEncoder,
    ResidualDecoder,
    ResidualEncoder,
)
from vae_lightning.nets.base import halved_sizes
from vae_lightning.nets.conv import channels_for
from vae_lightning.nets.layers import UpConv, channels_last, convolution, he_initialize
from vae_lightning.nets.sizes import linear_size

CONV_PAIR = ConvEncoder, ConvDecoder
RESIDUAL_PAIR = ResidualEncoder, ResidualDecoder


@pytest.mark.parametrize(
    ("size", "channels", "smallest"),
    [
        ((28, 28), [32, 64], (7, 7)),
        ((32, 32), [32, 64], (8, 8)),
        ((33, 33), [32, 64, 128], (5, 5)),
        ((64, 64), [32, 64, 128], (8, 8)),
        ((128, 128), [32, 64, 128, 256], (8, 8)),
        ((256, 256), [32, 64, 128, 256, 256], (8, 8)),
        ((8, 8), [32, 64], (2, 2)),
        ((1, 1), [32, 32], (1, 1)),
        ((5, 200), [32, 64, 128], (1, 25)),
        ((200, 5), [32, 64, 128], (25, 1)),
        ((1, 256), [32, 32], (1, 64)),
        ((1, 257), [32, 32, 64], (1, 33)),
        ((1, 1000), [32, 32, 64, 64], (1, 63)),
        ((1, 10_000), [32, 32, 64, 64, 128, 128, 256, 256], (1, 40)),
    ],
)
def test_automatic_channels(size, channels, smallest):
    assert channels_for((3, *size)) == channels
    assert halved_sizes(*size, len(channels))[-1] == smallest
    encoder, decoder = ConvEncoder((3, *size), 4), ConvDecoder((3, *size), 4)
    down = [layer.out_channels for layer in encoder.layers if isinstance(layer, nn.Conv2d)]
    assert down == channels
    assert [layer.in_channels for layer in decoder.layers] == channels[::-1]
    assert (
        encoder.head.in_features == decoder.head.out_features == channels[-1] * math.prod(smallest)
    )


@pytest.mark.parametrize("size", [1, 2, 3, 63, 64, 65, 784, 12_345, 100_000])
def test_the_linear_layer_does_not_grow_with_the_image(size):
    for shape in ((1, 1, size), (1, size, 3), (1, size, size)):
        channels = channels_for(shape)
        positions = math.prod(halved_sizes(*shape[1:], len(channels))[-1])
        assert positions <= 64
        assert len(channels) == 2 or math.prod(halved_sizes(*shape[1:], len(channels) - 1)[-1]) > 64


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8)], ids=str)
@pytest.mark.parametrize(("build", "channels"), [(ConvEncoder, (32, 64)), (ConvDecoder, (64, 32))])
def test_small_images_have_the_network_of_two_levels(build, channels, shape):
    """With the same names and, from a seed, the same weights: checkpoints of it can be loaded."""
    networks = []
    for make in (build, partial(build, channels=channels)):
        torch.manual_seed(3)
        networks.append(make(shape, 6, 2).state_dict())
    found, expected = networks
    assert list(found) == list(expected)
    assert all(found[name].equal(expected[name]) for name in expected)


def test_up_to_five_layers_start_as_in_torch():
    torch.manual_seed(3)
    encoder = ConvEncoder((3, 256, 256), 4)
    torch.manual_seed(3)
    before = 3
    for layer in encoder.layers[::2]:
        plain = nn.Conv2d(before, layer.out_channels, 3, 2, 1)
        assert layer.weight.equal(plain.weight)
        assert layer.bias.equal(plain.bias)
        before = layer.out_channels


def test_deep_networks_keep_the_variance():
    """An encoder of 8 layers still tells signals apart at its end, and a decoder latents."""
    torch.manual_seed(0)
    shape = 1, 1, 10_000
    encoder, decoder = ConvEncoder(shape, 4), ConvDecoder(shape, 4)
    with torch.no_grad():
        x = torch.randn(8, *shape)
        features = encoder.layers(channels_last(x))
        maps = torch.randn(8, *decoder.head.shape).relu() * math.sqrt(2)  # second moment 1
        for layer in decoder.layers:
            maps = layer(maps.relu())
    assert 0.3 < features.square().mean() < 3  # with torch's initialization 6**-8
    assert 0.5 < maps.square().mean() < 8  # 2, as no ReLU follows the last layer


@pytest.mark.parametrize("is_signal", [False, True])
def test_he_initialization_by_its_formula(is_signal):
    down, up = convolution(64, 128, 3, 2, is_signal), UpConv(128, 64, is_signal)
    linear = nn.Linear(4, 4)
    before = linear.weight.clone()
    he_initialize([down, linear, up])
    # Of the 4 or 4x4 positions of a kernel, an output value meets 2 or 2x2.
    for layer, values in (
        (down, 64 * (3 if is_signal else 9)),
        (up, 128 * (2 if is_signal else 4)),
    ):
        assert layer.weight.var().item() == pytest.approx(2 / values, rel=0.05)
        assert layer.bias.abs().max() == 0
    assert linear.weight.equal(before)


def as_one_dimensional(layer):
    """Return torch's own layer of sequences (B, C, w) with the weights of a layer of signals."""
    assert layer.kernel_size[0] == layer.stride[0] == 1
    assert layer.padding[0] == 0
    kind = nn.ConvTranspose1d if isinstance(layer, UpConv) else nn.Conv1d
    sizes = layer.kernel_size[1], layer.stride[1], layer.padding[1]
    plain = kind(layer.in_channels, layer.out_channels, *sizes).to(layer.weight.dtype)
    plain.load_state_dict({"weight": layer.weight.squeeze(2), "bias": layer.bias})
    return plain


def plain_encoder(net, x):
    """Compute a `ConvEncoder` of signals by torch's layers of sequences."""
    x = x.squeeze(2)
    for layer in net.layers[::2]:
        x = as_one_dimensional(layer)(x).relu()
    return x.flatten(1) @ net.head.weight.T + net.head.bias


def plain_decoder(net, z, length):
    """Compute a `ConvDecoder` of signals by torch's layers of sequences."""
    lengths = [length]
    for _ in net.layers:
        lengths.append(-(-lengths[-1] // 2))
    x = (z @ net.head.weight.T + net.head.bias).view(len(z), -1, lengths.pop())
    for layer in net.layers:
        x = as_one_dimensional(layer)(x)[..., : lengths.pop()]
        x = x if layer is net.layers[-1] else x.relu()
    return x[:, :, None]


@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize("length", [1, 2, 3, 28, 101, 300])
def test_networks_of_signals_are_one_dimensional(length, channels):
    shape = channels, 1, length
    encoder, decoder = ConvEncoder(shape, 5).double(), ConvDecoder(shape, 3).double()
    x, z = torch.randn(2, *shape).double(), torch.randn(2, 3).double()
    torch.testing.assert_close(encoder(x), plain_encoder(encoder, x))
    torch.testing.assert_close(decoder(z), plain_decoder(decoder, z, length))


@pytest.mark.parametrize("length", [1, 2, 3, 28, 101])
def test_residual_networks_of_signals_are_one_dimensional(length):
    def plain(net, x):
        for layer in net.layers:
            if hasattr(layer, "layers"):  # a residual block
                x = x + plain(layer, x)
            else:
                x = x.relu() if isinstance(layer, nn.ReLU) else as_one_dimensional(layer)(x)
        return x

    shape = 2, 1, length
    encoder = ResidualEncoder(shape, 5, hidden=8).double()
    decoder = ResidualDecoder(shape, 5, hidden=8).double()
    x = torch.randn(2, *shape).double()
    codes = encoder(x)
    assert codes.shape == (2, 5, 1, -(-length // 4))
    padded = torch.cat([x, x.new_zeros(2, 2, 1, -length % 4)], 3).squeeze(2)
    torch.testing.assert_close(codes.squeeze(2), plain(encoder, padded))
    output = plain(decoder, codes.squeeze(2))[..., :length]
    torch.testing.assert_close(decoder(codes).squeeze(2), output)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize("out_channels", [1, 3, 5])
def test_up_conv_of_signals_and_its_gradients(out_channels, length, order):
    ours = UpConv(5, out_channels, is_signal=True).double()
    theirs = as_one_dimensional(ours)
    x = torch.randn(2, 5, 1, length).double().to(memory_format=order).requires_grad_()
    output, expected = ours(x), theirs(x.squeeze(2)).unsqueeze(2)
    assert output.shape == (2, out_channels, 1, 2 * length)
    torch.testing.assert_close(output, expected)
    gradient = torch.randn(output.shape).double()
    found = torch.autograd.grad(output, [x, *ours.parameters()], gradient)
    of_x, of_weight, of_bias = torch.autograd.grad(expected, [x, *theirs.parameters()], gradient)
    torch.testing.assert_close(found, (of_x, of_weight.unsqueeze(2), of_bias))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own
def test_all_derivatives_of_up_conv_of_signals():
    layer = UpConv(2, 3, is_signal=True).double()

    def function(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    given = (torch.randn(2, 2, 1, 3).double().requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(function, given, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, given)


@pytest.mark.parametrize(("encoder", "decoder"), [CONV_PAIR, RESIDUAL_PAIR])
def test_networks_of_signals_are_compiled_whole(encoder, decoder):
    x = torch.rand(2, 1, 1, 16)
    z = torch.rand(2, 4, 1, 4) if decoder is ResidualDecoder else torch.rand(2, 4)
    for net, given in ((encoder((1, 1, 16), 4), x), (decoder((1, 1, 16), 4), z)):
        assert torch._dynamo.explain(net)(given).graph_break_count == 0


@pytest.mark.parametrize(("encoder", "decoder"), [CONV_PAIR, RESIDUAL_PAIR])
@pytest.mark.parametrize("length", [1, 17, 10_001, 100_000])
def test_a_pair_gives_back_a_signal_of_any_length(length, encoder, decoder):
    if encoder is ResidualEncoder:
        encoder, decoder = partial(encoder, hidden=8), partial(decoder, hidden=8)
    shape = 2, 1, length
    condition = torch.eye(3)[:1]
    x = torch.rand(1, *shape)
    features = encoder(shape, 4, 3)(x, condition)
    output = decoder(shape, 4, 3)(features, condition)
    assert output.shape == x.shape
    assert output.isfinite().all()


@pytest.mark.parametrize("model", [VAE, VQVAE])
def test_models_of_signals(model):
    model = model(image_shape=(2, 1, 37))
    assert model.reconstruct(torch.rand(3, 2, 1, 37)).shape == (3, 2, 1, 37)


def count(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_size_of_the_linear_layers_of_convolutional_networks():
    shape = 3, 256, 256
    encoder = ConvEncoder(shape, 40, channels=(32, 64))
    decoder = ConvDecoder(shape, 20, channels=(64, 32))
    size = linear_size(encoder, decoder)
    assert size.flat_size == 64 * 64 * 64
    assert size.parameters == (40 + 20 + 1) * size.flat_size + 40
    assert size.total == count(encoder, decoder)
    assert size.share == size.parameters / size.total
    assert size.is_huge
    automatic = linear_size(ConvEncoder(shape, 40), ConvDecoder(shape, 20))
    assert automatic.flat_size == 256 * 8 * 8
    assert not automatic.is_huge


def test_size_of_the_linear_layers_of_multilayer_perceptrons():
    shape = 3, 8, 9
    encoder, decoder = MLPEncoder(shape, 4, 2, (7, 5)), MLPDecoder(shape, 3, 2, (5, 6))
    assert linear_size(encoder)[:] == ((216 + 2 + 1) * 7, count(encoder), 218)
    assert linear_size(decoder)[:] == ((6 + 1) * 216, count(decoder), 216)
    both = linear_size(nn.ModuleList([encoder, nn.Sequential(decoder), encoder]))
    assert both[:] == (219 * 7 + 7 * 216, count(encoder, decoder), 218)


def test_networks_of_maps_have_no_such_layer():
    size = linear_size(ResidualEncoder((1, 8, 8), 4), nn.Linear(5000, 5000))
    assert size[::2] == (0, 0)
    assert not size.is_huge
    assert linear_size().share == 0
