"""What a data module says about its images: shape, classes, values, splits, names."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from torch.utils.data import Dataset

from vae_lightning.batch import Batch
from vae_lightning.data.datasets import Joined
from vae_lightning.data_record import DataRecord
from vae_lightning.images.folder_listing import Split
from vae_lightning.images.reading import printable
from vae_lightning.nets import ImageShape
from vae_lightning.settings import Configurable

PredictSplit = Literal["train", "val", "test", "all"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")


class ImageSource(Configurable, ABC):
    """Images with training, validation and test splits, and what is known of them.

    Attributes:
        default_config: Name of the configuration under the command line for these data.
        is_users: Whether ``root`` names files of the user, of which ``vae predict`` takes all.
        class_names: Names of the classes, None where they are numbers.
        left_out_noun: What an entry of ``left_out`` is called.
        left_out: Files that are not used, with the reasons.
        remarks: What else a user may not expect of the data.
        datasets: The splits that are loaded.
        train_on_val: Whether the validation images are trained on, too.
        num_labels: Number of training images whose labels are shown, None for all.
    """

    default_config: ClassVar[str] = "digits"
    is_users: ClassVar[bool] = False
    class_names: Sequence[str] | None = None
    left_out_noun: ClassVar[str] = "file"
    left_out: Sequence[tuple[str, str]] = ()
    remarks: Sequence[str] = ()
    datasets: dict[PredictSplit, Dataset[Batch]]
    train_on_val: bool
    num_labels: int | None

    @property
    @abstractmethod
    def image_shape(self) -> ImageShape:
        """Shape of an image, (C, H, W)."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes, 0 without labels."""

    @property
    def bounded(self) -> bool:
        """Whether the model sees values in [0, 1] only."""
        return True

    @property
    @abstractmethod
    def is_binary(self) -> bool:
        """Whether all values that the model sees are 0 or 1."""

    @property
    def record(self) -> DataRecord:
        """What a checkpoint keeps of the data."""
        return self.record_of_8_bits()

    def record_of_8_bits(self) -> DataRecord:
        """Return the record of images of 8 bits, whose values count as 0 to 1."""
        names = self.class_names or range(self.num_classes)
        return DataRecord(
            self.image_shape,
            binary=self.is_binary,
            channels={1: ("gray",), 3: ("red", "green", "blue")}.get(self.image_shape[0], ()),
            class_names=tuple(map(str, names)),
            class_counts=self.class_counts(),
        )

    def class_counts(self) -> tuple[int, ...]:
        """Return the number of training images of each class, () where it is not known yet."""
        dataset = self.datasets.get("train")
        y = getattr(getattr(dataset, "images", dataset), "y", None)
        if not self.num_classes or y is None:
            return ()
        return tuple(y[y >= 0].bincount(minlength=self.num_classes).tolist())

    def use_record(self, record: DataRecord) -> None:
        """Treat the data as those that a model was trained on.

        Args:
            record: What the checkpoint of the model keeps of its data.
        """

    @abstractmethod
    def split_size(self, split: Split) -> int:
        """Return the number of images of a split, without loading them."""

    @property
    def num_train(self) -> int:
        """Number of images that a model is trained on."""
        return self.split_size("train") + (self.split_size("val") if self.train_on_val else 0)

    @property
    def num_labeled(self) -> int:
        """Number of training images whose labels a model sees."""
        if self.num_labels is not None:
            return self.num_labels
        return self.num_train if self.num_classes else 0

    def summary(self) -> str:
        """Return a sentence about what was found, such as ``40 images, 32x32 RGB``."""
        sizes = {split: self.split_size(split) for split in SPLITS}
        shares = ", ".join(f"{size:,} {split}" for split, size in sizes.items())
        text = f"{sum(sizes.values()):,} {self.noun}s ({shares}), {self.shape_text}"
        if self.num_classes:
            names = [printable(str(name)) for name in self.class_names or range(self.num_classes)]
            of_what = ""
            if counts := self.class_counts():
                of_what = f" training {self.noun}s"
                names = [f"{name}: {count:,}" for name, count in zip(names, counts, strict=True)]
            shown = [*names[:5], "..."] if len(names) > 6 else names
            classes = "class" if len(names) == 1 else "classes"
            text += f", in {len(names)} {classes} ({', '.join(shown)}{of_what})"
        if self.num_labels is not None:
            text += f", {self.num_labels:,} training {self.noun}s with a label"
        return "; ".join(filter(None, [text, self.record.describe(), *self.remarks]))

    @property
    def noun(self) -> str:
        """What an item is called."""
        return "image" if self.image_shape[1] > 1 else "signal"

    @property
    def shape_text(self) -> str:
        """Shape of an item in words, such as ``32x32 RGB``."""
        channels, height, width = self.image_shape
        color = {1: "gray", 3: "RGB"}.get(channels, f"with {channels} channels")
        if height > 1:
            return f"{height}x{width} {color}"
        return f"{width:,} values" + (f" in {channels} channels" if channels > 1 else "")

    def item_name(self, split: PredictSplit, position: int) -> str:
        """Return the name of an image: its split and its position there, or its file."""
        return f"{split}/{position}"

    @abstractmethod
    def load(self, split: Split) -> Dataset[Batch]:
        """Return the images of a split, a data set whose ``__getitems__`` returns batches.

        They hold uint8 images in [0, 255], or floats as the model sees them.
        """

    def load_all(self) -> Dataset[Batch]:
        """Return the images of all splits, by default those to train on first."""
        return Joined(Joined(self.load("train"), self.load("val")), self.load("test"))
