"""The page of ``vae explore``: its interpreter against PyTorch, and the page in a browser."""

import base64
import functools
import html
import importlib
import io
import json
import math
import re
import shutil
import subprocess
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vae_lightning import (
    CVAE,
    DVAE,
    VAE,
    VQVAE,
    VQVAE2,
    WAE,
    CategoricalVAE,
    CodePrior,
    HierarchicalVAE,
    IAFPosterior,
    LadderVAE,
    PlanarFlowPosterior,
    ResidualHierarchicalVAE,
    VampPrior,
    nets,
)
from vae_lightning.distributions import likelihoods, pixel_likelihoods
from vae_lightning.distributions.priors import Prior
from vae_lightning.errors import UserError
from vae_lightning.explore import graph
from vae_lightning.explore.explorer import explorer
from vae_lightning.explore.graph import OPERATORS, UnknownOperatorError, export_graph, pack
from vae_lightning.nets.quantizers import FSQ, ResidualQuantizer, VectorQuantizer
from vae_lightning.randomness import generator

explorer_module = importlib.import_module("vae_lightning.explore.explorer")
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
    **{
        f"{activation} {getattr(kind, 'func', kind).__name__}": partial(
            VAE, latent_dim=5, likelihood=kind, **mlp(activation), **DIGITS
        )
        for activation, kind in (
            ("tanh", likelihoods.ContinuousBernoulli),
            ("silu", likelihoods.Gaussian),
            ("gelu", likelihoods.DiscretizedLogistic),
            ("gated", likelihoods.Bernoulli),
            ("tanh", partial(pixel_likelihoods.MixtureOfLogistics, components=3)),
            ("relu", pixel_likelihoods.Categorical256),
        )
    },
    "vq": lambda: VQVAE(image_shape=(3, 30, 29)),
    "vq conditional": lambda: VQVAE(conditional=True, **DIGITS),
    "vq fsq": lambda: VQVAE(quantizer=FSQ, **DIGITS),
    "vq cosine": lambda: VQVAE(quantizer=partial(VectorQuantizer, similarity="cosine"), **DIGITS),
    "vq prior": lambda: CodePrior(VQVAE(**DIGITS), **DIGITS),
    "d_vae": lambda: DVAE(codebook_size=16, **DIGITS),
    "categorical": lambda: CategoricalVAE(num_variables=4, num_categories=3, **DIGITS),
    "hierarchy": lambda: HierarchicalVAE(latent_dim=8, top_dim=4, hidden=(16,), **DIGITS),
    "hierarchy of three": lambda: LadderVAE(latent_dims=(8, 4, 2), widths=(16, 8, 6), **DIGITS),
    "hierarchy of maps": lambda: ResidualHierarchicalVAE(
        latent_channels=2, channels=4, hidden=4, conditional=True, **DIGITS
    ),
    "wae": lambda: WAE(latent_dim=5, **DIGITS),
    "planar": lambda: VAE(latent_dim=5, posterior=PlanarFlowPosterior, **mlp("relu"), **DIGITS),
    "iaf": lambda: VAE(latent_dim=5, posterior=IAFPosterior, **mlp("relu"), **DIGITS),
    "vamp": lambda: VAE(
        latent_dim=5, prior=partial(VampPrior, components=3), **mlp("relu"), **DIGITS
    ),
}


@pytest.mark.slow
def test_samples_of_codes_are_those_of_the_prior():
    prior = MODELS["vq prior"]().eval()
    data = data_in(page_of(prior, seed=3)[0])
    held = np.frombuffer(base64.b64decode(data["samples"]["data"]), data["samples"]["type"])
    (drawn,) = prior.sample_codes(200, None, generator(3, "explorer"))
    assert held.astype(int).tolist() == drawn.flatten().tolist()
    assert data["canSample"]
    assert not data_in(page_of(prior.autoencoder)[0])["canSample"]


@pytest.mark.parametrize(
    "make",
    [lambda: VQVAE2(**DIGITS), lambda: VQVAE(quantizer=ResidualQuantizer, **DIGITS)],
    ids=["levels", "depth"],
)
def test_several_codes_per_position_are_refused(make):
    with pytest.raises(UserError, match="one map with one code per position"):
        page_of(make())


