"""Exported models: read back, run by onnxruntime and torch.export, and described."""

import dataclasses
import functools
import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

import vae_lightning
from vae_lightning import (
    CVAE,
    VAE,
    VQVAE,
    CategoricalVAE,
    HierarchicalVAE,
    IAFPosterior,
    LadderVAE,
    RealNVPPrior,
    ResidualHierarchicalVAE,
    checkpoint,
    nets,
)
from vae_lightning.checkpoint import TrainingRecord
from vae_lightning.errors import UserError
from vae_lightning.explore import exporting
from vae_lightning.explore.model_card import model_card

ort = pytest.importorskip("onnxruntime")

MLP = {
    "image_shape": (1, 8, 8),
    "encoder": functools.partial(nets.MLPEncoder, hidden=(8,)),
    "decoder": functools.partial(nets.MLPDecoder, hidden=(8,)),
}
MODELS = {
    "vae": lambda: VAE(latent_dim=3, image_shape=(3, 9, 8)),
    "cvae": lambda: CVAE(latent_dim=3, num_classes=4, **MLP),
    "vq": lambda: VQVAE(image_shape=(1, 8, 8)),
    "categorical": lambda: CategoricalVAE(num_variables=3, num_categories=4, **MLP),
    "hierarchy": lambda: HierarchicalVAE(latent_dim=4, top_dim=2, hidden=(8,), **MLP),
    "hierarchy of three": lambda: LadderVAE(latent_dims=(4, 3, 2), widths=(8, 7, 6), **MLP),
    "hierarchy of maps": lambda: ResidualHierarchicalVAE(
        image_shape=(1, 7, 8),
        latent_channels=2,
        channels=4,
        hidden=4,
        conditional=True,
        num_classes=4,
    ),
    "flows": lambda: VAE(
        latent_dim=3,
        prior=functools.partial(RealNVPPrior, hidden=(8,)),
        posterior=functools.partial(IAFPosterior, hidden=(8,)),
        **MLP,
    ),
}
RECORD = TrainingRecord(
    model={},
    optimizer={"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001, "foreach": None}},
    noise_seed=3,
    step=40,
    data={"class_path": "vae_lightning.data.mnist.MNIST", "init_args": {"root": "/home/me/data"}},
    epochs=2,
    run={"id": "abc", "folder": "/home/me/runs/vae/version_0"},
    random_states=[[torch.zeros(3)]],
    class_names=["a", "b", "c", "d"],
)


def made(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    return model, dataclasses.replace(RECORD, model=model.describe())


def inputs(model, n):
    torch.manual_seed(n)
    x = torch.rand(n, *model.image_shape)
    label = torch.arange(n) % 4 if model.conditional else None
    return x, label, model.encode_labels(label, n)


@pytest.mark.parametrize("name", MODELS)
def test_the_folder_is_read_back(name, tmp_path):
    model, record = made(name)
    exporting.write_weights(model, record, tmp_path)
    again = vae_lightning.load(tmp_path)
    assert not again.training
    for key, value in model.state_dict().items():
        assert value.equal(again.state_dict()[key]), key
    x, label, _ = inputs(model, 3)
    assert again.reconstruct(x, label).equal(model.reconstruct(x, label))
    # Other tools read the weights under the same names.
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    text = (tmp_path / "config.json").read_text()
    assert "/home/me" not in text
    held = checkpoint.read(tmp_path)
    assert held.record.class_names == ["a", "b", "c", "d"]
    assert held.record.step == held.global_step == 40


@pytest.mark.slow_except("vae")
@pytest.mark.parametrize("name", MODELS)
def test_onnx_files_compute_what_the_model_does(name, tmp_path):
    model, _ = made(name)
    for part in ("encoder", "decoder"):
        difference = exporting.export_onnx(model, part, tmp_path / f"{part}.onnx")
        assert difference < 1e-5
    encoder, decoder = (
        ort.InferenceSession(tmp_path / f"{part}.onnx", providers=["CPUExecutionProvider"])
        for part in ("encoder", "decoder")
    )
    for n in (1, 7):
        x, label, condition = inputs(model, n)
        given = {} if condition is None else {"condition": condition.numpy()}
        (z,) = encoder.run(None, {"x": x.numpy(), **given})
        latent = "codes" if name == "vq" else "z"
        (image,) = decoder.run(None, {latent: z, **given})
        assert torch.from_numpy(image).allclose(model.reconstruct(x, label), atol=1e-5)
        if name == "vq":
            assert torch.from_numpy(z).equal(model.encode_indices(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "cvae", "vq"])
def test_programs_compute_what_the_model_does(name, tmp_path):
    model, _ = made(name)
    programs = []
    for part in ("encoder", "decoder"):
        assert exporting.export_program(model, part, tmp_path / f"{part}.pt2") < 1e-5
        programs.append(torch.export.load(tmp_path / f"{part}.pt2").module())
    x, label, condition = inputs(model, 6)
    given = () if condition is None else (condition,)
    again = programs[1](programs[0](x, *given), *given)
    assert again.allclose(model.reconstruct(x, label), atol=1e-5)
    # Each holds the weights of its own network only.
    names = [
        set(torch.export.load(tmp_path / f"{p}.pt2").state_dict) for p in ("encoder", "decoder")
    ]
    assert not any(".decoder." in name for name in names[0])
    assert not any(".encoder." in name for name in names[1])


def test_a_network_that_cannot_be_exported_is_named(tmp_path):
    class Branching(nets.Encoder):
        def __init__(self, image_shape, out_features, cond_features=0):
            super().__init__()
            self.layer = torch.nn.Linear(64, out_features)

        def forward(self, x, condition=None):
            return self.layer(x.flatten(1)) if x.sum() > 0 else self.layer(-x.flatten(1))

    model = VAE(latent_dim=2, **{**MLP, "encoder": Branching})
    with pytest.raises(UserError, match="the encoder cannot be exported"):
        exporting.export_program(model, "encoder", tmp_path / "a.pt2")


def test_a_difference_is_an_error(tmp_path, monkeypatch):
    model, _ = made("vae")
    real = exporting.DecoderNetwork.forward
    calls = []

    def changing(self, z, condition=None):
        calls.append(1)
        return real(self, z, condition) + (0.1 if len(calls) > 2 else 0.0)

    monkeypatch.setattr(exporting.DecoderNetwork, "forward", changing)
    with pytest.raises(UserError, match="differs from the model by"):
        exporting.export_program(model, "decoder", tmp_path / "a.pt2")


def damage(folder, how):
    config = folder / "config.json"
    content = json.loads(config.read_text())
    if how == "text":
        config.write_text("{")
    elif how == "list":
        config.write_text("[]")
    elif how == "version":
        content["vae_lightning"]["version"] = 99
        config.write_text(json.dumps(content))
    elif how == "class":
        content["vae_lightning"]["model"]["class_path"] = "os.system"
        config.write_text(json.dumps(content))
    elif how == "size":
        content["vae_lightning"]["model"]["init_args"]["latent_dim"] = 7
        config.write_text(json.dumps(content))
    elif how.startswith("no "):
        (folder / how.removeprefix("no ")).unlink()
    else:
        weights = folder / "model.safetensors"
        held = bytearray(weights.read_bytes())
        held[-1] ^= 1
        weights.write_bytes(held if how == "byte" else held[:100])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("text", "config.json cannot be read"),
        ("list", "config.json is damaged"),
        ("version", "has a record of version 99"),
        ("class", "names 'os.system', which is no"),
        ("size", "do not fit the VAE that it describes"),
        ("cut", "model.safetensors is not the file that config.json describes"),
        ("byte", "model.safetensors is not the file that config.json describes"),
        ("no config.json", "has model.safetensors but no config.json"),
        ("no model.safetensors", "has config.json but no model.safetensors"),
    ],
)
def test_damaged_folders(how, message, tmp_path):
    model, record = made("vae")
    exporting.write_weights(model, record, tmp_path)
    damage(tmp_path, how)
    with pytest.raises(UserError, match=message):
        vae_lightning.load(tmp_path)


