"""The page of ``vae explore``: its interpreter against PyTorch, and the page in a browser."""

import functools
import json
import re
import shutil
import subprocess
from importlib.resources import files

import pytest
import torch
from torch import nn

from vae_lightning import (
    CVAE,
    VAE,
    VQVAE,
    WAE,
    CategoricalVAE,
    HierarchicalVAE,
    IAFPosterior,
    PlanarFlowPosterior,
    VampPrior,
    nets,
)
from vae_lightning.distributions import likelihoods
from vae_lightning.errors import UserError
from vae_lightning.explore.explorer import explorer
from vae_lightning.explore.graph import OPERATORS, UnknownOperatorError, export_graph, pack

PAGE = files("vae_lightning.explore") / "page"
NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DIGITS = {"image_shape": (1, 28, 28), "num_classes": 10}

partial = functools.partial


def mlp(activation):
    return {
        "encoder": partial(nets.MLPEncoder, hidden=(32,), activation=activation),
        "decoder": partial(nets.MLPDecoder, hidden=(32,), activation=activation),
    }


MODELS = {
    "conv": lambda: VAE(latent_dim=5, **DIGITS),
    "conditional": lambda: CVAE(latent_dim=5, **DIGITS),
    "odd color": lambda: VAE(latent_dim=5, image_shape=(3, 33, 31)),
    **{a: partial(VAE, latent_dim=5, **mlp(a), **DIGITS) for a in ("relu", "tanh", "silu", "gelu")},
    "gated": partial(VAE, latent_dim=5, **mlp("gated"), **DIGITS),
    **{
        kind.__name__: partial(VAE, latent_dim=5, likelihood=kind, **mlp("relu"), **DIGITS)
        for kind in (
            likelihoods.ContinuousBernoulli,
            likelihoods.Gaussian,
            likelihoods.DiscretizedLogistic,
        )
    },
    "vq": lambda: VQVAE(**DIGITS),
    "vq conditional": lambda: VQVAE(conditional=True, **DIGITS),
    "vq odd color": lambda: VQVAE(image_shape=(3, 30, 29)),
    "categorical": lambda: CategoricalVAE(num_variables=4, num_categories=3, **DIGITS),
    "hierarchy": lambda: HierarchicalVAE(latent_dim=8, top_dim=4, hidden=(16,), **DIGITS),
    "wae": lambda: WAE(latent_dim=5, **DIGITS),
    "planar": lambda: VAE(latent_dim=5, posterior=PlanarFlowPosterior, **mlp("relu"), **DIGITS),
    "vamp": lambda: VAE(
        latent_dim=5, prior=partial(VampPrior, components=3), **mlp("relu"), **DIGITS
    ),
}


def data_in(page):
    text = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    return json.loads(text.group(1))


def page_of(model, n=6, **kwargs):
    torch.manual_seed(2)
    x = torch.rand(n, *model.image_shape)
    y = torch.arange(n) % model.num_classes if model.num_classes else None
    return explorer(model, x, y, **kwargs), x, y


def in_node(networks, inputs):
    """Outputs of networks of pages, run by the interpreter in Node."""
    code = (PAGE / "interpreter.js").read_text(encoding="utf-8") + (
        "const cases = JSON.parse(require('fs').readFileSync(0));"
        "console.log(JSON.stringify(cases.map(([network, inputs]) =>"
        " Array.from(run(load(network), ...inputs.map((x) => Float32Array.from(x)))))));"
    )
    cases = [
        [network, [x.flatten().tolist() for x in given]]
        for network, given in zip(networks, inputs, strict=True)
    ]
    done = subprocess.run(
        [str(NODE), "-e", code], input=json.dumps(cases), capture_output=True, text=True, check=True
    )
    return [torch.tensor(output) for output in json.loads(done.stdout)]


@pytest.mark.skipif(NODE is None, reason="needs node")
@pytest.mark.parametrize("name", MODELS)
def test_networks_of_the_page_are_those_of_the_model(name):
    torch.manual_seed(1)
    model = MODELS[name]().eval()
    page, x, y = page_of(model)
    data = data_in(page)
    label = model.used_labels(None if y is None else y[:1])
    given = () if label is None else (model.encode_labels(label, 1),)
    with model.inference():
        latent = model.embed(x[:1], label)
        z = latent if isinstance(latent, torch.Tensor) else latent[-1]
        if name == "hierarchy":
            expected = model.decode((model.lower_mean(z), z))
        else:
            expected = model.decode(latent, label)
        decoded, encoded = in_node(
            [data["decoder"], data["encoder"]], [(z, *given), (x[:1], *given)]
        )
        if name == "categorical":
            encoded = nn.functional.one_hot(encoded.view(4, 3).argmax(1), 3).flatten()
        elif name.startswith("vq"):
            z = model.encoder(x[:1], *given)
    # Weights are in half precision.
    assert (decoded - expected.flatten()).abs().max() < 2e-3
    assert (encoded - z.flatten()).abs().max() < 5e-3 * z.abs().max().clamp(min=1)