class Shifted(Prior):
    """N(100 y, I) for class y."""

    def log_prob(self, z, condition=None):
        mean = 100.0 * condition.argmax(1)[:, None, None]
        return -0.5 * ((z - mean).square() + math.log(2 * math.pi)).sum(-1)

    def sample(self, n, condition=None, generator=None):
        noise = torch.randn(n, self.latent_dim, generator=generator)
        return noise + 100.0 * condition.argmax(1, keepdim=True)


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


def with_half_weights(network):
    """The same network with its float32 weights in half precision."""

    def halved(weight):
        assert weight["type"] == "float32" or not any(base64.b64decode(weight["data"]))
        array = np.frombuffer(base64.b64decode(weight["data"]), weight["type"])
        return pack(torch.tensor(array.astype("float32")).view(weight["shape"]))

    weights = {name: halved(weight) for name, weight in network["weights"].items()}
    return {**network, "weights": weights}


@pytest.mark.slow
@pytest.mark.skipif(NODE is None, reason="needs node")
@pytest.mark.parametrize("name", MODELS)
def test_networks_of_the_page_are_those_of_the_model(name, monkeypatch):
    torch.manual_seed(1)
    model = MODELS[name]().eval()
    with monkeypatch.context() as patch:
        patch.setattr(graph, "_LARGEST_HALF", 0.0)
        page, x, y = page_of(model)
    data = data_in(page)
    label = model.used_labels(None if y is None else y[:1])
    given = () if label is None else (model.encode_labels(label, 1),)
    expected = model.reconstruct(x[:1], label).flatten()
    with model.inference():
        z = model.embed(x[:1], label)
        if name == "hierarchy":
            # What p(z_1|z_2) would need as noise, with the parameters that its network returns.
            mu, log_var = model.generative_net(z[1]).chunk(2, 1)
            z = torch.cat([z[1], (z[0] - mu) / log_var.exp().sqrt()], 1)
        elif isinstance(z, tuple):
            z = model.to_noise(z, *given)
        output = model.encoder(x[:1], *given) if name.startswith("vq") else z
        if name == "d_vae":  # the page has the vectors of the codes
            indices = model.encode_indices(x[:1])
            z = model.codebooks[""][indices].movedim(-1, 1)
    if data["encoder"] is None:
        assert name in ("vq fsq", "d_vae")
        assert "its codes are not the nearest ones of a codebook" in data["footer"]
        (decoded,) = in_node([data["decoder"]], [(z, *given)])
        assert (decoded - expected).abs().max() < 1e-5
        return
    networks = [data["decoder"], data["encoder"]]
    halves = [with_half_weights(network) for network in networks]
    inputs = [(z, *given), (x[:1], *given)]
    decoded, encoded, *rounded = in_node([*networks, *halves], [*inputs, *inputs])
    if name == "categorical":
        encoded, rounded[1] = (
            nn.functional.one_hot(scores.view(4, 3).argmax(1), 3).flatten()
            for scores in (encoded, rounded[1])
        )
    size = output.abs().max().clamp(min=1)
    assert (decoded - expected).abs().max() < 1e-5
    assert (encoded - output.flatten()).abs().max() < 1e-5 * size
    assert (rounded[0] - expected).abs().max() < 2e-3
    assert (rounded[1] - output.flatten()).abs().max() < 5e-3 * size


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
    evil = "</script><script>alert(1)</script>{{data}}"
    page, _, _ = page_of(model, class_names=[evil] * 10, title=evil, names=[evil] * 6, what=evil)
    assert page.count("<script") == 2
    assert data_in(page)["classes"][0] == evil
    assert "&lt;/script&gt;" in page
    assert "{{data}}</title>" in page


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


def test_a_model_in_half_precision_is_explored_in_float32():
    torch.manual_seed(1)
    model = VAE(latent_dim=3, **mlp("relu"), **DIGITS).bfloat16()
    data = data_in(page_of(model)[0])
    assert len(data["probe"]["encoded"]) == 3
    assert next(model.parameters()).dtype == torch.bfloat16


