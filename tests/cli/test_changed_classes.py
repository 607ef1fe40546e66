"""An option that names another class gets that class's own defaults, whatever was there before."""

import functools
import inspect

import pytest
import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from vae_lightning.cli.allowed_classes import imports_restricted, subclasses
from vae_lightning.cli.command_line import CommandLine
from vae_lightning.data import ImageData
from vae_lightning.distributions.likelihoods import Likelihood
from vae_lightning.distributions.posteriors import Posterior
from vae_lightning.distributions.priors import Prior
from vae_lightning.models.base import BaseVAE
from vae_lightning.models.loading import find_imported
from vae_lightning.nets import Decoder, Encoder
from vae_lightning.nets.quantizers import VectorQuantizer
from vae_lightning.schedules import Schedule


@pytest.fixture(scope="module")
def parse(parse_only):
    """Parses options of ``vae fit`` with a parser that is built once."""
    command_line = CommandLine.read(["fit"])
    with imports_restricted(command_line.named_classes):
        parser = parse_only(command_line).parser
        yield functools.cache(lambda *options: parser.parse_args(["fit", *options]).fit)


def project_classes(base):
    """The concrete classes of this project below a base, by their paths."""
    return sorted(
        {
            f"{cls.__module__}.{cls.__qualname__}"
            for cls in subclasses(base)
            if not inspect.isabstract(cls) and cls.__module__.startswith("vae_lightning.")
        }
    )


OPTIMIZERS = [f"torch.optim.{name}" for name in ("Adam", "AdamW", "SGD", "RMSprop", "Adamax")]
SCHEDULERS = [
    *(f"torch.optim.lr_scheduler.{n}" for n in ("StepLR", "ExponentialLR", "CosineAnnealingLR")),
    "lightning.pytorch.cli.ReduceLROnPlateau",
]
CALLBACKS = [
    f"lightning.pytorch.callbacks.{name}"
    for name in ("EarlyStopping", "LearningRateMonitor", "ModelCheckpoint")
]
LOGGERS = [f"lightning.pytorch.loggers.{c.__name__}" for c in (CSVLogger, TensorBoardLogger)]
LOGGERS += [f"lightning.pytorch.loggers.{WandbLogger.__name__}"]
CHOICES = {
    "model": project_classes(BaseVAE),
    "data": project_classes(ImageData),
    "model.encoder": project_classes(Encoder),
    "model.decoder": project_classes(Decoder),
    "model.prior": project_classes(Prior),
    "model.posterior": project_classes(Posterior),
    "model.likelihood": project_classes(Likelihood),
    "model.schedule": project_classes(Schedule),
    "model.quantizer": project_classes(VectorQuantizer),
    "optimizer": OPTIMIZERS,
    "critic_optimizer": OPTIMIZERS,
    "lr_scheduler": SCHEDULERS,
    "trainer.callbacks": CALLBACKS,
    "trainer.logger": LOGGERS,
}
OWNERS = {"model.schedule": ["--model=BetaVAE"], "model.quantizer": ["--model=VQVAE"]}
DEFAULTS = {
    "model": "vae_lightning.models.vae.VAE",
    "data": "vae_lightning.data.digits.Digits",
    "model.encoder": "vae_lightning.nets.conv.ConvEncoder",
    "model.decoder": "vae_lightning.nets.conv.ConvDecoder",
    "model.prior": "vae_lightning.distributions.priors.StandardNormal",
    "model.posterior": "vae_lightning.distributions.posteriors.GaussianPosterior",
    "model.likelihood": "vae_lightning.distributions.likelihoods.Bernoulli",
    "model.schedule": "vae_lightning.schedules.Constant",
    **{option: CHOICES[option][0] for option in list(CHOICES)[-6:]},
}
PAIRS = [
    pair
    for option, classes in CHOICES.items()
    for other in classes
    if other != DEFAULTS[option]
    for pair in ((option, DEFAULTS[option], other), (option, other, DEFAULTS[option]))
]
REQUIRED = {"int": "3", "float": "0.5", "str": "val/loss"}