def test_a_posterior_that_cannot_be_exported_leaves_out_own_images():
    model = VAE(latent_dim=3, posterior=IAFPosterior, **mlp("relu"), **DIGITS)
    data = data_in(page_of(model)[0])
    assert data["encoder"] is None
    assert "Without images of your own, because" in data["footer"]


def test_the_operators_are_those_of_the_interpreter():
    text = (PAGE / "interpreter.js").read_text(encoding="utf-8")
    table = text[text.index("const OPERATORS = {") : text.index("// Runs a network on")]
    assert set(re.findall(r'^  "([\w.]+)":', table, re.M)) == OPERATORS


class Sine(nn.Module):
    def forward(self, x):
        return torch.erfinv(x.sin())


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_other_operators_are_refused_by_name():
    with pytest.raises(UnknownOperatorError, match=r"the operator sin\.default"):
        export_graph(Sine(), torch.rand(1, 2))
    with pytest.raises(UserError, match="cannot be exported for the page"):
        export_graph(Branch(), torch.rand(1, 2))


def test_constants_are_folded():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[1.0, 2.0]]))

        def forward(self, x):
            return x + self.weight.exp().permute(1, 0)

    graph = export_graph(Scaled(), torch.zeros(2, 1))
    assert [node["operator"] for node in graph["nodes"]] == ["add.Tensor"]
    (weight,) = graph["weights"].values()
    assert weight["shape"] == [2, 1]


@pytest.mark.parametrize(
    ("x", "kind"),
    [
        (torch.tensor([0.5, -2.0]), "float16"),
        (torch.tensor([1e6, 1.0]), "float32"),
        (torch.tensor([0, 255]), "uint8"),
        (torch.tensor([0, 511]), "uint16"),
    ],
)
@pytest.mark.skipif(NODE is None, reason="needs node")
def test_arrays_are_read_as_they_were(x, kind):
    packed = pack(x)
    assert packed["type"] == kind
    code = (PAGE / "interpreter.js").read_text(encoding="utf-8") + (
        f"console.log(JSON.stringify(Array.from(unpack({json.dumps(packed)}).data)))"
    )
    done = subprocess.run([str(NODE), "-e", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == x.tolist()


def test_names_cannot_end_the_data_or_the_title():
    model = VAE(latent_dim=2, **mlp("relu"), **DIGITS)
    evil = "</script><script>alert(1)</script>"
    page, _, _ = page_of(model, class_names=[evil] * 10, title=evil, names=[evil] * 6, what=evil)
    assert page.count("<script") == 2
    assert data_in(page)["classes"][0] == evil
    assert "&lt;/script&gt;" in page


def test_collapsed_dimensions_are_told_from_used_ones(monkeypatch):
    model = VAE(latent_dim=3, **mlp("relu"), **DIGITS)
    monkeypatch.setattr(
        VAE,
        "latent_kl",
        lambda self, x, label=None: torch.tensor([[0.0, 2.0, 0.001]]).expand(len(x), 3),
    )
    data = data_in(page_of(model)[0])
    assert data["use"] == [0.0, 2.0, 0.001]
    assert data["collapsed"] == [0, 2]
    assert data["subtitle"].startswith("3 latent dimensions, 1 in use")


def test_wrong_arguments():
    model = CVAE(latent_dim=2, **DIGITS)
    with pytest.raises(UserError, match="is conditional: give the classes"):
        explorer(model, torch.rand(2, 1, 28, 28))
    with pytest.raises(UserError, match="no images"):
        explorer(model, torch.rand(0, 1, 28, 28))
    with pytest.raises(UserError, match="images of 2 channels cannot be shown"):
        explorer(VAE(image_shape=(2, 8, 8)), torch.rand(2, 2, 8, 8))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("name", ["conv", "conditional", "vq", "categorical", "hierarchy", "vamp"])
def test_the_page_in_a_browser_agrees_with_pytorch(name, tmp_path):
    torch.manual_seed(1)
    page, _, _ = page_of(MODELS[name]().eval(), footer="A footer.")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", "--disable-quic"),
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    done = subprocess.run(
        [str(CHROMIUM), *options, "--dump-dom", f"file://{tmp_path / 'page.html'}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert 'data-ready="' in done.stdout
    difference = re.search(r"PyTorch on a probe: ([\d.e+-]+)\.</footer>", done.stdout)
    assert float(difference.group(1)) < 2e-3
    shown = "slider" if name in ("conv", "conditional", "hierarchy", "vamp") else 'id="codes" width'
    assert shown in done.stdout
