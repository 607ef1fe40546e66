"""Which score finds which anomaly: areas under the ROC curve on synthetic anomalies.

``python tests/benchmarks/anomalies.py CKPT --n 1000`` scores test images of a run, and the same
images with a defect, and prints how well each score tells them apart: 1 is always, 0.5 is chance,
and below 0.5 the defects look more normal than the images.
"""

import argparse
import warnings

import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from vae_lightning import explore
from vae_lightning.cli.explore import items
from vae_lightning.cli.explore.options import Trained


def patch(x, made):
    """A square of a fifth of the side, inverted, somewhere in the middle."""
    side = max(2, x.shape[-1] // 5)
    y = x.clone()
    corners = torch.randint(
        x.shape[-1] // 4, 3 * x.shape[-1] // 4 - side, (len(x), 2), generator=made
    )
    for image, (top, left) in zip(y, corners.tolist(), strict=True):
        square = image[:, top : top + side, left : left + side]
        square.copy_(1 - square)
    return y


def noise(x, made):
    """Gaussian noise of standard deviation 0.2."""
    return (x + 0.2 * torch.randn(x.shape, generator=made)).clamp(0, 1)


def blur(x, made):
    """A mean over 5x5 pixels: smooth images."""
    return functional.avg_pool2d(x, 5, stride=1, padding=2)


def flipped(x, made):
    """Upside down."""
    return x.flip(2)


def dark(x, made):
    """Half the brightness."""
    return x / 2


KINDS = (patch, noise, blur, flipped, dark)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--root")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    trained = Trained.load(
        argparse.Namespace(model=None, device="cpu", ckpt_path=options.checkpoint)
    )
    data = items.RunData("test", trained, options.root)
    part = data.read(data.some(options.n))
    label = items.labels_of(part, None, trained)

    def scores(x):
        found = explore.score(trained.model, x, label, num_samples=options.k)
        if "negative_log_likelihood" in found:
            log_prob = found["negative_log_likelihood"]
            found["complexity_corrected"] = log_prob - explore.complexity(x)
        return found

    normal = scores(part.x)
    print(f"{'':<24}" + "".join(f"{kind.__name__:>10}" for kind in KINDS))
    rows = {name: [] for name in normal}
    for kind in KINDS:
        changed = scores(kind(part.x, torch.Generator().manual_seed(0)))
        for name, values in normal.items():
            truth = [0] * len(values) + [1] * len(values)
            rows[name].append(roc_auc_score(truth, torch.cat([values, changed[name]]).numpy()))
    for name, areas in rows.items():
        print(f"{name:<24}" + "".join(f"{area:10.2f}" for area in areas))


if __name__ == "__main__":
    main()
