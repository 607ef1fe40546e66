"""M2: bounds with and without a class, exact sums over classes, and what labels may influence."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence
from torch.nn import functional

from vae_lightning import CVAE, M2, VAE
from vae_lightning.models.capabilities import Capability
from vae_lightning.nets import ConvEncoder, MLPDecoder, MLPEncoder, ResidualEncoder
from vae_lightning.randomness import Noise

SHAPE, CLASSES, LATENT = (1, 4, 4), 3, 2


def build(scale=0.3, **kwargs):
    torch.manual_seed(0)
    small = {"image_shape": SHAPE, "num_classes": CLASSES, "latent_dim": LATENT}
    model = M2(**{**small, **kwargs})
    for parameter in model.parameters():  # far from equal classes
        parameter.data += scale * torch.randn_like(parameter)
    return model.double()


@pytest.fixture
def model():
    return build()


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.rand(6, *SHAPE).round().double()


LABEL = torch.tensor([-1, 2, -1, 0, 1, -1])


def noise(n=6):
    return Noise(torch.arange(n), "test")


def joint_bound(model, x, y):
    """-E log p(x|z, y) + KL(q(z|x, y) || p(z)) - log p(y) of one class, by torch.distributions."""
    one_hot = torch.zeros(len(x), CLASSES, dtype=torch.float64)
    one_hot[:, y] = 1
    mu, log_var = model.encoder(x, one_hot).chunk(2, 1)
    q = Normal(mu, (0.5 * log_var).exp())
    z = q.mean + q.stddev * noise(len(x)).normal(LATENT)
    nll = -Bernoulli(logits=model.decoder(z, one_hot)).log_prob(x).flatten(1).sum(1)
    kl = kl_divergence(q, Normal(torch.zeros_like(mu), 1.0)).sum(1)
    return nll + kl + math.log(CLASSES)


def bounds(model, x):
    """The bound of log p(x, y) for each class, (B, K), and that of log p(x), (B,)."""
    joint = torch.stack([joint_bound(model, x, y) for y in range(CLASSES)], 1)
    q = Categorical(logits=model.classifier(x))
    return joint, (q.probs * joint).sum(1) - q.entropy()


def close(found, expected, **kwargs):
    tolerance = {"rtol": 1e-5, "atol": 1e-5, **kwargs}
    torch.testing.assert_close(found.double(), expected.double(), **tolerance)


def test_the_bound_of_an_unlabeled_image_sums_over_all_classes(model, x):
    expected = bounds(model, x)[1]
    unknown = model.encode_labels(None, 6)
    close(model.terms(x, unknown, noise()).negative_elbo, expected)
    close(model.eval().terms(x, unknown, noise()).negative_elbo, expected)


def test_the_bound_of_a_labeled_image_is_that_of_its_class(model, x):
    joint, marginal = bounds(model, x)
    terms = model.terms(x, model.encode_labels(LABEL, 6, validate=False), noise())
    known = LABEL >= 0
    close(terms.negative_elbo[known], joint[known, LABEL[known]])
    close(terms.negative_elbo[~known], marginal[~known])
    close(terms.kl_class[known], torch.full((3,), math.log(CLASSES)))
    surprise = functional.cross_entropy(model.classifier(x[known]), LABEL[known])
    close(terms.class_cross_entropy, surprise)


def test_likelihood_is_that_of_quadrature_and_not_below_the_bound(x):
    """Log p(x) by a sum over classes and a grid of the two latent dimensions."""
    model = build(scale=0.1)
    side = torch.linspace(-6, 6, 97, dtype=torch.float64)
    z = torch.cartesian_prod(side, side)
    log_prior = Normal(0.0, 1.0).log_prob(z).sum(1) + 2 * math.log(12 / 96)
    parts = []
    for y in range(CLASSES):
        one_hot = functional.one_hot(torch.full((len(z),), y), CLASSES).double()
        logits = model.decoder(z, one_hot)[:, None]
        log_likelihood = Bernoulli(logits=logits).log_prob(x).flatten(2).sum(2)
        parts.append((log_likelihood + log_prior[:, None]).logsumexp(0) - math.log(CLASSES))
    exact = torch.stack(parts).logsumexp(0)
    close(model.log_prob(x, num_samples=1500), exact, rtol=0, atol=0.05)
    close(model.log_prob(x, 1, num_samples=1500), parts[1] + math.log(CLASSES), rtol=0, atol=0.05)
    draws = [
        model.eval().terms(x, model.encode_labels(None, 6), Noise(torch.arange(6), i)).negative_elbo
        for i in range(32)
    ]
    assert (torch.stack(draws).mean(0) > -exact - 0.1).all()
    mixed = model.encode_labels(torch.tensor([1, -1, 1, -1, 1, -1]), 6, validate=False)
    found = model.log_marginal(x, mixed, noise(), 1500)
    expected = torch.where(mixed.sum(1) > 0, parts[1] + math.log(CLASSES), exact)
    close(found, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("options", "share"), [({}, 0.02), ({"labeled_share": 0.4}, 0.4), ({"labeled_share": 0.0}, 0)]
)
def test_the_objective_weighs_each_kind_by_its_share(options, share, x):
    model = build(num_labeled=20, num_train=1000, alpha=0.7, **options)
    joint, marginal = bounds(model, x)
    known = LABEL >= 0
    terms = model.terms(x, model.encode_labels(LABEL, 6, validate=False), noise())
    expected = (
        share * joint[known, LABEL[known]].mean()
        + (1 - share) * marginal[~known].mean()
        + 0.7 * functional.cross_entropy(model.classifier(x[known]), LABEL[known])
    )
    close(model.objective(terms).mean(), expected)
    assert "weight" not in terms.as_dict()


def test_gradients_are_those_of_the_formula(x):
    model = build(num_labeled=20, num_train=1000, alpha=0.7)
    joint, marginal = bounds(model, x)
    known = LABEL >= 0
    cross_entropy = functional.cross_entropy(model.classifier(x[known]), LABEL[known])
    of_labeled, of_others = joint[known, LABEL[known]].mean(), marginal[~known].mean()
    loss = 0.02 * of_labeled + 0.98 * of_others + 0.7 * cross_entropy
    terms = model.terms(x, model.encode_labels(LABEL, 6, validate=False), noise())
    parameters = list(model.parameters())
    expected = torch.autograd.grad(loss, parameters)
    found = torch.autograd.grad(model.objective(terms).mean(), parameters)
    for a, b in zip(found, expected, strict=True):
        assert b.abs().sum() > 0
        close(a, b, rtol=1e-3, atol=1e-5)


def test_stratified_batches_estimate_the_objective_without_bias(x):
    """The mean over all batches of one labeled and two other images is that of all images."""
    model = build(num_labeled=3, num_train=6, alpha=0.5)
    known, others = (LABEL >= 0).nonzero()[:, 0], (LABEL < 0).nonzero()[:, 0]

    def loss(rows):
        condition = model.encode_labels(LABEL[rows], len(rows), validate=False)
        terms = model.terms(x[rows], condition, Noise(rows, "test"))
        return model.objective(terms).mean()

    pairs = torch.combinations(others)
    batches = [torch.cat([one[None], pair]) for one in known for pair in pairs]
    close(torch.stack([loss(rows) for rows in batches]).mean(), loss(torch.arange(6)))


def test_without_numbers_all_images_of_a_batch_weigh_alike(model, x):
    terms = model.terms(x, model.encode_labels(LABEL, 6, validate=False), noise())
    assert terms.weight.eq(1).all()


def test_labels_serve_for_measuring_only_in_evaluation(model, x):
    model.eval()
    label = torch.tensor([0, 2, 1, 0, 1, 2])
    unknown = model.terms(x, model.encode_labels(None, 6), noise())
    known = model.terms(x, model.encode_labels(label, 6), noise())
    assert known.negative_elbo.equal(unknown.negative_elbo)
    assert model.objective(known).equal(unknown.negative_elbo)
    assert unknown.accuracy is None
    assert "accuracy" not in unknown.as_dict()
    best = model.classifier(x).argmax(1)
    assert known.accuracy.equal((best == label).float())
    close(
        known.class_cross_entropy,
        functional.cross_entropy(model.classifier(x), label, reduction="none"),
    )
    partly = model.terms(x, model.encode_labels(LABEL, 6, validate=False), noise())
    assert partly.accuracy is None


def test_unknown_classes_are_inferred(model, x):
    model.eval()
    best = model.classify(x).argmax(1)
    assert len(best.unique()) > 1
    close(model.classify(x), model.classifier(x).softmax(1))
    assert model.embed(x).equal(model.embed(x, best))
    assert not model.embed(x).equal(model.embed(x, (best + 1) % CLASSES))
    assert model.reconstruct(x).equal(model.decode(model.embed(x, best), best))
    assert model.latent_kl(x).equal(model.latent_kl(x, best))
    predicted = model.predict(x, (best + 1) % CLASSES)  # given labels are not looked at
    assert predicted["predicted"].equal(best)
    assert predicted["reconstruction"].equal(model.reconstruct(x))
    assert {"mu", "log_var", "probabilities"} <= predicted.keys()
    with pytest.raises(ValueError, match=r"give a label in 0\.\.2"):
        model.decode(torch.zeros(2, LATENT))


def test_capabilities(model):
    assert model.has(Capability.CONDITIONAL, Capability.CLASSIFIER, Capability.DENSITY)
    assert not model.needs_labels
    assert not VAE(image_shape=SHAPE).needs_labels
    assert CVAE(image_shape=SHAPE, num_classes=3).needs_labels
    assert "given its class" not in model.bound_unit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha must not be negative"),
        ({"num_labeled": 3, "num_train": 2}, "num_labeled must be between 0 and num_train"),
        ({"labeled_share": 1.5}, "labeled_share must be between 0 and 1"),
        ({"conditional": False}, "always conditional"),
        ({"num_classes": 0}, "needs labeled images"),
        ({"classifier": ResidualEncoder}, "choose an encoder of vectors as its classifier"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_networks_are_compiled_together():
    model = M2(
        image_shape=SHAPE,
        num_classes=CLASSES,
        encoder=MLPEncoder,
        decoder=MLPDecoder,
        classifier=ConvEncoder,
    )
    assert len(model.networks) == 3


def test_few_labels_are_refused_by_models_that_cannot_use_them(model):
    model.check_labels(100)
    CVAE(image_shape=SHAPE, num_classes=3).check_labels(None)
    with pytest.raises(ValueError, match="CVAE needs the class of every image"):
        CVAE(image_shape=SHAPE, num_classes=3).check_labels(100)
    with pytest.raises(ValueError, match="has no effect on VAE"):
        VAE(image_shape=SHAPE).check_labels(100)


def share_of(rank, size, address, folder):
    """Save loss and gradients of this process's share of a batch with a few labels."""
    torch.set_num_threads(1)
    if size > 1:
        torch.distributed.init_process_group(
            "gloo", f"file://{address}", rank=rank, world_size=size
        )
    torch.manual_seed(1)
    x, own = torch.rand(6, *SHAPE).round().double(), slice(rank, None, size)
    model = build(num_labeled=20, num_train=1000, alpha=0.7)

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x, label, index):
            condition = model.encode_labels(label, len(x), validate=False)
            return model.objective(model.terms(x, condition, Noise(index, "test"))).mean()

    wrapped = Loss()
    if size > 1:
        wrapped = torch.nn.parallel.DistributedDataParallel(wrapped)
    loss = wrapped(x[own], LABEL[own], torch.arange(6)[own])
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    torch.save({"loss": loss.detach(), **gradients}, f"{folder}/{size}-{rank}.pt")
    if size > 1:
        torch.distributed.destroy_process_group()


def test_two_processes_do_what_one_does_with_the_joined_batch(tmp_path):
    """Though the first one has one labeled image, and the second has two."""
    share_of(0, 1, None, tmp_path)
    torch.multiprocessing.spawn(share_of, (2, tmp_path / "rendezvous", tmp_path), nprocs=2)
    one, *both = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")
    )
    close((both[0].pop("loss") + both[1].pop("loss")) / 2, one.pop("loss"))
    for name, gradient in one.items():
        assert both[0][name].equal(both[1][name])
        close(both[0][name], gradient, rtol=1e-4)
