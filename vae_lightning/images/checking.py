"""Find the files of a folder that cannot be read, before a training meets them."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from vae_lightning.images.folder_listing import Paths
from vae_lightning.images.reading import Unreadable, printable

_SHOWN = 3
"""Number of files that an error message names."""


def find_unreadable(
    files: Paths,
    frames: Tensor,
    read: Callable[[Path, Sequence[int]], Iterable[Tensor]],
    hidden: bool | None = None,
) -> dict[str, str]:
    """Read all images of a folder, in several threads, and keep none.

    A damaged file is known only by its decoder, so this takes as long as an epoch of a training
    that reads the images from disk.

    Args:
        files: File of each image.
        frames: Numbers of their frames, (N,).
        read: Function that reads frames of a file.
        hidden: Whether to show no progress bar; None for none unless the output is a terminal.

    Returns:
        The files with an image that cannot be read, relative to the folder, with the reasons.
    """
    starts = [*(frames == 0).nonzero()[:, 0].tolist(), len(frames)]
    found: dict[str, str] = {}

    def check(first: int) -> dict[str, str]:
        reasons = {}
        last = min(first + 64, len(starts) - 1)
        for start, end in zip(starts[first:last], starts[first + 1 : last + 1], strict=True):
            try:
                for _ in read(files[start], range(end - start)):
                    pass
            except Unreadable as error:
                name = os.fspath(files[start].relative_to(files.root))
                reasons[name] = error.reason
        return reasons

    with ThreadPoolExecutor() as pool:
        parts = pool.map(check, firsts := range(0, len(starts) - 1, 64))
        for part in tqdm(
            parts, "Checking images", len(firsts), leave=False, delay=3, disable=hidden
        ):
            found |= part
    return found


def name_some(reasons: Mapping[str, str]) -> str:
    """Return a list of the first files and their reasons.

    Example:
        >>> name_some({"a.png": "the file is empty", "b.png": "damaged, or no image"})
        'a.png (the file is empty), b.png (damaged, or no image)'
    """
    shown = [f"{printable(name)} ({reason})" for name, reason in list(reasons.items())[:_SHOWN]]
    return ", ".join([*shown, "..."] if len(reasons) > _SHOWN else shown)
