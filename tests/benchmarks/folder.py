"""How ``vae fit`` trains on a folder of many images, read as they are needed.

    python tests/benchmarks/folder.py --files 2000 20000 200000 --out folder.json

Makes the folder (JPEG files, in sub-folders of 1,000), trains a network that takes little time for
some batches with worker processes, and says how long the start took, how much memory the processes
hold, and how busy the workers were. Needs ``/proc``, that is Linux.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import interpolate

from vae_lightning import ImageFolder

HERE = Path(__file__).parent
FILE_SIZE = 128
"""Pixels of a side of the files."""

OPTIONS = [
    *("--data=ImageFolder", "--data.size=64", "--data.batch_size=64"),
    "--data.memory_limit=0",
    *("--model=VAE", "--model.encoder=MLPEncoder", "--model.decoder=MLPDecoder"),
    *("--model.encoder.hidden=[16]", "--model.decoder.hidden=[16]"),
    *("--trainer.check_val_every_n_epoch=1000", "--trainer.enable_progress_bar=false"),
]


def make(folder: Path, files: int) -> None:
    """Write ``files`` images, copies of 300 different ones."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(300, 3, 8, 8, generator=generator)
    smooth = interpolate(coarse, size=(FILE_SIZE, FILE_SIZE), mode="bicubic").clamp(0, 1)
    encoded = []
    for pixels in (255 * smooth).byte().permute(0, 2, 3, 1).numpy():
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        encoded.append(buffer.getvalue())
    for i in range(files):
        inside = folder / f"{i // 1000:04d}"
        inside.mkdir(parents=True, exist_ok=True)
        (inside / f"image_{i:07d}.jpg").write_bytes(encoded[i % len(encoded)])


def measure(files: int, batches: int, workers: int) -> dict[str, Any]:
    """Train on a folder of ``files`` images in a process of its own.

    Raises:
        SystemExit: If it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), files)
        start = time.perf_counter()
        assert len(ImageFolder(folder).files) == files
        listing = time.perf_counter() - start
        command = [
            sys.executable,
            HERE / "watched.py",
            *OPTIONS,
            "--trainer.callbacks+=clocks.Workers",
        ]
        command += [f"--data.root={folder}", f"--data.num_workers={workers}"]
        # Small folders are gone through several times.
        command += [f"--trainer.max_steps={batches}", "--trainer.max_epochs=-1"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
    if done.returncode:
        raise SystemExit(f"training on {files} files failed:\n{done.stderr}")
    return {"files": files, "listing": listing, **json.loads(done.stdout.splitlines()[-1])}


def line(found: dict[str, Any]) -> str:
    """A line of the table."""
    return (
        f"  {found['files']:>8,} files: listed in {found['listing']:.2f} s, first step after "
        f"{found['first_step']:.2f} s, {found['images_per_second']:6,.0f} images/s, "
        f"workers busy {found['workers_busy']:.0%}, got data in {found['waited_for_data']:.0%} "
        f"of the time; GB: process {found['process_gb']:.3f}, a worker {found['worker_gb']:.3f}, "
        f"of which its own {found['worker_not_shared_gb']:.3f}"
    )


def main() -> None:
    """Metric, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, nargs="+", default=[2_000, 20_000, 200_000])
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    report = []
    for files in args.files:
        report.append(measure(files, args.batches, args.workers))
        print(line(report[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
