"""From a TOML file to a pydantic model: profiles, overrides, absolute paths, and errors that name the key."""

import datetime
import os
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from neurolens.errors import StudyError, nearest

PROFILES = "profiles"

Key = tuple[str | int, ...]
_Model = TypeVar("_Model", bound=BaseModel)


def read_settings(
    model: type[_Model], path: str | Path, *, profile: str | None = None, overrides: Sequence[str] = ()
) -> _Model:
    """Read a TOML file into ``model``: the file, then a ``[profiles.<name>]`` table over it, then the overrides.

    Relative ``Path`` values become absolute, relative to the file.

    Raises
    ------
    StudyError
        If the file is missing or is not TOML, or if a key, value, profile or override is wrong. Every problem is
        listed, each with its file, key, what was found, what was needed, and the mend.
    """
    path = Path(os.path.abspath(Path(path).expanduser()))
    tables = read_toml(path)
    profiles = tables.pop(PROFILES, {})
    problems = list(_profile_problems(model, profiles))
    problems += unknown_keys(model, tables)
    origins: dict[Key, str] = {}
    if profile is not None:
        chosen = _profile(profiles, profile, path)
        tables = merge(tables, chosen)
        origins |= dict.fromkeys(_leaves(chosen), f" (from [{PROFILES}.{profile}])")
    for text in overrides:
        key, value = parse_override(text)
        origin = f" (from --set {text})"
        unknown = unknown_keys(model, nest(key, value))
        problems += [problem + origin for problem in unknown]
        if not unknown:
            tables = without(tables, key) if value is None else merge(tables, nest(key, value))
            origins[key] = origin
    settings, wrong = _validate(model, tables, origins)
    problems += wrong
    if settings is None or problems:
        raise StudyError("\n".join(f"{path}: {problem}" for problem in dict.fromkeys(problems)))
    return absolute(settings, path.parent)


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file, or raise StudyError saying why there are none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        near = sorted(p.name for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        hint = _hint(path.name, near) if near else "there is no .toml file in that folder; "
        raise StudyError(f"{path}: there is no such file; {hint}write one with: neurolens init {path}") from None
    except IsADirectoryError:
        raise StudyError(f"{path}: this is a folder, and a file was needed; name the .toml file in it") from None
    except UnicodeDecodeError as error:
        raise StudyError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"{path}: not valid TOML: {error}; correct that line") from error
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Split ``a.b=value`` into its key and its TOML value; bare words are strings, nothing after ``=`` is None.

    Raises
    ------
    StudyError
        If there is no ``=``, or a part of the key is empty.
    """
    name, equals, value = text.partition("=")
    key = tuple(part.strip() for part in name.split("."))
    if not equals or not all(key):
        raise StudyError(f"--set {text!r}: needed table.key=value, e.g. --set train.epochs=3")
    return key, _toml_value(value.strip())


def _toml_value(text: str) -> Any:
    if not text:
        return None
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = parsed.get("value")
    # a date is a word that happens to look like one; more than one key means the text ran past its line
    plain = set(parsed) == {"value"} and not isinstance(value, datetime.date | datetime.time)
    return value if plain else text


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``top`` over ``base``: tables merge key by key, anything else is replaced. Neither is changed."""
    out = dict(base)
    for key, value in top.items():
        below = out.get(key)
        out[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return out


def nest(key: Sequence[str], value: Any) -> dict[str, Any]:
    """Return the tables that hold ``value`` at a dotted key."""
    for part in reversed(key):
        value = {part: value}
    return dict(value)


def without(tables: Mapping[str, Any], key: Sequence[str]) -> dict[str, Any]:
    """Return the tables less the value at a dotted key, if it is there."""
    head, *rest = key
    if not rest:
        return {k: v for k, v in tables.items() if k != head}
    below = tables.get(head)
    return {**tables, head: without(below, rest)} if isinstance(below, Mapping) else dict(tables)


def absolute(settings: _Model, folder: Path) -> _Model:
    """Return the settings with every relative ``Path`` made absolute, relative to ``folder``."""
    changed = {name: _absolute(getattr(settings, name), folder) for name in type(settings).model_fields}
    return settings.model_copy(update=changed)


def _absolute(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        return Path(os.path.abspath(folder / value.expanduser()))
    if isinstance(value, BaseModel):
        return absolute(value, folder)
    if isinstance(value, tuple):
        return tuple(_absolute(item, folder) for item in value)
    if isinstance(value, dict):
        return {key: _absolute(item, folder) for key, item in value.items()}
    return value


def unknown_keys(model: type[BaseModel], tables: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Name every key that the model does not declare, with the nearest that it does."""
    out = []
    for key, value in tables.items():
        dotted = f"{prefix}{key}"
        if key not in model.model_fields:
            out.append(f"{dotted} is not a known key; {_hint(key, model.model_fields)}correct or remove it")
            continue
        table = _table_of(model.model_fields[key].annotation)
        if table is None:
            continue
        if isinstance(value, Mapping):
            out += unknown_keys(table, value, f"{dotted}.")
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, Mapping):
                    out += unknown_keys(table, item, f"{dotted}[{i}].")
    return out


def _hint(name: str, known: Iterable[str]) -> str:
    clause = nearest(name, known)
    return f"{clause} " if clause.endswith("?") else f"{clause}; "


def _table_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model that an annotation such as ``Train | None`` or ``tuple[File, ...]`` holds, if it holds one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, tuple):
        return next(filter(None, map(_table_of, get_args(annotation))), None)
    return None


def _profile(profiles: Any, name: str, path: Path) -> dict[str, Any]:
    if not isinstance(profiles, Mapping) or name not in profiles:
        known = list(profiles) if isinstance(profiles, Mapping) else []
        hint = _hint(name, known) if known else "the file has none; "
        raise StudyError(f"{path}: there is no profile {name!r}; {hint}name one, or write [{PROFILES}.{name}]")
    chosen = profiles[name]
    return dict(chosen) if isinstance(chosen, Mapping) else {}


def _profile_problems(model: type[BaseModel], profiles: Any) -> Iterator[str]:
    if not isinstance(profiles, Mapping):
        yield f"{PROFILES}: found {profiles!r}, needed tables; write [{PROFILES}.quick]"
        return
    for name, tables in profiles.items():
        if isinstance(tables, Mapping):
            yield from unknown_keys(model, tables, f"{PROFILES}.{name}.")
        else:
            yield f"{PROFILES}.{name}: found {tables!r}, needed a table; write [{PROFILES}.{name}]"


def _leaves(tables: Mapping[str, Any], prefix: Key = ()) -> Iterator[Key]:
    for key, value in tables.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*prefix, key))
        else:
            yield (*prefix, key)


def _validate(model: type[_Model], tables: dict[str, Any], origins: dict[Key, str]) -> tuple[_Model | None, list[str]]:
    try:
        return model.model_validate(tables), []
    except ValidationError as error:
        by_key: dict[Key, list[ErrorDetails]] = {}
        for detail in error.errors(include_url=False):
            if detail["type"] != "extra_forbidden":
                by_key.setdefault(_key_in_file(detail, tables), []).append(detail)
        return None, [_explain(model, key, details, origins) for key, details in by_key.items()]


def _key_in_file(detail: ErrorDetails, tables: dict[str, Any]) -> Key:
    """Cut a pydantic location down to what stands in the file: it also names the members of unions."""
    key: list[str | int] = []
    at: Any = tables
    for part in detail["loc"]:
        if isinstance(at, Mapping):
            inside = part in at
        else:
            inside = isinstance(at, list) and isinstance(part, int) and part < len(at)
        if inside:
            at = at[part]
        elif detail["type"] != "missing":
            break
        key.append(part)
    return tuple(key)


def _explain(model: type[BaseModel], key: Key, details: Sequence[ErrorDetails], origins: dict[Key, str]) -> str:
    origin = next((origins[key[:n]] for n in range(len(key), 0, -1) if key[:n] in origins), "")
    if not origin:  # a check between fields speaks of a whole table
        origin = next((text for at, text in reversed(origins.items()) if key and at[: len(key)] == key), "")
    name = _dotted(key) + origin
    first = details[0]
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return f"{name}: {message}" if key else message
    table, last = _dotted(key[:-1]), key[-1] if key else ""
    if first["type"] == "missing":
        return f"{name} is missing; add `{last} = …` to [{table}]"
    needed = " or ".join(dict.fromkeys(_needed(detail["msg"]) for detail in details))
    found = details[0]["input"] if len(details) == 1 else _at(details)
    return f"{name}: found {_short(found)}, needed {needed}; {_mend(model, key, origin)}"


def _at(details: Iterable[ErrorDetails]) -> Any:
    """Of the inputs that the members of a union complain about, the outermost is what stands in the file."""
    return min(details, key=lambda detail: len(detail["loc"]))["input"]


def _needed(message: str) -> str:
    for pydantic_word, word in (("a valid dictionary", "a table"), ("a valid tuple", "a list")):
        if pydantic_word in message:
            return word
    for start in ("Input should be ", "String should ", "Tuple should ", "Value should "):
        if message.startswith(start):
            rest = message.removeprefix(start)
            return rest if start.startswith("Input") else f"it to {rest}"
    return message[:1].lower() + message[1:]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _mend(model: type[BaseModel], key: Key, origin: str) -> str:
    """Say where to correct a value, and what leaving it out would mean."""
    table: type[BaseModel] | None = model
    field = None
    for part in key:
        if isinstance(part, int):
            continue
        field = table.model_fields.get(part) if table is not None else None
        table = _table_of(field.annotation) if field is not None else None
    names = [str(part) for part in key if not isinstance(part, int)]
    where = f"correct it in [{'.'.join(names[:-1])}]" if len(names) > 1 and not origin else "correct it"
    if field is None or field.is_required() or field.default_factory is not None:
        return where
    if field.default in (None, (), {}):
        return f"{where}, or leave it out"
    default = str(field.default) if isinstance(field.default, Path) else field.default
    return f"{where}, or leave it out for {default!r}"


def _dotted(key: Key) -> str:
    out = ""
    for part in key:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out
