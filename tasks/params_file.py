"""Reading params.yaml, and telling what is wrong in it: the key, what was found and what would be right."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from tasks.errors import UserError


@dataclass(frozen=True)
class OrNull:
    """Marks a key in which null is right although its value never is null: something else fills it in."""


class Block(BaseModel):
    """A block of keys: frozen, without unknown keys, values of the very type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def sentence(text: str) -> PydanticCustomError:
    """Return an error that is told as it stands."""
    return PydanticCustomError("sentence", "{text}", {"text": text})


class _Loader(yaml.SafeLoader):
    """YAML 1.2's reading of plain words, as DVC has it: 1e-3 is a number, NO and on are text; a key is given once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} comes twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_timestamp(self, node: Any) -> Any:
        """DVC reads params.yaml as well and stops at a date, so a date is text."""
        problem = f'the date {node.value} must stand in quotes, "{node.value}", since DVC reads no dates'
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_yaml_timestamp)
_Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if not rule[0].endswith((":bool", ":float"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_FLOAT = re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$|^[-+]?[0-9]+[eE][-+]?[0-9]+$|^[-+]?\.inf$|^\.nan$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def yaml_tree(text: str) -> Any:
    """What a YAML text holds, read as :func:`read_yaml` does; raises yaml.YAMLError where it is none."""
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path, name: str) -> dict[Any, Any]:
    """Read a YAML file that holds a block of keys; ``name`` is how messages call it.

    Raises
    ------
    UserError
        When it is missing, empty, not UTF-8, not YAML, or holds something else than keys.
    """
    try:
        tree = yaml_tree(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{name} was not found; run from the project's folder or name the file.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}); it must be a readable text file.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{name} is not valid YAML{where}: {getattr(error, 'problem', None) or error}.") from None
    if not isinstance(tree, dict):
        found = "is empty" if tree is None else "holds no keys"
        raise UserError(f"{name} {found}; it must hold blocks of keys such as data: and train:.")
    return tree


def dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested blocks by their names, such as ``train.seed``; an empty block is a value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def set_key(path: Path, block: str, key: str, value: str) -> None:
    """Give a key of a block another value, atomically; comments and everything else stay as they are.

    Raises UserError where the file has no line for the key in that block.
    """
    set_keys(path, block, {key: value})


def set_keys(path: Path, block: str, values: Mapping[str, str]) -> None:
    """Give keys of a block, such as ``data`` or ``forecasters.tcn``, other values: all of them, or none and UserError."""
    from tasks.files import write_text

    text = path.read_text(encoding="utf-8")
    for key, value in values.items():
        found = _key_line(block, key).search(text)
        if found is None:
            raise UserError(f"{path.name} has no line for {block}.{key}; add `{key}: {value}` to its block {block}.")
        room = len(found[2]) + len(found[3])  # keeps the comment behind it in its column where that is possible
        rest = " " * max(room - len(value), 1) if found[3] else ""
        text = text[: found.start()] + found[1] + value + rest + text[found.end() :]
    write_text(path, text)


def _key_line(block: str, key: str) -> re.Pattern[str]:
    """From a block's first line to a key's value: all before it, the value, and the blanks behind it."""
    before, indent = "^", ""
    for name in block.split("."):
        before += rf"{indent}{name}:[^\n]*\n(?:(?:{indent}  |[ ]*#)[^\n]*\n|\n)*?"
        indent += "  "
    return re.compile(rf"({before}{indent}{key}:[ ]*)([^\s#]+)([ ]*)", re.MULTILINE)


def told(error: ValidationError, model: type[BaseModel]) -> str:
    """Return one sentence for the first mistake, with the number of further ones."""
    first, *others = error.errors()
    text = _sentence(first, model)
    if others:
        text += f" ({len(others)} further {'mistake' if len(others) == 1 else 'mistakes'})"
    return text if text.endswith("?") else text + "."


def _sentence(mistake: Any, model: type[BaseModel]) -> str:
    location, kind = mistake["loc"], mistake["type"]
    if kind == "sentence":
        return str(mistake["msg"])
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if kind == "extra_forbidden":
        close = _close_key(key, model)
        return f"{key} is not a known key; " + (f"did you mean {close}?" if close else "remove it")
    right = str(mistake["ctx"]["error"]) if kind == "value_error" else _right(location, model)
    return f"{key} is {_shown(mistake['input'])}; it must be {right}"


def _shown(value: Any) -> str:
    """Return a value as params.yaml spells it, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _close_key(key: str, model: type[BaseModel]) -> str | None:
    """Return the known key nearest to an unknown one: in its own block first, then one of that name elsewhere."""
    known = list(_keys(model, ""))
    block, _, name = key.rpartition(".")
    beside = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == block}
    if close := difflib.get_close_matches(name, beside, n=1, cutoff=0.6):
        return beside[close[0]]
    return next((other for other in known if other.rpartition(".")[2] == name), None)


def _keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")


def _right(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """Return what a key accepts, in words, from its annotation."""
    annotation: Any = model
    limits: list[Any] = []
    for part in location:
        if isinstance(part, int):
            annotation, limits, _ = _unwrap(annotation, [])
            annotation, limits = get_args(annotation)[0], []
        else:
            field = annotation.model_fields[part]
            annotation, limits = field.annotation, list(field.metadata)
    return _words(annotation, limits)


def _unwrap(annotation: Any, limits: list[Any]) -> tuple[Any, list[Any], bool]:
    """Strip Annotated and "or null" off an annotation; return the bare type, its limits, and whether null is right."""
    optional = False
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            for limit in more:
                limits = limits + list(getattr(limit, "metadata", [limit]))
        elif get_origin(annotation) in (Union, types.UnionType):
            optional = True
            annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
        else:
            return annotation, limits, optional


def _words(annotation: Any, limits: list[Any]) -> str:
    kind, limits, optional = _unwrap(annotation, limits)
    if get_origin(kind) is Literal:
        text = "one of " + ", ".join(map(str, get_args(kind))) if len(get_args(kind)) > 1 else str(get_args(kind)[0])
    elif get_origin(kind) is tuple:
        item = _words(get_args(kind)[0], [])
        some = "a list of one or more" if any(isinstance(limit, MinLen) for limit in limits) else "a list"
        text = f"{some}, each {item}"
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        text = "a block of keys"
    else:
        text = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    bounds = []
    for limit in limits:
        if isinstance(limit, Ge):
            bounds.append(f"{limit.ge} or more")
        elif isinstance(limit, Gt):
            bounds.append(f"more than {limit.gt}")
        elif isinstance(limit, Le):
            bounds.append(f"at most {limit.le}")
        elif isinstance(limit, Lt):
            bounds.append(f"less than {limit.lt}")
    optional = optional or any(isinstance(limit, OrNull) for limit in limits)
    return text + (f" of {' and '.join(bounds)}" if bounds else "") + (", or null" if optional else "")
