import pytest
import torch
from torch import nn

from vae_lightning.nets import (
    ConvDecoder,
    ConvEncoder,
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
