"""What a training shows while it runs, in a file and on a terminal."""

import os
import pty
import re
import struct
import sys
import termios
from fcntl import ioctl

import pytest

from vae_lightning.__main__ import main
from vae_lightning.cli import progress

# 90 images in 9 batches, of which a call of `training_step` takes several.
TINY = [
    *("fit", "--data.train_size=110", "--data.val_size=20", "--data.test_size=10"),
    *("--data.batch_size=10", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"),
    *("--trainer.log_every_n_steps=1", "--model.encoder=MLPEncoder", "--model.decoder=MLPDecoder"),
    *(f"--figures.{n}=null" for n in ("samples", "reconstructions", "latents", "traversals")),
]
LOSSES = r"train/loss \d+\.\d{4}, val/loss \d+\.\d{4}"


def test_a_line_per_epoch(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(TINY)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    best = r"(, the best so far|, best \d+\.\d{4} \(epoch 1\))"
    assert len(lines) == 2
    assert re.fullmatch(rf"epoch 1/2: {LOSSES}{best}, [\d,]+ images/s, \d:\d\d:\d\d left", lines[0])
    assert re.fullmatch(rf"epoch 2/2: {LOSSES}{best}, [\d,]+ images/s", lines[1])


def test_lines_inside_an_epoch_count_batches(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "_SECONDS_PER_LINE", 0)
    main([*TINY, "--training.steps_per_call=4"])
    lines = re.findall(r"^epoch 1/2, batch (\d+) of (\d+): ", capsys.readouterr().out, re.MULTILINE)
    assert lines == [("4", "9"), ("8", "9"), ("9", "9")]


def test_a_resumed_training_knows_what_was_best(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main([*TINY, "--optimizer.lr=1e-2"])
    best = re.findall(r"val/loss (\d+\.\d{4})", capsys.readouterr().out)
    last = "runs/vae/version_0/checkpoints/last.ckpt"
    worse = ["--optimizer.lr=10", "--trainer.max_epochs=3"]  # after which nothing is better
    main(["fit", "--ckpt_path", last, *worse, "--training.skip_non_finite=true"])
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("epoch 3/3"))
    assert f"best {min(best, key=float)}" in line


@pytest.mark.slow
def test_a_terminal_shows_a_bar_of_batches_at_once(tmp_path):
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
        os.execv(sys.executable, [sys.executable, "-m", "vae_lightning", *TINY])
    shown = b""
    try:
        while block := os.read(terminal, 4096):
            shown += block
    except OSError:  # its end
        pass
    assert os.waitpid(pid, 0)[1] == 0
    text = shown.decode()
    assert text.startswith("loading torch and Lightning ...")
    bars = [part for part in re.split(r"[\r\n]", text) if part.startswith("Epoch 2/2")]
    assert re.search(
        r"9/9 batches, train/loss \d+\.\d\d, val/loss \d+\.\d\d, .* images/s", bars[-1]
    )
