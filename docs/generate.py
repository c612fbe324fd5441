"""MkDocs hook: writes the tables of the study file and the commands into their pages from the code itself."""

from collections.abc import Iterable
from typing import Any

import typer

from neurolens.cli import app
from neurolens.schema import EVENTS, FUNCTIONAL_DEATHS, Variable
from neurolens.study_files import study_json_schema


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the placeholders of the reference pages."""
    if "<!-- study-tables -->" in markdown:
        markdown = markdown.replace("<!-- study-tables -->", study_tables())
    if "<!-- cli-commands -->" in markdown:
        markdown = markdown.replace("<!-- cli-commands -->", commands())
    if "<!-- event-columns -->" in markdown:
        markdown = markdown.replace("<!-- event-columns -->", columns(EVENTS))
    if "<!-- functional-columns -->" in markdown:
        markdown = markdown.replace("<!-- functional-columns -->", columns(FUNCTIONAL_DEATHS))
    return markdown


def columns(declared: Iterable[Variable]) -> str:
    """Return the columns of a table, as the schema declares them."""
    rows = [f"| `{v.name}` | {v.dtype} | {v.units} | {v.description} |" for v in declared]
    return "\n".join(["| column | type | unit | meaning |", "|---|---|---|---|", *rows])


def study_tables() -> str:
    """Return one Markdown section per table of the study, from its JSON Schema."""
    schema = study_json_schema()
    sections: list[str] = []
    _section(schema, schema, "", sections)
    return "\n\n".join(sections)


def _section(schema: dict[str, Any], table: dict[str, Any], path: str, sections: list[str]) -> None:
    rows, inner = [], []
    for name, field in table.get("properties", {}).items():
        target, many = _table_of(schema, field)
        if target is not None:
            inner.append((f"{path}.{name}" if path else name, target, many))
        else:
            rows.append(f"| `{name}` | {_type(schema, field)} | {_default(table, name, field)} | {_text(field)} |")
    heading = f"## `[{path}]`" if path else "## Top level"
    described = table.get("description", "") if path else ""
    if rows:
        sections.append(
            "\n".join([f"{heading}\n\n{described}\n", "| key | type | default | meaning |", "|---|---|---|---|", *rows])
        )
    for inner_path, target, many in inner:
        _section(schema, target, f"[{inner_path}]" if many else inner_path, sections)


def _table_of(schema: dict[str, Any], field: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    for option in [field, *field.get("anyOf", []), *field.get("allOf", [])]:
        if "$ref" in option:
            return schema["$defs"][option["$ref"].rpartition("/")[2]], False
        if "$ref" in option.get("items", {}):
            return schema["$defs"][option["items"]["$ref"].rpartition("/")[2]], True
    return None, False


def _type(schema: dict[str, Any], field: dict[str, Any]) -> str:
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:
        return " or ".join(_type(schema, option) for option in field["anyOf"] if option.get("type") != "null")
    if field.get("type") == "array":
        items = field.get("items") or next(iter(field.get("prefixItems", [])), {})
        return f"list of {_type(schema, items)}"
    return str(field.get("format") or field.get("type", "any")).replace("object", "table")


def _default(table: dict[str, Any], name: str, field: dict[str, Any]) -> str:
    if name in table.get("required", []):
        return "required"
    value = field.get("default")
    return "" if value in (None, [], {}) else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _text(field: dict[str, Any]) -> str:
    return str(field.get("description", "")).replace("|", "\\|").replace("\n", " ")


def commands() -> str:
    """Return one Markdown section per command."""
    sections: list[str] = []
    _command(typer.main.get_command(app), "neurolens", sections)
    return "\n\n".join(sections)


def _command(command: Any, path: str, sections: list[str]) -> None:
    inner = getattr(command, "commands", None)
    if inner is not None:
        for name, child in inner.items():
            _command(child, f"{path} {name}", sections)
        return
    rows = []
    for parameter in command.params:
        names = ", ".join(f"`{name}`" for name in parameter.opts)
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        if parameter.param_type_name == "argument":
            names = f"`{(parameter.metavar or parameter.name).upper()}`"
        meaning = (getattr(parameter, "help", "") or "").replace("|", "\\|")
        rows.append(f"| {names} | {meaning} |")
    text = (command.help or "").strip().replace("\f", "")
    table = "\n".join(["| | |", "|---|---|", *rows]) if rows else ""
    sections.append(f"## `{path}`\n\n{text}\n\n{table}")
