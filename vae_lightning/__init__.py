"""Train, measure and explore variational autoencoders with PyTorch Lightning.

The public names are imported on first use, so that ``import vae_lightning`` (and with it
``vae --help``) does not have to wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "VAE": "vae_lightning.models.vae",
    "BetaVAE": "vae_lightning.models.beta_vae",
    "CVAE": "vae_lightning.models.cvae",
    "IWAE": "vae_lightning.models.iwae",
    "VQVAE": "vae_lightning.models.vq_vae",
    "MNIST": "vae_lightning.data.mnist",
    "FashionMNIST": "vae_lightning.data.mnist",
    "KMNIST": "vae_lightning.data.mnist",
    "StaticMNIST": "vae_lightning.data.static_mnist",
    "Digits": "vae_lightning.data.digits",
    "ImageFolder": "vae_lightning.data.image_folder",
    "load": "vae_lightning.checkpoint",
}

__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from vae_lightning.checkpoint import load as load
    from vae_lightning.data.digits import Digits as Digits
    from vae_lightning.data.image_folder import ImageFolder as ImageFolder
    from vae_lightning.data.mnist import KMNIST as KMNIST
    from vae_lightning.data.mnist import MNIST as MNIST
    from vae_lightning.data.mnist import FashionMNIST as FashionMNIST
    from vae_lightning.data.static_mnist import StaticMNIST as StaticMNIST
    from vae_lightning.models.beta_vae import BetaVAE as BetaVAE
    from vae_lightning.models.cvae import CVAE as CVAE
    from vae_lightning.models.iwae import IWAE as IWAE
    from vae_lightning.models.vae import VAE as VAE
    from vae_lightning.models.vq_vae import VQVAE as VQVAE


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
