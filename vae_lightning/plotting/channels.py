"""Images of any number of channels in the three colors of a screen."""

import torch
from torch import Tensor

PALETTES = {
    2: ("magenta", "green"),
    4: ("cyan", "yellow", "magenta", "red"),
    5: ("cyan", "yellow", "magenta", "red", "green"),
    6: ("cyan", "yellow", "magenta", "red", "green", "blue"),
}
"""The colors of channels, by their number: those that napari gives to layers of microscope images.

Magenta and green add up to gray and can be told apart by people with any color vision.
See https://napari.org.
"""

_RGB = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "cyan": (0, 1, 1),
    "magenta": (1, 0, 1),
    "yellow": (1, 1, 0),
}
_POSITIONS = (5 / 6, 1 / 2, 1 / 6)
"""Where red, green and blue are in a spectrum of increasing wavelength.

From 400 to 700 nm, these are 650, 550 and 450 nm.
"""


def to_rgb(images: Tensor) -> Tensor:
    """Convert images in [0, 1] to red, green and blue.

    One channel is gray and three are RGB. Two and four to six channels, as of fluorescence
    microscopes, are added up in the colors of `PALETTES` and clipped. Of more, as of hyperspectral
    cameras, three are shown: those at 5/6, 1/2 and 1/6 of the range are red, green and blue, which
    are roughly the natural colors if the channels are visible light of increasing wavelength.

    Args:
        images: Images in [0, 1], (..., C, H, W).

    Returns:
        The images, (..., 3, H, W), NaN where a channel that is shown is NaN.

    Example:
        >>> both = torch.tensor([1.0, 1.0]).view(2, 1, 1)
        >>> to_rgb(both).flatten().tolist()
        [1.0, 1.0, 1.0]
    """
    channels = images.shape[-3]
    if channels in (1, 3):
        return images.expand(*images.shape[:-3], 3, *images.shape[-2:])
    if channels in PALETTES:
        colors = images.new_tensor([_RGB[name] for name in PALETTES[channels]])
        return torch.einsum("...chw,cr->...rhw", images, colors).clamp(0, 1)
    shown = [round(position * (channels - 1)) for position in _POSITIONS]
    return images[..., shown, :, :]
