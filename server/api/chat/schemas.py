"""Callers' JSON schemas, read within bounds: references are written out, and only keywords that are cheap are checked.

A schema comes from anybody. References can make a short one endless, and patterns can take forever on a short text. So
a schema is written out first, up to a fixed number of parts. Patterns are not run, and nothing is fetched.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import jsonschema

Schema: TypeAlias = dict[str, Any] | bool

MAX_PARTS = 150
"""The most schemas and values of enums that are read for one request, references written out."""

MAX_DEPTH = 16

_ANNOTATIONS = frozenset(
    {"$anchor", "$comment", "$defs", "$id", "$schema", "contentEncoding", "contentMediaType", "default", "definitions"}
    | {"deprecated", "description", "discriminator", "example", "examples", "format", "propertyOrdering", "readOnly"}
    | {"strict", "title", "writeOnly"}
)
_UNIONS = ("allOf", "anyOf", "oneOf")
_BOUNDS = frozenset(
    {"exclusiveMaximum", "exclusiveMinimum", "maxItems", "maxLength", "maximum", "minItems", "minLength", "minimum"}
    | {"uniqueItems"}
)
_OF_OBJECTS = frozenset({"additionalProperties", "properties", "required"})


class Unfit(ValueError):
    """The schema cannot be honoured. The message says why, and repeats nothing of it. `path` leads to the fault."""

    def __init__(self, message: str, *path: str) -> None:
        super().__init__(message)
        self.path = path


class Budget:
    """Counts the parts that are read for one request."""

    def __init__(self) -> None:
        self._left = MAX_PARTS

    def take(self, depth: int) -> None:
        """Count one part, `depth` levels below the top. Raises Unfit."""
        self._left -= 1
        if self._left < 0 or depth > MAX_DEPTH:
            raise Unfit(f"it has more than {MAX_PARTS} parts or {MAX_DEPTH} levels, or refers to itself")


class Reader:
    """Reads one schema, `root`, to which its references lead."""

    def __init__(self, root: dict[str, Any], budget: Budget) -> None:
        self._root = root
        self._budget = budget

    def read(self, schema: Any, depth: int = 0) -> Schema:
        """`schema` with references written out and without annotations. Raises Unfit."""
        self._budget.take(depth)
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise Unfit("a schema in it is not an object")
        read: dict[str, Any] = {}
        for key, value in schema.items():
            if key == "$ref":
                read.setdefault("allOf", []).append(self.read(self.target(value), depth + 1))
            elif key in _UNIONS:
                read.setdefault(key, []).extend(self.read(branch, depth + 1) for branch in _list(value))
            elif key == "items":
                read[key] = self.read(value, depth + 1)
            elif key == "enum":
                read[key] = [self._scalar(each, depth) for each in _list(value)]
            elif key == "const":
                read["enum"] = [self._scalar(value, depth)]
            elif key == "type":
                read[key] = [self._scalar(each, depth) for each in value] if isinstance(value, list) else value
            elif key in _BOUNDS:
                read[key] = value
            elif key in _OF_OBJECTS:
                # The values that are made here are no objects, so nothing of an object matters but its type.
                read.setdefault("type", "object")
            elif key not in _ANNOTATIONS and key != "nullable":
                raise Unfit("it has a keyword that this server does not check")
        if schema.get("nullable") is True:
            return {"anyOf": [read, {"type": "null"}]}
        return read

    def object(self, schema: Any) -> dict[str, Any]:
        """`schema` as one that describes an object by its properties, as it was written. Raises Unfit."""
        for depth in range(MAX_DEPTH):
            self._budget.take(depth)
            if not isinstance(schema, dict):
                break
            rest = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
            branches = rest.get("allOf")
            if "$ref" in rest:
                schema = self.target(rest.pop("$ref"))
            elif isinstance(branches, list) and len(branches) == 1:
                schema = branches[0]
                del rest["allOf"]
            elif rest.keys() - _OF_OBJECTS - {"type"}:
                raise Unfit("at its top it has a keyword that this server does not check")
            elif rest.get("type", "object") not in ("object", ["object"]):
                break
            else:
                return rest
            if rest:
                raise Unfit("at its top it has keywords beside a reference")
        raise Unfit("it does not describe an object")

    def target(self, reference: Any) -> Any:
        """What a reference leads to. Only those within the schema are followed."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise Unfit("it refers to another document")
        found: Any = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or key not in found:
                raise Unfit("it has a reference that leads nowhere")
            found = found[key]
        return found

    def _scalar(self, value: Any, depth: int) -> Any:
        """A value of an enum. One that is a list or an object equals nothing that is made here."""
        self._budget.take(depth)
        return {} if isinstance(value, list | dict) else value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Unfit("a keyword in it needs a list")
    return value


def branches_of(schema: Schema) -> Iterator[dict[str, Any]]:
    """A schema that was read, and all the schemas that it is a union of."""
    if isinstance(schema, dict):
        yield schema
        for key in _UNIONS:
            for branch in schema.get(key, ()):
                yield from branches_of(branch)


def words_in(schema: Schema) -> list[str]:
    """The texts that the enums of a schema list."""
    values = (value for branch in branches_of(schema) for value in branch.get("enum", ()))
    return list(dict.fromkeys(value for value in values if isinstance(value, str)))


def validator_of(schema: Schema) -> jsonschema.Draft202012Validator:
    """What holds values to a schema that was read. Raises Unfit if that is no valid schema."""
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError:
        raise Unfit("it is not a valid JSON schema") from None
    return jsonschema.Draft202012Validator(schema)
