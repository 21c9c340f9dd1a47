"""The JSON schema of the configuration file, made from where the settings are defined.

``python -m craftcached.config_schema`` prints it; ``systemd/config.schema.json`` is what it
prints, for editors that know TOML.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, get_type_hints

from .schemas import schema_of
from .settings import SETTINGS, Settings

if TYPE_CHECKING:
    from .schemas import JsonSchema
    from .settings import Setting

__all__ = ["config_schema"]


def config_schema() -> JsonSchema:
    """The schema of what the configuration file may hold."""
    kinds = get_type_hints(Settings)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "craftcached's configuration file",
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _described(each, kinds[name]) for name, each in SETTINGS.items()},
    }


def _described(setting: Setting, kind: Any) -> JsonSchema:  # noqa: ANN401  # an annotation
    schema = _of_kind(setting, schema_of(kind))
    return {"description": f"{setting.meaning} Default: {setting.default}."} | schema


def _of_kind(setting: Setting, schema: JsonSchema) -> JsonSchema:
    """The schema of a setting's values in the file, which has no null and short forms of some."""
    if "anyOf" in schema:
        (schema,) = (each for each in schema["anyOf"] if each != {"type": "null"})
    if "enum" in schema:
        return schema
    if schema["type"] in ("integer", "number"):
        return schema | {"minimum": setting.least}
    if setting.name == "user":
        return {"type": ["string", "integer"]}
    if setting.is_list and schema["items"]["type"] == "object":
        # A table of it, or, where one key is enough, that one alone.
        table = schema["items"] | {"additionalProperties": False, "required": []}
        return schema | {"items": {"anyOf": [{"type": "string"}, table]}}
    return schema


def main() -> None:
    """Print the schema."""
    json.dump(config_schema(), sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