def test_wrong_arguments():
    model = CVAE(latent_dim=2, **DIGITS)
    with pytest.raises(UserError, match="is conditional: give the classes"):
        explorer(model, torch.rand(2, 1, 28, 28))
    with pytest.raises(UserError, match="no images"):
        explorer(model, torch.rand(0, 1, 28, 28))
    with pytest.raises(UserError, match="images of 2 channels cannot be shown"):
        explorer(VAE(image_shape=(2, 8, 8)), torch.rand(2, 2, 8, 8))


def test_an_encoder_that_cannot_be_exported_leaves_out_own_images():
    class Sorted(nets.MLPEncoder):
        def forward(self, x, condition=None):
            return super().forward(x.sort(-1).values, condition)

    model = VAE(latent_dim=3, **{**mlp("relu"), "encoder": Sorted}, **DIGITS)
    data = data_in(page_of(model)[0])
    assert data["encoder"] is None
    assert (
        "Without images of your own, because the page cannot run the operator sort"
        in (data["footer"])
    )


def test_samples_of_a_conditional_prior_are_those_of_each_class():
    model = CVAE(latent_dim=2, prior=Shifted, **mlp("relu"), **DIGITS)
    samples = data_in(page_of(model)[0])["samples"]
    z = np.frombuffer(base64.b64decode(samples["data"]), samples["type"]).reshape(10, -1, 2)
    assert z.shape[1] == 20
    assert np.abs(z.astype(float).mean((1, 2)) / 100 - np.arange(10)).max() < 0.02


def test_large_originals_are_embedded_for_the_first_images_only(monkeypatch):
    monkeypatch.setattr(explorer_module, "_THUMBNAIL_VALUES", 2 * 28 * 28)
    page, x, _ = page_of(VAE(latent_dim=2, **mlp("relu"), **DIGITS))
    data = data_in(page)
    assert data["latents"]["shape"] == [6, 2]
    sprite = base64.b64decode(data["thumbnails"]["uri"].partition(",")[2])
    with Image.open(io.BytesIO(sprite)) as picture:
        pixels = np.asarray(picture)
    assert np.array_equal(pixels, np.concatenate(list((255 * x[:2, 0]).round().numpy()), 1))
    assert (data["thumbnails"]["count"], data["thumbnails"]["columns"]) == (2, 2)


def test_the_palette_has_every_code_once_and_similar_ones_in_a_row():
    torch.manual_seed(0)
    vectors = torch.randn(80, 2) * torch.tensor([10.0, 1.0])
    palette = explorer_module._palette(vectors)
    assert sorted(palette) == list(range(80))
    rows = vectors[palette].unflatten(0, (-1, 16))
    spread = (rows[..., 0].amax(1) - rows[..., 0].amin(1)).mean()
    assert spread < 0.3 * (vectors[:, 0].max() - vectors[:, 0].min())
    rising = (rows[..., 1].diff(dim=1) > 0).float().mean()  # the sign of a component is arbitrary
    assert max(rising, 1 - rising) > 0.8


