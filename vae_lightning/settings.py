"""Settings of models and data modules: the arguments they were built with, as plain data.

A checkpoint holds these settings instead of pickled objects, so that a model can be built again
from nothing but strings and numbers.
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any, Self


class Configurable:
    """Record the arguments of the constructor, so that an equal object can be built later.

    Inherit from it and pass only plain data, classes, or ``functools.partial(class, name=value)``.

    Example:
        >>> class Square(Configurable):
        ...     def __init__(self, size: int, color: str = "red") -> None: ...
        >>> Square(3).settings
        {'size': 3, 'color': 'red'}
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # `inspect` would show the signature of __new__ below.
        signature = inspect.signature(cls.__init__)
        parameters = list(signature.parameters.values())[1:]
        cls.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=parameters, return_annotation=inspect.Signature.empty
        )

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Record the arguments."""
        self = super().__new__(cls)
        self.__dict__["_arguments"] = args, kwargs
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments by name, as plain data, including defaults of the class itself.

        Raises:
            TypeError: If an argument cannot be written as plain data.
        """
        args, kwargs = self.__dict__["_arguments"]
        signature = inspect.signature(type(self))
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                arguments |= value
            else:
                arguments[name] = value
        return {name: to_plain_data(value) for name, value in arguments.items()}

    def record_argument(self, name: str, value: Any) -> None:
        """Record another value of an argument, such as what a file holds instead of its path."""
        args, kwargs = self.__dict__["_arguments"]
        signature = inspect.signature(type(self))
        bound = signature.bind(*args, **kwargs)
        if name in signature.parameters:
            bound.arguments[name] = value
        else:  # an argument that a subclass hands on
            kinds = {parameter.kind: key for key, parameter in signature.parameters.items()}
            bound.arguments[kinds[inspect.Parameter.VAR_KEYWORD]][name] = value
        self.__dict__["_arguments"] = bound.args, bound.kwargs

    def describe(self) -> dict[str, Any]:
        """Return the class and its settings: ``{"class_path": ..., "init_args": ...}``."""
        return {"class_path": class_path(type(self)), "init_args": self.settings}


def class_path(cls: type) -> str:
    """Return the import path of a class.

    Example:
        >>> class_path(Configurable)
        'vae_lightning.settings.Configurable'
    """
    return f"{cls.__module__}.{cls.__qualname__}"


def to_plain_data(value: Any) -> Any:
    """Convert an argument to data that a checkpoint or a YAML file can hold.

    A class, or a ``functools.partial`` of one, becomes ``{"class_path": ..., "init_args": ...}``,
    the form in which the command line reads it back.

    Raises:
        TypeError: For anything else that is not plain data, such as a lambda.

    Example:
        >>> to_plain_data((1, 28, 28))
        [1, 28, 28]
    """
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)  # plain, also for subclasses such as numpy's float64
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [to_plain_data(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_plain_data(item) for key, item in value.items()}
    if cls := class_of(value):
        plain: dict[str, Any] = {"class_path": class_path(cls)}
        if isinstance(value, functools.partial):
            plain["init_args"] = to_plain_data(value.keywords)
        return plain
    raise TypeError(
        "a setting must be plain data, a class, or functools.partial(class, name=value), so that a "
        f"checkpoint can hold it without pickled code; got {value!r}"
    )


def class_of(value: Any) -> type | None:
    """Return the class that an argument is, or is a ``functools.partial`` of, else None.

    Example:
        >>> class_of(functools.partial(Configurable, size=3)) is Configurable
        True
    """
    if isinstance(value, functools.partial):
        # jsonargparse puts functions of its own before the class.
        *_, value = value.func, *value.args
    return value if isinstance(value, type) else None
