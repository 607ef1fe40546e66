"""Autoregressive networks: no code is seen before it is drawn, and draws follow the logits."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from vae_lightning.nets.code_networks import CausalTransformer, CodeNetwork, draw_codes
from vae_lightning.truncation import Truncation

SHAPE, K = (3, 2, 2), 5
N = 12


def subclasses(cls):
    for subclass in cls.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


NETWORKS = [cls for cls in subclasses(CodeNetwork) if cls.__module__.startswith("vae_lightning.")]


def made(cls, shape=SHAPE, codebook_size=K, cond_features=3, context_channels=4, **kwargs):
    torch.manual_seed(0)
    small = {CausalTransformer: {"dim": 16, "layers": 2, "heads": 2}}
    network = cls(
        shape, codebook_size, cond_features, context_channels, **{**small.get(cls, {}), **kwargs}
    )
    for parameter in network.parameters():  # away from the small values of the start
        parameter.data += 0.3 * torch.randn_like(parameter)
    return network.double().eval()


def inputs(n=3, seed=1):
    torch.manual_seed(seed)
    condition = functional.one_hot(torch.arange(n) % 3, 3).double()
    return torch.randint(K, (n, N)), condition, torch.randn(n, 4, 2, 1).double()


@pytest.fixture(params=NETWORKS, ids=lambda cls: cls.__name__)
def network(request):
    return made(request.param)


def test_a_code_changes_nothing_before_it_and_everything_after(network):
    codes, condition, context = inputs()
    before = network(codes, condition, context)
    assert before.shape == (3, N, K)
    for j in range(N):
        changed = codes.clone()
        changed[:, j] = (changed[:, j] + 1) % K
        after = network(changed, condition, context)
        assert after[:, : j + 1].equal(before[:, : j + 1]), j
        if j + 1 < N:
            assert (after[:, j + 1] != before[:, j + 1]).any(), j


def test_gradients_reach_only_the_codes_before(network):
    """The same by derivatives, of a network whose embedding is continuous."""
    codes, condition, context = inputs(1)
    held = network.embedding.weight
    one_hot = functional.one_hot(codes + torch.arange(N) % 2 * K, 2 * K).double().requires_grad_()
    network._embed = lambda _: one_hot @ held
    logits = network(codes, condition, context)
    for j in range(N):
        (gradient,) = torch.autograd.grad(logits[0, j].sum(), one_hot, retain_graph=True)
        reached = gradient[0].abs().sum(1) > 0
        assert reached.tolist() == [i < j for i in range(N)]


def test_condition_and_context_reach_every_code(network):
    codes, condition, context = inputs()
    before = network(codes, condition, context)
    for other in (
        network(codes, condition.roll(1, 0), context),
        network(codes, condition, context + 1),
    ):
        assert (other != before).any(2).all()


@pytest.mark.parametrize(("row", "column"), [(2, 2), (4, 3), (6, 2), (3, 5)])
def test_context_helps_the_codes_at_its_place(row, column):
    """Two convolutions reach two positions to each side; codes after these see the first ones."""
    network = made(CausalTransformer, (7, 6, 2), K, 0, 4)
    codes, context = torch.randint(K, (1, 84)), torch.randn(1, 4, 7, 6).double()
    before = network(codes, context=context)[0]
    context[..., row, column] += 1
    after = network(codes, context=context)[0]
    first = (before != after).any(1).nonzero().min().item()
    assert first == 2 * (6 * (row - 2) + column - 2)


def test_one_step_at_a_time_is_the_same(network):
    codes, condition, context = inputs()
    whole = network(codes, condition, context)
    step = network.next_logits(3, condition, context)
    for j in range(N):
        torch.testing.assert_close(step(codes[:, j - 1] if j else None), whole[:, j])


def test_probabilities_of_all_maps_add_up_to_one():
    network = made(CausalTransformer, (2, 1, 2), 3, 0, 0)
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    log_p = network(every).log_softmax(2).gather(2, every[..., None])[..., 0].sum(1)
    torch.testing.assert_close(log_p.exp().sum(), torch.tensor(1.0).double())


def test_draws_have_the_frequencies_that_the_network_says():
    """All 81 maps, against their probabilities: a chi-squared test."""
    network = made(CausalTransformer, (2, 1, 2), 3, 0, 0)
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    p = network(every).log_softmax(2).gather(2, every[..., None])[..., 0].sum(1).exp()
    n = 20_000
    uniform = torch.rand(n, 4, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        drawn = draw_codes(network, uniform)
    number = (drawn * torch.tensor([27, 9, 3, 1])).sum(1)
    counts = number.bincount(minlength=81)
    expected = n * p
    kept = expected > 5
    statistic = ((counts - expected) ** 2 / expected)[kept].sum().item()
    freedom = int(kept.sum())
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5
    # Mean nats of draws are the entropy, within its standard error.
    nats = -p[number].log()
    entropy = -(p * p.log()).sum()
    assert abs(nats.mean() - entropy) < 4 * nats.std() / n**0.5


def test_a_map_does_not_depend_on_those_drawn_beside_it(network):
    _, condition, context = inputs(6)
    uniform = torch.rand(6, N, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        whole = draw_codes(network, uniform, condition, context)
        parts = [
            draw_codes(network, uniform[i : i + 2], condition[i : i + 2], context[i : i + 2])
            for i in (0, 2, 4)
        ]
    assert whole.equal(torch.cat(parts))


def test_codes_of_different_depths_have_different_embeddings():
    network = made(CausalTransformer, (1, 1, 3), 2, 0, 0)
    codes = torch.tensor([[0, 0, 0]])
    embedded = network._embed(codes)[0]
    assert not embedded[0].equal(embedded[1])
    assert network.embedding.num_embeddings == 6


def test_a_sequence_is_learned():
    """The next code is the one before plus one, a thing that no independent code knows."""
    torch.manual_seed(0)
    network = CausalTransformer((4, 4, 1), 8, dim=32, layers=2)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(120):
        codes = (torch.randint(8, (64, 1)) + torch.arange(16)) % 8
        loss = functional.cross_entropy(network(codes).transpose(1, 2), codes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # All is known but the first of the 16: log 8 / 16 = 0.13.
    assert loss < 0.2


@pytest.mark.parametrize("kwargs", [{"dim": 0}, {"layers": 0}, {"heads": 3}])
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match="CausalTransformer: "):
        CausalTransformer((2, 2, 1), 4, **kwargs)


# Truncation

P = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).double()


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, [0.1, 0.4, 0.3, 0.2]),
        ({"top_k": 2}, [0, 4 / 7, 3 / 7, 0]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 9}, [0.1, 0.4, 0.3, 0.2]),
        ({"top_p": 0.65}, [0, 4 / 7, 3 / 7, 0]),
        ({"top_p": 0.75}, [0, 4 / 9, 3 / 9, 2 / 9]),
        ({"top_p": 0.01}, [0, 1, 0, 0]),
        ({"top_p": 1.0}, [0.1, 0.4, 0.3, 0.2]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 9 / 30, 4 / 30]),
        ({"temperature": 0.5, "top_k": 2}, [0, 16 / 25, 9 / 25, 0]),
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 3 / 7, 0]),
        ({"top_k": 2, "top_p": 0.5}, [0, 1, 0, 0]),  # of what top-k leaves
    ],
)
def test_truncation(kwargs, expected):
    found = Truncation(**kwargs).probabilities(P.log())
    torch.testing.assert_close(found, torch.tensor([expected]).double())


def test_all_of_the_probability_are_all_categories():
    """However improbable they are, and whatever rounding does to sums in float32."""
    torch.manual_seed(0)
    assert Truncation(top_p=1.0).probabilities(5 * torch.randn(50, 512)).gt(0).all()


def test_a_temperature_near_0_takes_the_most_probable():
    assert Truncation(temperature=1e-50).probabilities(P.log()).tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize(
    "kwargs",
    [
        *({"temperature": 0}, {"temperature": math.inf}),
        *({"top_k": 0}, {"top_k": 2.5}, {"top_p": 0}, {"top_p": 1.1}),
    ],
)
def test_bad_truncation(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        Truncation(**kwargs)


def test_equal_probabilities_are_cut_to_exactly_k():
    kept = Truncation(top_k=3).probabilities(torch.zeros(2, 8))
    assert (kept > 0).sum(1).tolist() == [3, 3]


def test_categories_that_together_have_exactly_top_p_are_enough():
    kept = Truncation(top_p=0.5).probabilities(torch.zeros(1, 4))
    assert kept.tolist() == [[0.5, 0.5, 0, 0]]


def test_impossible_codes_are_never_drawn():
    from vae_lightning.truncation import draw_categories

    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]).expand(1001, 5)
    uniform = torch.linspace(0, 1, 1001).double()
    drawn = draw_categories(logits, uniform)
    assert set(drawn.tolist()) == {1, 3}
    assert (drawn == 1).float().mean() == pytest.approx(0.5, abs=0.01)


def test_no_other_parameter_is_left_without_a_gradient(network):
    codes, condition, context = inputs()
    network(codes, condition, context).log_softmax(2)[..., 0].sum().backward()
    without = [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert without == []
