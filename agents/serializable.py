"""Frozen dataclasses whose fields hold what their annotations say, and that become JSON and back."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import numpy as np

from trebi_gym.errors import ConfigError

T = TypeVar("T")


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def choice(name: str, value: Any, choices: Any) -> None:
    """Raise ConfigError unless the value is one of the choices."""
    require(value in choices, f"{name} must be one of {', '.join(map(str, choices))}; got {value!r}")


def typed(value: Any, hint: Any, where: str) -> Any:
    """Return the value as its annotation wants it; raise ConfigError where it is of another type, or not finite."""
    hint, optional = _without_none(hint)
    if optional and value is None:
        return None
    if typing.get_origin(hint) is Literal:
        return value  # the dataclass itself checks its choices
    types_of: dict[Any, tuple[type, ...]] = {float: (float, int), int: (int,), str: (str,), bool: (bool,)}
    expected = types_of.get(hint, (Mapping,))
    if not isinstance(value, expected) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} must be of type {getattr(hint, '__name__', 'object')}; got {value!r}")
    if hint is float and isinstance(value, (float, int)):
        require(math.isfinite(value), f"{where} must be finite; got {value}")
        return float(value)
    return value


def _without_none(hint: Any) -> tuple[Any, bool]:
    """Return the annotation that ``X | None`` is made of, and whether None is allowed."""
    if typing.get_origin(hint) is not types.UnionType:
        return hint, False
    return next(option for option in typing.get_args(hint) if option is not type(None)), True


def check_types(config: Any) -> None:
    """Raise unless every field holds what its annotation says; NumPy's whole numbers become Python's."""
    hints = typing.get_type_hints(type(config))
    for item in dataclasses.fields(config):
        value, (hint, optional) = getattr(config, item.name), _without_none(hints[item.name])
        if optional and value is None:
            continue
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            require(isinstance(value, hint), f"{item.name} must be a {hint.__name__}; got {value!r}")
            continue
        if isinstance(value, np.integer):
            value = int(value)
        object.__setattr__(config, item.name, typed(value, hint, item.name))


def plain(value: Any) -> Any:
    """Return dataclasses and mappings as plain JSON data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def build(cls: type[T], data: Any, where: str) -> T:
    """Make a dataclass from plain data; raise ConfigError for what is unknown, of a wrong type, or cannot work."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} must be an object with named fields; got {data!r}")
    known(cls, data, where)
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, value in data.items():
        hint, optional = _without_none(hints[name])
        if optional and value is None:
            values[name] = None
        elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
            values[name] = build(hint, value, f"{where}.{name}")
        else:
            values[name] = typed(value, hint, f"{where}.{name}")
    return cls(**values)


def known(cls: type, data: Mapping[str, Any], where: str = "config") -> None:
    """Raise ConfigError where the data name a field that the dataclass lacks."""
    names = {item.name for item in dataclasses.fields(cls)}
    unknown = sorted(set(data) - names)
    if unknown:
        raise ConfigError(f"{where} has no field {', '.join(unknown)}; it has {', '.join(sorted(names))}")
