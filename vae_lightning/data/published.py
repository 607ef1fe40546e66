"""Published files of a data set: where they are, and where they come from."""

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torchvision.datasets.utils import check_integrity

from vae_lightning.errors import UserError, listed


class Published(NamedTuple):
    """Published files of a data set.

    Attributes:
        root: Folder of data sets.
        inside: Folder of the files, relative to ``root``.
        md5: MD5 of each file by its path relative to ``root / inside``. It is None for folders, for
            patterns such as ``*.mat``, and for files that were published without one.
        url: Where the files can be downloaded by hand.
    """

    root: Path
    inside: str
    md5: Mapping[str, str | None]
    url: str

    @classmethod
    def find(
        cls, root: Path, folders: Sequence[str], md5: Mapping[str, str | None], url: str
    ) -> "Published":
        """Return the files in the first of several folders that has all, else in the first."""
        found = [cls(root, inside, md5, url) for inside in folders]
        return next((files for files in found if not files.missing), found[0])

    @property
    def folder(self) -> Path:
        """Folder of the files."""
        return self.root / self.inside

    @property
    def missing(self) -> list[str]:
        """Files that do not exist."""
        return [name for name in self.md5 if not any(self.folder.glob(name))]

    def download(self, get: Callable[[Path], Path]) -> None:
        """Download the files that are missing. Nothing is overwritten.

        Args:
            get: Function that downloads all files to an empty folder, and returns the folder in it
                that then has the paths of ``md5``.

        Raises:
            UserError: If they cannot be downloaded. Nothing is left behind.
        """
        if not self.missing:
            return
        # On the same disk, so that no partial file is ever seen, and not in a system folder, which
        # may be too small.
        parent = next(path for path in (self.folder, *self.folder.parents) if path.is_dir())
        try:
            with tempfile.TemporaryDirectory(dir=parent, prefix=".download-") as temporary:
                downloaded = get(Path(temporary))
                found = {name: list(downloaded.glob(name)) for name in self.missing}
                absent = [name for name, paths in found.items() if not paths]
                if absent:
                    raise FileNotFoundError(f"{listed(absent, most=3)} is not in the download")
                self.folder.mkdir(parents=True, exist_ok=True)
                for path in itertools.chain(*found.values()):
                    path.rename(self.folder / path.relative_to(downloaded))
        except Exception as error:  # downloaders raise errors of any kind
            raise UserError(
                f"{self.folder} lacks {listed(self.missing, most=3)}, and the download failed "
                f"({_first_line(error)}): {self._advice}"
            ) from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Convert errors while the files are read.

        Raises:
            UserError: If the block raises any error but `UserError`. It names the file that is
                missing or damaged, as far as that can be told.
        """
        if self.missing:
            raise UserError(f"{self.folder} lacks {listed(self.missing, most=3)}: {self._advice}")
        try:
            yield
        except (UserError, MemoryError):
            raise
        except Exception as error:  # readers raise errors of any kind for damaged files
            damaged = [
                name for name, md5 in self.md5.items() if md5 and not self._is_intact(name, md5)
            ]
            names = damaged or list(self.md5)
            verb = "is damaged" if len(names) == 1 else "are damaged"
            raise UserError(
                f"{listed(names, most=3)} in {self.folder} {verb} ({_first_line(error)}): remove "
                f"and download again from {self.url}"
            ) from error

    def _is_intact(self, name: str, md5: str) -> bool:
        try:
            return check_integrity(self.folder / name, md5)
        except OSError:
            return False

    @property
    def _advice(self) -> str:
        return (
            f"get the files from {self.url} and put them there, or set --data.root or "
            f"VAE_DATA_ROOT to the folder that contains {self.inside}"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":. ")
