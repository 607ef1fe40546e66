"""Two-layer IWAE (Burda et al., 2016), https://arxiv.org/abs/1509.00519."""

from vae_lightning.models.hierarchical_vae import HierarchicalVAE
from vae_lightning.models.iwae import IWAE


class HierarchicalIWAE(IWAE, HierarchicalVAE):
    r"""Two-layer VAE trained on the importance-weighted bound: `IWAE` of a `HierarchicalVAE`.

    .. math:: -\log \frac{1}{K} \sum_k
        \frac{p(x|z_{1k}) \, p(z_{1k}|z_{2k}) \, p(z_{2k})}{q(z_{1k}|x) \, q(z_{2k}|z_{1k})}

    Use it for likelihoods. Any other model with a density is combined with the bound in the same
    way: ``class LadderIWAE(IWAE, LadderVAE): pass``. Options that weight the terms of its
    ELBO, such as ``free_bits``, have no effect then.

    Args:
        **kwargs: See `IWAE` and `HierarchicalVAE`.

    References:
        Burda et al. (2016), Importance weighted autoencoders, https://arxiv.org/abs/1509.00519

    Example:
        >>> HierarchicalIWAE(num_samples=5, latent_dim=8, top_dim=4).sample(3).shape
        torch.Size([3, 1, 28, 28])
    """
