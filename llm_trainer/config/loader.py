"""The one strict reader of configuration: YAML, JSON and mappings into dataclasses.

Unknown keys are refused with a suggestion, values are coerced where nothing is lost (`1e-4` as a
string, `8.0` for an integer) and refused otherwise, and all problems of a file come in one
message. Types are taken from the dataclass annotations, so a field is declared in one place only.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from llm_trainer.config.checks import LONGEST, place, refuse, shown
from llm_trainer.exceptions import ConfigurationError, ModelConfigurationError
from llm_trainer.json_file import MAX_JSON_BYTES

T = TypeVar("T")


class _Yaml12Loader(yaml.SafeLoader):
    """SafeLoader with the plain scalars of YAML 1.2, as DVC reads them, and no duplicate keys.

    In YAML 1.1, which PyYAML reads, `1e-4` is text, `no` is false, `010` is eight and a date is no
    text. Other tags than those of JSON's types, and merge keys, of which a few lines can make
    gigabytes, are refused.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge nothing."""


_Yaml12Loader.yaml_implicit_resolvers = {}
_Yaml12Loader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in ("null", "str", "seq", "map")
}
for _tag, _pattern, _first in (
    ("null", r"^(~|null|Null|NULL|)$", ("~", "n", "N", "")),
    ("bool", r"^(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    (
        "float",
        r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$",
        "-+.0123456789",
    ),
):
    _Yaml12Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}",
        re.compile(_pattern),
        list(_first),
    )


def _int(loader: _Yaml12Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base)


def _float(loader: _Yaml12Loader, node: yaml.ScalarNode) -> float:
    return float(re.sub(r"(?i)\.(?=inf|nan)", "", str(loader.construct_scalar(node))))


def _bool(loader: _Yaml12Loader, node: yaml.ScalarNode) -> bool:
    text = str(loader.construct_scalar(node)).lower()
    if text not in ("true", "false"):
        raise ValueError(f"{shown(text)} is neither true nor false")
    return text == "true"


for _tag, _construct in (("int", _int), ("float", _float), ("bool", _bool)):
    _Yaml12Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _construct)


def _unique_mapping(
    loader: _Yaml12Loader, node: yaml.MappingNode, deep: bool = False
) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=deep)
        if isinstance(key, str | int | float | bool) and key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} stands twice", key_node.start_mark
            )
        seen.add(key if isinstance(key, str | int | float | bool) else id(key_node))
    return loader.construct_mapping(node, deep=deep)


_Yaml12Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Read a `.json`, `.yaml` or `.yml` file whose top level is a mapping.

    Raises:
        ConfigurationError: missing, too large, not parseable (with line), or not a mapping.
    """
    refuse(ConfigurationError, place("path", path))
    path = Path(path)
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ConfigurationError(
                f"{path}: larger than {MAX_JSON_BYTES:,} bytes, not a configuration"
            )
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path}: no such configuration file; name a .json, .yaml or .yml file"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{path}: cannot be read as UTF-8 text ({error}); name a .json, .yaml or .yml file"
        ) from error
    return parse_config_text(text, path)


def parse_config_text(text: str, path: str | Path) -> dict[str, Any]:
    """Parse configuration text; `path` gives the format by its suffix and names the errors."""
    path = Path(path)
    try:
        if path.suffix == ".json":
            value = json.loads(text)
        else:
            # the loader is a SafeLoader: no tag constructs an object
            value = yaml.load(text, Loader=_Yaml12Loader)  # noqa: S506
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"{path}:{error.lineno}: not valid JSON ({error.msg}); mend that line"
        ) from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigurationError(
            f"{path}{line}: not valid YAML ({error.problem}); mend that line"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: cannot be parsed ({error})") from error
    if not isinstance(value, dict):
        raise ConfigurationError(
            f"{path}: expected sections with keys, found {type(value).__name__}"
        )
    return value


def build_config(
    cls: type[T],
    values: Mapping[str, Any],
    where: str,
    kind: type[ConfigurationError] = ConfigurationError,
) -> T:
    """Build the dataclass `cls` from a mapping, reporting all problems at once.

    `where` names the place in messages ("params.yaml: training"), `kind` is the error to raise.

    Raises:
        ConfigurationError: unknown keys, wrong types, or what `cls` itself refuses.
    """
    problems = []
    known = field_types(cls)
    accepted: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            problems.append(unknown_key(str(key), list(known), where))
            continue
        try:
            accepted[key] = coerce(value, known[key])
        except ValueError as error:
            problems.append(f"{where}.{key}: {error}")
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and field.name not in values:
            problems.append(f"{where}.{field.name}: missing")
    if not problems:
        try:
            return cls(**accepted)
        except ConfigurationError as error:
            problems.extend(f"{where}: {line}" for line in str(error).splitlines())
    raise kind("\n".join(problems))


def check_fields(config: Any) -> list[str]:
    """Coerce each field of a dataclass instance in place; return the problems, one line each."""
    problems = []
    for name, annotation in field_types(type(config)).items():
        try:
            setattr(config, name, coerce(getattr(config, name), annotation))
        except ValueError as error:
            problems.append(f"{name}: {error}")
    return problems


def raise_problems(
    problems: list[str], kind: type[ConfigurationError] = ConfigurationError
) -> None:
    """Raise one error that carries all `problems`, if there are any."""
    if problems:
        raise kind("\n".join(problems))


def unknown_key(key: str, known: list[str], where: str) -> str:
    """The message for an unknown key, with the nearest known one."""
    key = key[:LONGEST]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(sorted(known))}"
    return f"unknown key '{key}' in {where}{hint}"