# What is typed and clicked on the page, as scripts that run in it. `check` compares and collects.
ACTIONS = {
    "conv": """
        const plot = element("plot");
        const click = (u, v) => {
          const box = plot.getBoundingClientRect();
          plot.dispatchEvent(new MouseEvent("click",
            { clientX: box.left + u * box.width, clientY: box.top + v * box.height }));
        };
        z.fill(2);
        const place = (axis) => toPlot(coordinate(3, axis), axis) / SIDE;
        click(place(axisX), 1 - place(axisY));
        await pause(1000);
        const nearest = Math.min(...labels.map((_, i) => distance(z, latentOf(i))));
        check("a click on a point goes to a latent in all dimensions", nearest < 1e-6);
        const old = z.slice();
        click(0.98, 0.02);
        await pause(200);
        const moved = [...z].flatMap((v, i) => (v === old[i] ? [] : [i]));
        check("elsewhere it moves two dimensions", String(moved) === String([axisX, axisY].sort()));
        const { d, input } = sliders[2];
        const before = z[d];
        input.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
        const step = (DATA.high[d] - DATA.low[d]) / 100;
        check("a key moves a slider", Math.abs(z[d] - before - step) < 1e-3);
        await thumbnails.decode();
        drawThumbnail(element("drawing"), 4);
        readDrawing();
        check("an own image is encoded", distance(z, latentOf(4)) < 0.02);
        check("the page fits the window", document.documentElement.scrollWidth <= innerWidth);
    """,
    "conditional": """
        const before = decode(z);
        element("classes").children[7].click();
        const pressed = element("classes").querySelector("[aria-pressed=true]").textContent;
        check("the class is chosen", label === 7 && pressed === "7");
        check("the image depends on it", distance(before, decode(z)) > 1e-4);
    """,
    "vq": """
        element("codes").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown" }));
        element("codes").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
        check("keys go to a place", selected === gridShape[1] + 1);
        const before = z.slice();
        const code = (before[selected] + 1) % DATA.codebook.shape[0];
        element("palette").querySelector(`[data-code="${code}"]`).click();
        const changed = [...z].flatMap((v, i) => (v === before[i] ? [] : [i]));
        check("one code changes", String(changed) === String([selected]) && z[selected] === code);
        await thumbnails.decode();
        drawThumbnail(element("drawing"), 4);
        readDrawing();
        const different = [...z].filter((v, i) => v !== latentOf(4)[i]).length;
        check("an own image has its codes", different < 0.1 * size);
    """,
    "categorical": """
        const canvas = element("codes");
        const box = canvas.getBoundingClientRect();
        canvas.dispatchEvent(new MouseEvent("click",
          { clientX: box.left + box.width * 0.9, clientY: box.top + box.height * 0.4 }));
        check("a click chooses a category", z[1] === 2);
        canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
        check("a key chooses another", z[1] === 1);
    """,
    "hierarchy": """
        check("the top level has sliders", sliders.length === 4 && size === 12);
        element("random").click();
        await pause(1000);
        check("samples have noise on all levels", [...z].every((v) => v !== 0));
    """,
    "vamp": """
        element("random").click();
        await pause(1000);
        const rows = Array.from({ length: 200 }, (_, i) => samples.slice(i * size, (i + 1) * size));
        check("samples are those of the prior", rows.some((row) => distance(row, z) < 1e-6));
    """,
}

SCRIPT = """<script>
// Frames are not drawn regularly while Chromium only dumps a page.
window.requestAnimationFrame = (f) => setTimeout(() => f(performance.now()), 16);
const checks = {};
const check = (name, holds) => { checks[name] = holds; };
const pause = (time) => new Promise((resolve) => setTimeout(resolve, time));
const distance = (a, b) => a.reduce((most, v, i) => Math.max(most, Math.abs(v - b[i])), 0);
(async () => {
  try { %s } catch (error) { checks[error.message] = false; }
  document.body.dataset.checks = JSON.stringify(checks);
})();
</script></html>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("name", ACTIONS)
def test_the_page_in_a_browser(name, tmp_path):
    torch.manual_seed(1)
    page, _, _ = page_of(MODELS[name]().eval(), footer="A footer.")
    page = page.replace("</html>", SCRIPT % ACTIONS[name])
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", "--disable-quic"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=6000"),
    ]
    done = subprocess.run(
        [str(CHROMIUM), *options, "--dump-dom", f"file://{tmp_path / 'page.html'}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    footer = re.search(r'<footer id="footer">A footer. (.*?)</footer>', done.stdout)[1]
    decoded, encoded = re.fullmatch(
        r"Largest difference from PyTorch on a probe: (\S+) in the decoded image, (\S+) in what "
        r"the encoder returns\.",
        footer,
    ).groups()
    assert float(decoded) < 2e-3
    assert float(encoded) < 1e-2
    checks = json.loads(html.unescape(re.search(r'data-checks="(.*?)"', done.stdout)[1]))
    assert checks
    assert all(checks.values()), checks
