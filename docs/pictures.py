"""Make the pictures of the documentation from bundled configurations.

    python docs/pictures.py --runs runs/pictures

trains with ``vae fit`` what is not in the folder of runs yet (an hour on two cores), and writes the
files in docs/pages/pictures. Three pictures come from elsewhere: explorer.png is the page of
``vae explore`` in a browser, samples_side_by_side.png is written by ``vae compare``, and
beta_and_disentanglement.png by tests/benchmarks/disentanglement.py.
"""

import argparse
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES = Path(__file__).parent / "pages" / "pictures"
EVERY_EPOCH = [
    *("--figures.manifold.every_n_epochs", "1"),
    *("--figures.latents.every_n_epochs", "1"),
]
RUNS = {
    "vae_2d": ["--config", "vae_2d"],
    "cvae": ["--config", "cvae"],
    "vq_vae": ["--config", "vq_vae"],
    "training": [
        "--config",
        "vae_2d",
        "--data",
        "Digits",
        "--trainer.max_epochs",
        "12",
        *EVERY_EPOCH,
    ],
    "spectra": ["--data", "Arrays", "--data.root"],
}
LAST = {
    "vae_2d_manifold.png": ("vae_2d", "manifold"),
    "vae_2d_latents.png": ("vae_2d", "latents"),
    "cvae_classes.png": ("cvae", "classes"),
    "vq_vae_code_maps.png": ("vq_vae", "code_maps"),
    "spectra.png": ("spectra", "reconstructions"),
}
"""The last figure of a run, by the name of the picture."""


def make_spectra(folder: Path) -> str:
    """Write an array of 2,000 spectra with a peak and noise, and return its path."""
    rng = np.random.default_rng(0)
    wavelength = np.linspace(400, 700, 200)
    center = rng.choice([450, 550, 620], 2000) + rng.normal(0, 10, 2000)
    width, height = rng.uniform(10, 25, 2000), rng.uniform(500, 2000, 2000)
    peaks = np.exp(-(((wavelength - center[:, None]) / width[:, None]) ** 2))
    spectra = height[:, None] * peaks + 300 + rng.normal(0, 20, (2000, 200))
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "spectra.npy", spectra)
    return str(folder / "spectra.npy")


def train(folder: Path, name: str) -> Path:
    """Train a run unless it is there, and return its folder."""
    run = folder / name / "version_0"
    if not (run / "figures" / "losses.png").exists():
        data = [make_spectra(folder)] if name == "spectra" else []
        command = ["vae", "fit", *RUNS[name], *data, "--output_dir", str(folder), "--name", name]
        subprocess.run(command, check=True)
    return run


def frames(run: Path, figure: str, height: int) -> list[Image.Image]:
    """Return the figures of a run over the epochs, with one height."""
    found = []
    for path in sorted((run / "figures" / figure).glob("*.png")):
        image = Image.open(path).convert("RGB")
        width = round(image.width * height / image.height)
        found.append(image.resize((width, height), Image.Resampling.LANCZOS))
    return found


def animate(run: Path, path: Path, height: int = 350) -> None:
    """Write an animation of the latents and of the decoded plane, side by side.

    The first epochs change most, so fewer and fewer of the later ones are shown.
    """
    pairs = [*zip(frames(run, "latents", height), frames(run, "manifold", height), strict=True)]
    shown = [i for i in (0, 1, 2, 4, 7) if i < len(pairs) - 1] + [len(pairs) - 1]
    joined = []
    for left, right in (pairs[i] for i in shown):
        frame = Image.new("RGB", (left.width + right.width, height), "white")
        frame.paste(left, (0, 0))
        frame.paste(right, (left.width, 0))
        colors = Image.Quantize.MAXCOVERAGE
        joined.append(frame.quantize(64, colors, dither=Image.Dither.NONE))
    durations = [700] * (len(joined) - 1) + [2500]
    joined[0].save(path, save_all=True, append_images=joined[1:], duration=durations, loop=0)


def main() -> None:
    """Train, copy and animate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    runs = parser.parse_args().runs
    for name, (run, figure) in LAST.items():
        *_, last = sorted((train(runs, run) / "figures" / figure).glob("*.png"))
        Image.open(last).save(PICTURES / name, optimize=True)
    animate(train(runs, "training"), PICTURES / "training.gif")


if __name__ == "__main__":
    main()
