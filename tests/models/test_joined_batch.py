"""Models whose terms depend on the whole batch: two processes do what one does with both halves."""

import functools

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vae_lightning import (
    DIPVAE,
    RAE,
    VQVAE,
    WAE,
    AdversarialAutoencoder,
    BetaTCVAE,
    CodePrior,
    FactorVAE,
    FreeBitsVAE,
    InfoVAE,
    LadderVAE,
    ResidualHierarchicalVAE,
    SlicedWAE,
)
from vae_lightning.distributed import gather_rows, join_rows, own_rows
from vae_lightning.distributions.mixture_prior import MixtureOfGaussians
from vae_lightning.distributions.posteriors import GaussianPosterior
from vae_lightning.distributions.zuko_flows import RealNVPPrior
from vae_lightning.nets import MLPDecoder, MLPEncoder, ResidualDecoder, ResidualEncoder
from vae_lightning.nets.code_networks import CausalTransformer
from vae_lightning.nets.quantizers import FSQ, LFQ, ResidualQuantizer, SimVQ, VectorQuantizer
from vae_lightning.randomness import Noise
from vae_lightning.schedules import LinearWarmup

SMALL = {
    "image_shape": (1, 4, 4),
    "latent_dim": 3,
    "num_classes": 3,
    "encoder": functools.partial(MLPEncoder, hidden=(8,)),
    "decoder": functools.partial(MLPDecoder, hidden=(8,)),
}


class FixedFlow(RealNVPPrior):
    """A prior of each class, which is not trained."""

    def __init__(self, latent_dim, cond_features) -> None:
        super().__init__(latent_dim, cond_features, transforms=2, hidden=(8,))
        self.requires_grad_(False)


MODELS = {
    "beta_tcvae": functools.partial(BetaTCVAE, num_train=100, num_samples=2),
    "beta_tcvae_mixture": functools.partial(BetaTCVAE, num_train=100, prior=MixtureOfGaussians),
    "beta_tcvae_stratified": functools.partial(BetaTCVAE, num_train=100, estimator="stratified"),
    "dip_vae_i": functools.partial(DIPVAE, kind="i"),
    "dip_vae_ii": functools.partial(DIPVAE, kind="ii", lambda_d=3.0),
    "free_bits_vae": functools.partial(FreeBitsVAE, free_bits=0.02),
    "info_vae": functools.partial(InfoVAE, alpha=0.5, lambd=30.0),
    "rae_l2": functools.partial(RAE, lambd=0.1),
    "rae_gradient": functools.partial(RAE, regularizer="gradient"),
    "sliced_wae": SlicedWAE,
    "sliced_wae_of_classes": functools.partial(SlicedWAE, conditional=True, prior=FixedFlow),
    "wae": functools.partial(WAE, mmd_weight=50.0),
    "wae_rbf_gaussian": functools.partial(WAE, kernel="rbf", posterior=GaussianPosterior),
    "wae_of_classes": functools.partial(WAE, conditional=True, prior=FixedFlow),
    "factor_vae": functools.partial(FactorVAE, critic_hidden=(8, 8)),
    "adversarial_autoencoder": functools.partial(AdversarialAutoencoder, critic_hidden=(8,)),
    "adversarial_autoencoder_of_classes": functools.partial(
        AdversarialAutoencoder, critic_hidden=(8,), conditional=True
    ),
}
N = 10


def with_codes(cls, **kwargs):
    """Return what builds a VQ-VAE with a map of 2x2 codes."""

    def make(image_shape, num_classes, **_):
        parts = {
            "encoder": functools.partial(ResidualEncoder, hidden=16, downsamplings=1),
            "decoder": functools.partial(ResidualDecoder, hidden=16, downsamplings=1),
        }
        sizes = {"image_shape": image_shape, "num_classes": num_classes, "embedding_dim": 4}
        return VQVAE(quantizer=functools.partial(cls, **kwargs), **parts, **sizes)

    return make


def prior_of_codes(image_shape, num_classes, **_):
    """Return a prior given the class."""
    autoencoder = with_codes(FSQ, levels=(3, 3))(image_shape, num_classes)
    autoencoder.initialized = True
    return CodePrior(
        autoencoder,
        functools.partial(CausalTransformer, dim=8, layers=1, heads=2),
        image_shape=image_shape,
        num_classes=num_classes,
        conditional=True,
    )


def warming_up(cls, **kwargs):
    """Return what builds a hierarchy in the middle of the warm-up of its KL term."""

    def make(image_shape, num_classes, **_):
        model = cls(
            image_shape=image_shape,
            num_classes=num_classes,
            schedule=functools.partial(LinearWarmup, steps=10),
            **kwargs,
        )
        model.step = 5
        return model

    return make


MAPS = {"groups_per_resolution": (1, 1), "latent_channels": 2, "channels": 4, "hidden": 4}
MODELS |= {
    "ladder_free_bits": warming_up(
        LadderVAE, latent_dims=(4, 3), widths=(8, 6), free_bits=0.1, conditional=True
    ),
    "residual_hierarchy_balanced": warming_up(
        ResidualHierarchicalVAE, balance=True, free_bits=0.001, **MAPS
    ),
}

