"""docs/job.md: every field of a job file, from the sections themselves.

In:  the pydantic models of `pipeline/job.py` and its neighbours.
Out: Markdown; `python -m pipeline.job_page > docs/job.md` writes it, and a test compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.job import JobConfig

Schema = Mapping[str, Any]

_HEAD = """# The job file

Written by `python -m pipeline.job_page` from `pipeline/job.py`; do not edit. Every field has a default but those marked
"required". Paths are relative to the job file. Each can be overridden on the command line: `--set optimizer.lr=0.01`.
`headrace check JOB.yaml` names every mistake with its line.
"""


def page() -> str:
    """The whole page."""
    schema = JobConfig.model_json_schema()
    definitions: Schema = schema["$defs"]
    parts = [_HEAD, *_section("The job", "", schema, definitions)]
    seen: set[str] = set()
    for path, name in _references("", schema, definitions):
        if name not in seen:
            seen.add(name)
            parts += _section(
                f"`{path}`", _words(definitions[name].get("description", "")), definitions[name], definitions
            )
    return "\n".join(parts) + "\n"


def _section(title: str, says: str, schema: Schema, definitions: Schema) -> Iterator[str]:
    yield f"## {title}\n"
    if says:
        yield f"{says}\n"
    yield "| field | default | values | |"
    yield "|---|---|---|---|"
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        default = "required" if name in required else _default(field)
        cells = (f"`{name}`", default, _values(field, definitions), _words(field.get("description", "")))
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _references(path: str, schema: Schema, definitions: Schema) -> Iterator[tuple[str, str]]:
    """(path in a job file, definition) of every section below, in the order of the file."""
    for name, field in schema.get("properties", {}).items():
        for reference in _names(field):
            inner = definitions[reference]
            if "properties" not in inner:
                continue
            kind = inner["properties"].get("kind", {}).get("const")
            place = f"{path}.{name}".lstrip(".")
            place = f"{place}.NAME" if kind else place
            yield (f"{place}: {{kind: {kind}}}" if kind else place), reference
            yield from _references(place, inner, definitions)


def _names(field: Schema) -> Iterator[str]:
    """The definitions that a field's value may be."""
    if "$ref" in field:
        yield field["$ref"].rsplit("/", 1)[-1]
    for part in (*field.get("anyOf", ()), *field.get("oneOf", ()), *field.get("allOf", ())):
        yield from _names(part)
    for inside in ("items", "additionalProperties"):
        if isinstance(field.get(inside), dict):
            yield from _names(field[inside])


def _default(field: Schema) -> str:
    if "default" not in field:
        return ""
    default = field["default"]
    if isinstance(default, dict) and default:
        return "see below"
    if default is None:
        return "absent"
    return f"`{json.dumps(default)}`" if default != "" else "empty"


def _values(field: Schema, definitions: Schema) -> str:
    """What may be written, in words."""
    names = [name for name in _names(field) if "properties" in definitions[name]]
    if names:
        kinds = [definitions[name]["properties"].get("kind", {}).get("const") for name in names]
        text = "one of " + ", ".join(f"`{kind}`" for kind in kinds) if all(kinds) else "a section"
        return f"name: {text}" if "additionalProperties" in field else f"list: {text}" if "items" in field else text
    if choices := [part for part in field.get("anyOf", ()) if part.get("type") != "null"]:
        return " or ".join(filter(None, (_values(part, definitions) for part in choices)))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    kind = {"integer": "integer", "number": "number", "boolean": "`true`, `false`", "string": "text", "array": "list"}
    words = kind.get(str(field.get("type")), "map" if field.get("type") == "object" else "")
    bounds = (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"), ("exclusiveMaximum", "below"))
    return " ".join([words, *(f"{word} {_number(field[name])}" for name, word in bounds if name in field)])


def _number(bound: float) -> str:
    return f"2^{bound.bit_length() - 1}" if isinstance(bound, int) and bound > 1 << 32 else f"{bound:.12g}"


def _words(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    print(page(), end="")