def header(card):
    return yaml.safe_load(card.split("---")[1])


def test_the_card_tells_numbers_and_warnings():
    model, record = made("vae")
    report = {
        "metrics": {
            "negative_elbo": 90.123,
            "active_units": 1,
            "collapsed": ["z0", "z2"],
            "kl_per_dimension": [0.0, 2.0, 0.0],
        },
        "standard_errors": {"negative_elbo": 0.25},
        "units": {"negative_elbo": "nats per image", "active_units": "of 3 dimensions"},
        "images": 1000,
        "split": "test",
        "data": "MNIST",
        "is_normalized": False,
    }
    card = model_card(model, record, report, files=["config.json"], pictures={"a.png": "Samples"})
    assert header(card)["pipeline_tag"] == "unconditional-image-generation"
    assert header(card)["datasets"] == ["mnist"]
    assert "# VAE on MNIST" in card
    assert "| negative_elbo | 90.12 | 0.25 | nats per image |" in card
    assert "On 1000 test images of MNIST" in card
    assert "2 latent dimensions have collapsed and change nothing: z0, z2." in card
    assert "is a cross-entropy, not" in card.replace("\n", " ")
    assert "![Samples](a.png)" in card
    assert "| optimizer | Adam(lr=0.001) |" in card
    assert "/home/me" not in card


def test_the_card_of_a_conditional_model():
    card = model_card(*made("cvae"))
    assert "class-conditional" in header(card)["tags"]
    assert "pipeline_tag" not in header(card)  # the hub has one for unconditional images only
    assert "model.sample(64, label=0)" in card


def test_the_card_of_a_model_of_ones_own_imports_it(monkeypatch):
    class Own(VAE):
        pass

    monkeypatch.setattr(Own, "__module__", "my_models")
    card = model_card(Own(latent_dim=3, **MLP), RECORD)
    assert "import my_models  # has classes of the model\nimport vae_lightning\n" in card
    assert "$ vae reconstruct photos --ckpt_path FOLDER --import my_models\n" in card


def test_the_card_of_a_model_without_prior_or_numbers():
    model, record = made("vq")
    card = model_card(model, record)
    assert "pipeline_tag" not in header(card)
    assert "It has no prior to draw samples from." in card
    assert "Not measured: `vae test" in card
    assert "model.sample" not in card