GRADIENT = {
    "codebook_size": 3,
    "codebook_update": "gradient",
    "codebook_init": "uniform",
    "dead_code_threshold": 0.0,
}
MODELS |= {
    "vq": with_codes(VectorQuantizer, **GRADIENT),
    "vq_cosine_rotation": with_codes(
        VectorQuantizer, similarity="cosine", gradient="rotation", **GRADIENT
    ),
    "vq_orthogonal": with_codes(VectorQuantizer, orthogonality=10.0, **GRADIENT),
    "vq_reparameterized": with_codes(
        VectorQuantizer,
        codebook_size=3,
        codebook_update="reparameterized",
        codebook_init="uniform",
        dead_code_threshold=0.0,
        noise_variance=0.5,
    ),
    "fsq": with_codes(FSQ, levels=(3, 3)),
    "lfq": with_codes(LFQ, bits=3, temperature=1.0),
    "sim_vq": with_codes(SimVQ, codebook_size=3),
    "residual": with_codes(
        ResidualQuantizer,
        num_quantizers=2,
        quantizer=functools.partial(VectorQuantizer, **GRADIENT),
    ),
    "code_prior": prior_of_codes,
}


class Loss(nn.Module):
    """What `LitVAE` minimizes, as a module that DDP can wrap."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x, y, indices):
        condition = self.model.encode_labels(self.model.used_labels(y), len(x))
        terms = self.model.terms(x, condition, Noise(indices, 5, "train", 3))
        self.terms = {name: value.detach() for name, value in terms.as_dict().items()}
        loss = self.model.objective(terms).mean()
        if self.model.critic is not None:
            loss = loss + self.model.critic_objective(terms).mean()
        return loss


def measure(rank, size, address, folder):
    """Save loss, terms and gradients of this process's share of the batch, for every model."""
    torch.set_num_threads(1)
    if size > 1:
        torch.distributed.init_process_group(
            "gloo", f"file://{address}", rank=rank, world_size=size
        )
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(N, 1, 4, 4, generator=generator).round()
    y, indices = torch.arange(N) % 3, torch.arange(N) + 40
    own = slice(rank, None, size)  # as ShardSampler deals them out
    found = {}
    for name, make in MODELS.items():
        torch.manual_seed(1)
        module = Loss(make(**SMALL))
        wrapped = DistributedDataParallel(module) if size > 1 else module
        for _ in range(2):  # twice, as in a training: DDP changes its buckets after the first pass
            module.zero_grad()
            loss = wrapped(x[own], y[own], indices[own])
            loss.backward()
        found[name] = {
            "loss": loss.detach(),
            "terms": module.terms,
            "gradients": {
                name: p.grad for name, p in module.model.named_parameters() if p.requires_grad
            },
        }
    found["rows"] = rows_of(rank)
    torch.save(found, f"{folder}/{size}-{rank}.pt")
    if size > 1:
        torch.distributed.destroy_process_group()


def rows_of(rank):
    """What the functions for rows do with 3 rows in the first process and 2 in the second."""
    n = 3 - rank
    x = (10.0 * rank + torch.arange(n)[:, None]).requires_grad_()
    joined = join_rows(x)
    (gradient,) = torch.autograd.grad((joined[:, 0] * torch.arange(len(joined))).sum(), x)
    return {
        "own": own_rows(x),
        "joined": joined.detach(),
        "gathered": gather_rows(x),
        "gradient": gradient,
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joined")
    measure(0, 1, None, folder)
    torch.multiprocessing.spawn(measure, (2, folder / "rendezvous", folder), nprocs=2)
    return [torch.load(folder / f"{n}.pt", weights_only=True) for n in ("1-0", "2-0", "2-1")]


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_the_joined_batch(runs, name):
    one, first, second = (run[name] for run in runs)
    for parameter, expected in one["gradients"].items():
        assert expected is not None, parameter
        assert expected.abs().sum() > 0, parameter
        assert first["gradients"][parameter].equal(second["gradients"][parameter]), parameter
        torch.testing.assert_close(
            first["gradients"][parameter],
            expected,
            rtol=1e-5,
            atol=1e-5 * max(1.0, expected.abs().max().item()),  # of rounding, at any weight
            msg=parameter,
        )
    torch.testing.assert_close((first["loss"] + second["loss"]) / 2, one["loss"])


@pytest.mark.parametrize("name", MODELS)
def test_terms_are_those_of_the_joined_batch(runs, name):
    """Image by image, in the order in which images are dealt out."""
    one, first, second = (run[name]["terms"] for run in runs)
    for term, expected in one.items():
        found = first[term]
        if expected.ndim:
            found = torch.stack([first[term], second[term]], 1).flatten()
        else:
            torch.testing.assert_close(first[term], second[term], rtol=0, atol=0)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=term)


def test_rows_are_joined_in_turn_though_their_numbers_differ(runs):
    _, first, second = (run["rows"] for run in runs)
    assert first["own"].tolist() == [0, 2, 4]
    assert second["own"].tolist() == [1, 3]
    for run in (first, second):
        assert run["joined"].flatten().tolist() == [0, 10, 1, 11, 2]
        assert run["gathered"].equal(run["joined"])
    # Both processes have the same loss; the backward pass sums their gradients.
    assert first["gradient"].flatten().tolist() == [0, 4, 8]
    assert second["gradient"].flatten().tolist() == [2, 6]


def test_one_process_joins_nothing(runs):
    rows = runs[0]["rows"]
    assert rows["own"].tolist() == [0, 1, 2]
    assert rows["joined"].flatten().tolist() == [0, 1, 2]
    assert rows["gradient"].flatten().tolist() == [0, 1, 2]
    x = torch.randn(3, 2, requires_grad=True)
    assert join_rows(x) is x
    assert not gather_rows(x).requires_grad
