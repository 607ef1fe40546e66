"""The examples in the docstrings run and give what they say."""

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest
import torch

import vae_lightning
from vae_lightning import plotting

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(vae_lightning.__path__, "vae_lightning.")
    if not module.name.endswith("__main__")
)


def load(name: str):
    """Import a module, or skip the test if it needs a package that is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "vae_lightning":
            raise
        pytest.skip(f"{name} needs {error.name}")


def examples(module) -> Iterator[doctest.DocTest]:
    """Yield the examples of a module, also of functions that are wrapped by a decorator."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    globs = {"torch": torch, **vars(module)}
    if module.__doc__:
        yield from finder.find(module.__doc__, module.__name__, module, globs)
    for name, item in list(vars(module).items()):
        own = getattr(item, "__module__", None) == module.__name__
        if own and (inspect.isclass(item) or inspect.isroutine(item)):
            yield from finder.find(item, f"{module.__name__}.{name}", False, globs)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for example in examples(load(name)):
        runner.run(example, out=report.append)
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("vae_lightning.functional", "softplus"),
        ("vae_lightning.plotting.images", "image_grid"),  # wrapped by a decorator
        ("vae_lightning.nets.quantizers.codebook", "kmeans"),
        ("vae_lightning.settings", "Configurable"),
    ],
)
def test_examples_are_found(name, function):
    """Otherwise the test above would pass without running any."""
    found = {test.name: len(test.examples) for test in examples(importlib.import_module(name))}
    assert found[f"{name}.{function}"] > 0


def test_a_wrong_example_fails():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    runner = doctest.DocTestRunner()
    runner.run(test, out=lambda text: None)
    assert runner.failures == 1


def functions(name: str) -> list[object]:
    module = importlib.import_module(name)
    return [
        item
        for item in vars(module).values()
        if inspect.isfunction(item)
        and item.__module__ == name
        and not item.__name__.startswith("_")
    ]


PUBLIC = [
    *functions("vae_lightning.functional"),
    *functions("vae_lightning.randomness"),
    *(getattr(plotting, name) for name in plotting.__all__),
]


@pytest.mark.parametrize("item", PUBLIC, ids=lambda item: item.__name__)
def test_has_an_example(item):
    assert ">>>" in item.__doc__
