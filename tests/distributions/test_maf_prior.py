"""The autoregressive prior: its density by autograd, and samples by inversion."""

import pytest
import torch
from contract_checks import check_real_sampler
from torch.autograd.functional import jacobian

from vae_lightning.distributions.zuko_flows import MAFPrior, RealNVPPrior
from vae_lightning.functional import standard_normal_log_prob


def prior(size=4, classes=0, scale=1.3) -> MAFPrior:
    made = MAFPrior(size, classes, transforms=3, hidden=(16,))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(scale)
    return made


@pytest.mark.parametrize("classes", [0, 3])
def test_log_prob_is_that_of_the_jacobian(classes):
    made, z = prior(classes=classes), torch.randn(1, 3, 4)
    condition = torch.eye(3)[1:2] if classes else None
    transform = made.transforms(None if condition is None else condition[0])
    found = made.log_prob(z, condition)[0]
    for k in range(3):
        log_det = torch.linalg.slogdet(jacobian(transform, z[0, k])).logabsdet
        expected = standard_normal_log_prob(transform(z[0, k])) + log_det
        torch.testing.assert_close(found[k], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("classes", [0, 3])
def test_stopping_early_changes_nothing(classes):
    """The samples are those of as many passes as there are dimensions, bit for bit."""
    made, base = prior(size=20, classes=classes), torch.randn(50, 20)
    condition = torch.eye(3)[torch.arange(50) % 3] if classes else None
    with torch.no_grad():
        z = made.inverse(base, condition)
        assert z.equal(made.transforms(condition).inv(base))
        again = made.transforms(condition)(z)
    torch.testing.assert_close(again, base, rtol=1e-3, atol=1e-3)


def test_samples_follow_a_density_that_integrates_to_one():
    made = prior(size=2)
    generator = torch.Generator().manual_seed(0)
    check_real_sampler(
        lambda n: made.sample(n, generator=generator), lambda z: made.log_prob(z[:, None])[:, 0]
    )


@pytest.mark.parametrize("cls", [MAFPrior, RealNVPPrior])
def test_each_sample_is_one_of_its_class(cls):
    made, classes = cls(4, 3, transforms=3, hidden=(16,)), torch.eye(3)[torch.arange(50) % 3]
    z = made.sample(50, classes, torch.Generator().manual_seed(1))
    base = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(made.transforms(classes)(z), base, rtol=1e-4, atol=1e-4)
    other = made.transforms(classes.roll(1, 0))(z)
    assert (other - base).abs().max() > 1e-3


def test_each_row_has_its_class():
    made, classes = prior(size=2, classes=3), torch.eye(3)
    z = torch.randn(1, 4, 2).repeat(3, 1, 1)
    found = made.log_prob(z, classes)
    for i in range(3):
        torch.testing.assert_close(made.log_prob(z[:1], classes[i : i + 1])[0], found[i])
    assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MAFPrior(1), "MAFPrior needs at least two latent dimensions, got 1"),
        (lambda: MAFPrior(2, transforms=0), "MAFPrior: transforms must be positive, got 0"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
