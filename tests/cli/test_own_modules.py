"""Classes in a module of the folder where ``vae`` is started."""

import subprocess
import sys
from pathlib import Path

import pytest

from vae_lightning.__main__ import main

VAE = Path(sys.executable).with_name("vae")
MODULE = """
from vae_lightning.nets import MLPEncoder

class MyEncoder(MLPEncoder):
    pass
"""
FIT = [
    *("fit", "--model.encoder=my_networks.MyEncoder", "--model.decoder=MLPDecoder"),
    *("--data.train_size=110", "--data.val_size=20", "--data.test_size=10"),
    *("--trainer.max_epochs=1", "--trainer.accelerator=cpu"),
    *(f"--figures.{n}=null" for n in ("samples", "reconstructions", "latents", "traversals")),
]
CKPT = ["--ckpt_path", "runs/vae/version_0/checkpoints/best.ckpt"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return tmp_path


def vae(*args):
    done = subprocess.run([VAE, *args], capture_output=True, text=True, timeout=200)
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not VAE.exists(), reason="the command is not installed beside Python")
def test_they_are_found_and_have_to_be_imported_for_a_checkpoint(folder):
    # A module of the folder must not take the place of an installed one.
    (folder / "lightning.py").write_text("raise SystemExit('the wrong one')")
    assert vae(*FIT) == (0, "")
    code, message = vae("sample", *CKPT)
    assert code == 1
    assert "'my_networks.MyEncoder'" in message
    assert "add --import MODULE" in message
    assert vae("sample", "--import", "my_networks", *CKPT, "--n=4") == (0, "")
    assert len(list((folder / "runs" / "vae" / "version_0" / "sample").glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_networks.py", "give the name of a module, such as my_models for my_models.py"),
        ("none_such", "it cannot be imported (ModuleNotFoundError: No module named 'none_such')"),
        ("broken", "it cannot be imported (ZeroDivisionError: division by zero)"),
    ],
)
def test_what_cannot_be_imported_is_named(folder, monkeypatch, capsys, name, message):
    (folder / "broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(SystemExit, match="2"):
        main(["sample", f"--import={name}", *CKPT])
    assert f"vae: error: --import {name}: {message}" in capsys.readouterr().err


def test_methods_that_a_class_lacks_are_named(folder, monkeypatch, capsys):
    monkeypatch.syspath_prepend(folder)
    Path("unfinished.py").write_text(
        "from vae_lightning.distributions.priors import Prior\n"
        "class Half(Prior):\n"
        "    def sample(self, n, condition=None, generator=None): ...\n"
    )
    with pytest.raises(SystemExit, match="1"):
        main(["fit", "--model=VAE", "--model.prior=unfinished.Half"])
    assert "Half does not define log_prob, see its base class" in capsys.readouterr().err