def field_types(cls: Any) -> dict[str, Any]:
    """Field name -> resolved annotation of a dataclass, in declaration order."""
    return _field_types(cls)


@cache
def _field_types(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def coerce(value: Any, annotation: Any) -> Any:
    """Return `value` as `annotation`, changing its type only where nothing is lost.

    Raises:
        ValueError: with what was expected and what was found.
    """
    origin = typing.get_origin(annotation)
    if annotation is Any:
        return value
    if origin is typing.Literal:
        choices = typing.get_args(annotation)
        for choice in choices:
            if value == choice and type(value) is type(choice):
                return choice
        spelled = value[:LONGEST] if isinstance(value, str) else shown(value)
        near = difflib.get_close_matches(spelled, [str(c) for c in choices], n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"{shown(value)} is not one of {', '.join(map(str, choices))}{hint}")
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(value, typing.get_args(annotation))
    if origin in (list, tuple):
        return _coerce_sequence(value, annotation, origin)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"expected a mapping, found {shown(value)}")
        return dict(value)
    return _coerce_scalar(value, annotation)


def _coerce_union(value: Any, options: tuple[Any, ...]) -> Any:
    if value is None and type(None) in options:
        return None
    problems = []
    for option in options:
        if option is type(None):
            continue
        # an exact match first, so that `true` is not taken for the string "true" or the like
        try:
            return coerce(value, option)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError(problems[0] if len(problems) == 1 else " or ".join(problems))


def _coerce_sequence(value: Any, annotation: Any, origin: type) -> Any:
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise ValueError(f"expected a list, found {shown(value)}")
    arguments = typing.get_args(annotation)
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        if len(value) != len(arguments):
            raise ValueError(f"expected {len(arguments)} values, found {shown(value)}")
        return tuple(coerce(item, kind) for item, kind in zip(value, arguments, strict=True))
    return origin(coerce(item, arguments[0]) for item in value)


def _coerce_scalar(value: Any, kind: type) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ValueError(f"expected true or false, found {shown(value)}")
    if kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9][0-9_]*", value):
            return int(value)
        raise ValueError(f"expected a whole number, found {shown(value)}")
    if kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
        elif isinstance(value, str):
            try:
                number = float(value)
            except ValueError:
                raise ValueError(f"expected a number, found {shown(value)}") from None
        else:
            raise ValueError(f"expected a number, found {shown(value)}")
        if not math.isfinite(number):
            raise ValueError(f"expected a finite number, found {shown(value)}")
        return number
    if kind is str:
        if isinstance(value, str | Path):
            text = str(value)
            half = re.search("[\ud800-\udfff]", text)
            if half is not None:
                raise ValueError(
                    f"expected text, found half a surrogate pair (U+{ord(half[0]):04X}) in "
                    f"{shown(text)}, which cannot be written as UTF-8"
                )
            return text
        raise ValueError(f"expected text, found {shown(value)}")
    assert False, f"no coercion for {kind!r}"  # noqa: B011, PT015


__all__ = [
    "ConfigurationError",
    "ModelConfigurationError",
    "build_config",
    "check_fields",
    "coerce",
    "field_types",
    "parse_config_text",
    "raise_problems",
    "read_config_file",
    "unknown_key",
]
