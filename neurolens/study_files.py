"""What surrounds a study file: the templates it starts from, and the JSON Schema that editors complete it with."""

import json
from pathlib import Path
from typing import Any

from neurolens.errors import StudyError, nearest
from neurolens.settings import PROFILES
from neurolens.study import Study

TEMPLATES = Path(__file__).parent / "templates"
SCHEMA = Path(__file__).parent / "schemas" / "study.json"


def study_json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a study file, profiles included: what ``schemas/study.json`` holds."""
    schema = Study.model_json_schema()
    profile = {
        "type": "object",
        "description": "What this profile changes, laid over the rest of the file.",
        "properties": dict(schema["properties"]),
        "additionalProperties": False,
    }
    schema["$defs"]["Profile"] = profile
    schema["properties"][PROFILES] = {
        "type": "object",
        "description": "Named variants of the study, chosen with --profile.",
        "additionalProperties": {"$ref": "#/$defs/Profile"},
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def write_json_schema(folder: Path) -> Path:
    """Write the JSON Schema of the study file to ``study.json`` in ``folder``, and return its path."""
    path = Path(folder) / SCHEMA.name
    path.write_text(json.dumps(study_json_schema(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def templates() -> dict[str, str]:
    """Return what each study template is for, by name."""
    return {
        path.stem: path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        for path in sorted(TEMPLATES.glob("*.toml"))
    }


def init_study(path: str | Path, template: str = "digits") -> Path:
    """Write a commented study file and return its path.

    Parameters
    ----------
    path
        A file that ends in ``.toml``, or a folder, which gets a ``study.toml``. Missing folders are made.
    template
        One of ``templates()``; a hyphen stands for an underscore.

    Raises
    ------
    StudyError
        If there is no such template, the file exists already, or it cannot be written.
    """
    known, template = templates(), template.replace("-", "_")
    if template not in known:
        raise StudyError(f"there is no study template {template!r}; {nearest(template, known)}")
    path = Path(path).expanduser()
    path = path if path.suffix == ".toml" else path / "study.toml"
    text = (TEMPLATES / f"{template}.toml").read_text(encoding="utf-8")
    if path.exists():
        raise StudyError(f"{path} exists already; remove it, or name another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#:schema {SCHEMA.as_uri()}\n{text}", encoding="utf-8")
    except OSError as error:
        raise StudyError(f"{path} cannot be written ({error.strerror}); name a folder you may write to") from error
    return path
