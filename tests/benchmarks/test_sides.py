"""The sides of the benchmark do the same work."""

import sys
from pathlib import Path

import pytest
import torch

from vae_lightning.randomness import Noise

sys.path.insert(0, str(Path(__file__).parent))

import sides


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", sides.WORKLOADS)
def test_networks_have_the_same_sizes(name):
    workload = sides.WORKLOADS[name]
    ours, theirs = sides.our_model(workload), sides.textbook_model(workload)
    # Theirs have a layer each for mu and log_var where ours have one for both.
    heads = sum(count(getattr(theirs, head)) for head in ("mu", "log_var") if hasattr(theirs, head))
    assert count(ours.encoder) == count(theirs.encoder) + heads
    assert count(ours.decoder) == count(theirs.decoder)


def test_loops_by_hand_find_the_same_likelihood():
    workload = sides.WORKLOADS["likelihood-mlp"]
    ours, theirs = sides.our_model(workload), sides.textbook_model(workload)
    linear = [
        [m for m in part.modules() if isinstance(m, torch.nn.Linear)]
        for part in (ours.encoder, ours.decoder, theirs.encoder, theirs.decoder)
    ]
    linear[0][-1].weight.data.mul_(3)  # a posterior that is not the prior
    linear[1][-1].weight.data.mul_(3)
    for part, copy in zip(linear[:2], linear[2:], strict=True):
        for a, b in zip(part, copy, strict=False):
            b.load_state_dict(a.state_dict())
    weights, biases = (p.chunk(2) for p in linear[0][-1].parameters())
    for head, weight, bias in zip((theirs.mu, theirs.log_var), weights, biases, strict=True):
        head.load_state_dict({"weight": weight, "bias": bias})
    x = torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8)
    draws = 2_000
    images = x.float() / 255
    noise = Noise(torch.arange(4), "benchmark")
    expected = ours.log_marginal(images, None, noise, draws, 256).float()
    assert expected.std() > 1
    by_hand = sides.log_likelihoods(ours, x, 3, draws)
    with torch.no_grad():
        textbook = theirs.log_likelihood(images, draws)
    torch.testing.assert_close(by_hand, expected, rtol=0, atol=0.5)
    torch.testing.assert_close(textbook, expected, rtol=0, atol=0.5)
