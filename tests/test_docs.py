"""The Python examples of the documentation run, and the reference covers every package."""

import math
import pkgutil
import re
import runpy
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

import vae_lightning
from vae_lightning.models.base import BaseVAE
from vae_lightning.models.vae import VAE
from vae_lightning.randomness import Noise
from vae_lightning.training.module import LitVAE

PAGES = Path(__file__).parents[1] / "docs" / "pages"


def run_examples(page: Path) -> dict:
    """Run the Python blocks of a page one after the other and return their names."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    namespace: dict = {"__name__": f"docs_{page.stem.replace('-', '_')}"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)
    return namespace


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize(
    "name",
    [
        "index.md",
        "concepts.md",
        "api/index.md",
        "guides/own-data.md",
        "guides/own-network.md",
        "models/codes.md",
    ],
)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert any(isinstance(value, BaseVAE | LitVAE) for value in run_examples(PAGES / name).values())


def test_every_page_with_examples_is_run():
    pages = {str(path.relative_to(PAGES)) for path in PAGES.rglob("*.md")}
    with_python = {name for name in pages if "```python" in (PAGES / name).read_text()}
    by_commands = {"guides/own-metric.md"}  # as a file, see test_docs_commands.py
    assert with_python - by_commands == {
        *("index.md", "concepts.md", "api/index.md", "guides/own-network.md"),
        *("guides/own-data.md", "guides/own-model.md", "models/codes.md"),
    }


@pytest.fixture(scope="module")
def variants():
    return run_examples(PAGES / "guides" / "own-model.md")


SMALL = {"image_shape": (1, 8, 8), "latent_dim": 3}


def test_budget(variants, batch):
    model = variants["BudgetVAE"](free_nats=1e3, **SMALL)
    terms = model.terms(batch.x, None, Noise(batch.indices))
    torch.testing.assert_close(model.objective(terms), terms.reconstruction + 1e3)


def test_laplace_prior_and_posterior_have_normalized_densities(variants):
    z = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    prior = variants["LaplacePrior"](1, scale=0.5)
    density = prior.log_prob(z[:, None]).exp()
    torch.testing.assert_close(torch.trapezoid(density, z).item(), 1.0, rtol=1e-5, atol=0)
    samples = prior.sample(100_000, generator=torch.Generator().manual_seed(0))
    assert samples.std().item() == pytest.approx(0.5 * 2**0.5, rel=0.02)

    mu, log_scale = torch.tensor([[0.3, -1.0]]), torch.tensor([[-0.5, 0.7]])
    q = variants["LaplacePosterior"](2)(torch.cat([mu, log_scale], 1))
    draws = q.rsample(Noise(torch.tensor([5])), 50_000)
    expected = torch.distributions.Laplace(mu[:, None], log_scale.exp()[:, None])
    torch.testing.assert_close(draws.log_prob, expected.log_prob(draws.z).sum(2), rtol=0, atol=1e-4)
    deviation = (draws.z[0] - mu).abs().mean(0)
    torch.testing.assert_close(deviation, log_scale.exp()[0], rtol=0.03, atol=0)


def test_draws_of_the_posterior_can_be_made_in_parts(variants):
    q = variants["LaplacePosterior"](2)(torch.zeros(3, 4))
    noise = Noise(torch.arange(3))
    whole = q.rsample(noise.restart(), 6).z
    assert torch.equal(q.rsample(noise.restart(), 4, first=2).z, whole[:, 2:])


def test_the_laplace_parts_make_a_model(variants, batch):
    parts = {"prior": variants["LaplacePrior"], "posterior": variants["LaplacePosterior"]}
    model = VAE(**SMALL, **parts)
    assert model.log_prob(batch.x).isfinite().all()
    assert model.sample(2).shape == (2, 1, 8, 8)


def test_the_logistic_likelihood_is_that_of_its_samples(variants, batch):
    likelihood = variants["Logistic"]()
    params = torch.tensor([0.3, -1.2]).view(1, 2, 1, 1)
    x = torch.linspace(-20, 20, 40_001).view(-1, 1, 1, 1)
    density = likelihood.log_prob(params, x).double().exp()
    assert torch.trapezoid(density, dx=1e-3).item() == pytest.approx(1, rel=1e-5)
    drawn = likelihood.sample(params.expand(50_000, -1, -1, -1), torch.Generator().manual_seed(0))
    scale = math.exp(-1.2)
    assert drawn.mean().item() == pytest.approx(0.3, abs=0.01)
    assert drawn.std().item() == pytest.approx(scale * math.pi / 3**0.5, rel=0.02)
    image = batch.x[0]
    assert likelihood.mean(likelihood.params_at(image)).equal(image)
    assert VAE(**SMALL, likelihood=variants["Logistic"]).log_prob(batch.x).isfinite().all()


def test_the_schedule_ends_at_1(variants):
    schedule = variants["SquaredWarmup"](steps=10)
    assert [schedule(step) for step in (0, 5, 10, 20)] == [0.0, 0.25, 1.0, 1.0]


def test_covariance_term(variants, batch):
    model = variants["CovarianceVAE"](covariance_weight=2.0, **SMALL)
    terms = model.terms(batch.x, None, Noise(batch.indices))
    mu = model.embed(batch.x)
    expected = (mu.T.cov(correction=0) - torch.eye(3)).square().sum()
    torch.testing.assert_close(terms.covariance, expected)
    torch.testing.assert_close(model.objective(terms), terms.negative_elbo + 2 * expected)


def test_critic_and_encoder_do_not_reach_each_other(variants, batch):
    model = variants["CriticVAE"](**SMALL)
    of_critic, of_encoder = list(model.critic.parameters()), list(model.encoder.parameters())
    terms = model.terms(batch.x, None, Noise(batch.indices))

    def gradients(loss, parameters):
        found = torch.autograd.grad(loss.mean(), parameters, retain_graph=True, allow_unused=True)
        return [gradient is not None for gradient in found]

    assert all(gradients(model.objective(terms), of_encoder))
    assert not any(gradients(model.objective(terms), of_critic))
    assert all(gradients(model.critic_objective(terms), of_critic))
    assert not any(gradients(model.critic_objective(terms), of_encoder))


@pytest.mark.parametrize("name", ["BudgetVAE", "CovarianceVAE", "CriticVAE", "LaplacePosterior"])
def test_the_variants_train(variants, blobs, tmp_path, name):
    shape = {**SMALL, "num_classes": 4}
    if name.startswith("Laplace"):
        model = VAE(**shape, prior=variants["LaplacePrior"], posterior=variants[name])
    else:
        model = variants[name](**shape)
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    before = [parameter.clone() for parameter in model.parameters()]
    trainer.fit(LitVAE(model), datamodule=blobs(binarization="threshold"))
    assert all(not old.equal(new) for old, new in zip(before, model.parameters(), strict=True))


def test_the_reference_covers_every_package():
    documented = "\n".join(path.read_text("utf-8") for path in (PAGES / "api").glob("*.md"))
    modules = {module.name for module in pkgutil.iter_modules(vae_lightning.__path__)}
    # What is typed, not imported, is in the README; the errors are named where they are raised.
    for name in modules - {"cli", "__main__", "errors", "files"}:
        assert f"::: vae_lightning.{name}\n" in documented


def test_every_configuration_has_a_card():
    card = runpy.run_path(str(PAGES.parent / "configurations.py"))["card"]
    for path in (PAGES.parents[1] / "configs").glob("*.yaml"):
        text = card(path)
        assert f"## {path.stem}\n" in text
        assert "$ vae fit" in text
        assert "`" in text.split("| model | ")[1]
        assert re.search(r"\| training \| .*batches of \d+", text)