def required(option, class_path):
    """Options for the arguments that a class needs and that nothing else passes to it."""
    passed = {"params", "optimizer", "self", "save_dir"}
    passed |= {"image_shape", "features", "out_features", "in_features", "cond_features"}
    passed |= {"embedding_dim", "latent_dim"}
    options = []
    for name, parameter in inspect.signature(find_imported(class_path)).parameters.items():
        is_given = parameter.default is not parameter.empty or name in passed
        if not is_given and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            kind = getattr(parameter.annotation, "__name__", str(parameter.annotation))
            options.append(f"--{option}.{name}={REQUIRED.get(kind, 'photos')}")
    if option == "trainer.logger" and not class_path.endswith("WandbLogger"):
        options.append("--trainer.logger.save_dir=.")
    return options


def chosen(config, option):
    """The part of a configuration at an option, as plain data."""
    *parents, name = option.split(".")
    for parent in parents:
        config = config[parent]
        config = config.get("init_args", config)
    value = config[name]
    value = value[-1] if isinstance(value, list) else value
    return value.as_dict() if isinstance(value, Namespace) else value


def test_everything_that_can_be_chosen_is_here():
    """Each has several classes to choose from, except for those with only one so far."""
    assert {option for option, classes in CHOICES.items() if len(classes) < 2} <= {
        "model.quantizer"
    }
    assert all(DEFAULTS[option] in classes for option, classes in CHOICES.items())
    assert issubclass(find_imported(CALLBACKS[-1]), Checkpoint)


@pytest.mark.slow_except(
    *("BetaVAE", "VQVAE", "VampPrior", "MLPEncoder", "LinearWarmup", "Gaussian"),
    *("AdamW", "StepLR", "EarlyStopping", "WandbLogger"),
)
@pytest.mark.parametrize(
    ("option", "before", "after"),
    PAIRS,
    ids=[f"{o}-{a.rpartition('.')[2]}-{b.rpartition('.')[2]}" for o, a, b in PAIRS],
)
def test_defaults_are_those_of_the_class(option, before, after, parse):
    owner = OWNERS.get(option, [])
    first = [f"--{option}={before}", *required(option, before)]
    second = [f"--{option}={after}", *required(option, after)]
    changed = chosen(parse(*owner, *first, *second), option)
    # Without the class before, so that nothing of it can be left but what was typed.
    expected = chosen(parse(*owner, *second), option)
    arguments = changed.get("init_args", {})
    for argument in [] if option.startswith("trainer.") else first[1:]:  # lists begin anew
        name = argument.partition("=")[0].rpartition(".")[2]
        if name in arguments and not any(f".{name}=" in other for other in second[1:]):
            expected["init_args"][name] = yaml.safe_load(argument.partition("=")[2])
    assert changed == expected
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(find_imported(after)).parameters.items()
        if isinstance(parameter.default, int | float | str) and name in arguments
    }
    given = {argument.partition("=")[0].rpartition(".")[2] for argument in [*first, *second]}
    for name, default in defaults.items():
        assert name in given or arguments[name] == default, name


def test_what_was_given_stays_where_the_new_class_has_it(parse):
    config = parse("--optimizer.lr=0.5", "--optimizer.weight_decay=0.25", "--optimizer=AdamW")
    assert config.optimizer.class_path == "torch.optim.AdamW"
    assert (config.optimizer.init_args.lr, config.optimizer.init_args.weight_decay) == (0.5, 0.25)
    config = parse("--model.latent_dim=7", "--model=BetaVAE")
    assert (config.model.init_args.latent_dim, config.model.init_args.beta) == (7, 4.0)


def test_the_default_configuration_gives_way(parse):
    """Not only what was typed before."""
    assert parse("--optimizer=AdamW").optimizer.init_args.weight_decay == 0.01
    assert parse().model.init_args.num_samples == 1
    assert parse("--model=IWAE").model.init_args.num_samples == 5
