"""What a model can do. Metrics and figures ask for capabilities, never for a class."""

from enum import StrEnum


class Capability(StrEnum):
    """A property of a model; its value completes the sentence "this model has no ..."."""

    DENSITY = "density of images: its likelihood cannot be estimated"
    SAMPLES = "prior to draw samples from"
    LATENT_VECTOR = "latent vector"
    CONTINUOUS_LATENT = "continuous latent vector"
    TRAVERSABLE = "latent variables that could be moved one at a time"
    POSTERIOR_DENSITY = "posterior that can evaluate its density at any latent"
    KL_PER_DIMENSION = "closed-form KL divergence of each latent dimension"
    CODEBOOK = "codebook"
    CODE_PRIOR = "learned prior over codes"
    CONDITIONAL = "class condition"
    CLASSIFIER = "classifier of images"


class MissingCapabilityError(RuntimeError):
    """A model was asked for something that it does not have.

    Args:
        model: Name of the model's class.
        capability: What it lacks.
        hint: What to do instead, as a clause.
    """

    def __init__(self, model: str, capability: Capability, hint: str = "") -> None:
        super().__init__(f"this {model} has no {capability}{hint and f'; {hint}'}")
        self.capability = capability
