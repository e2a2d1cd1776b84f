"""The OpenAPI document of the gateway, made from the protos: paths, messages, enums, and their comments.

The comments are not in the descriptors that Python's protobuf keeps, so a summary is the method's name in words.
"""

from __future__ import annotations

import re
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from services.gateway.examples import EXAMPLES, Example
from services.gateway.messages import is_credential
from services.gateway.problems import ALL_STATUSES, CONTENT_TYPE
from services.gateway.routes import GET, Route, Routes
from services.kernel.principal import Role
from services.runtime.grpc.access import MAY_CALL

_INT64: Final = {
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_SINT64,
    FieldDescriptor.TYPE_FIXED64,
    FieldDescriptor.TYPE_SFIXED64,
}
_MONEY: Final = "countinghouse.type.v1.Money"
_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])")


def document(routes: Routes) -> dict[str, Any]:
    """Return the document."""
    schemas: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes.documented:
        paths.setdefault(_camel_path(route), {})[route.verb.lower()] = _operation(route, schemas)
    schemas["Problem"] = _PROBLEM
    return {
        "openapi": "3.1.0",
        "info": {"title": "Countinghouse", "version": "v1"},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            "schemas": dict(sorted(schemas.items())),
        },
    }


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    example = EXAMPLES[route.method.name]
    response = {
        "description": "It was served.",
        "content": {"application/json": {"schema": _reference(route.method.output_type, schemas)}},
    }
    if route.changes:
        response["headers"] = {"Idempotency-Replayed": {"schema": {"const": "true"}}}
    problem = {"description": "A problem.", "content": {CONTENT_TYPE: {"schema": {"$ref": _place("Problem")}}}}
    operation: dict[str, Any] = {
        "operationId": route.method.name,
        "summary": _WORDS.sub(" ", route.method.name).capitalize(),
        "tags": [route.service.rpartition(".")[2]],
        "description": f"For: {', '.join(sorted(MAY_CALL[route.full_method] - {Role.SERVICE}))}.",
        "parameters": _parameters(route, schemas, example),
        "responses": {"200": response, **{str(int(code)): problem for code in _statuses(route)}},
    }
    if route.verb != GET:
        body = _object(route.method.input_type, schemas, without=(*route.variables, route.key))
        content = {"schema": body, "example": example.body or {}}
        operation["requestBody"] = {"required": False, "content": {"application/json": content}}  # none is an empty one
    return operation


def _statuses(route: Route) -> tuple[int, ...]:
    found = [int(code) for code in ALL_STATUSES]
    return tuple(sorted({*found, 405, 413, 415, 408} if route.verb != GET else {*found, 405}))


def _parameters(route: Route, schemas: dict[str, Any], example: Example) -> list[dict[str, Any]]:
    fields = route.method.input_type.fields_by_name
    found: list[dict[str, Any]] = [
        {"name": fields[name].json_name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in route.variables
    ]
    if route.verb == GET:
        found += [
            {"name": field.json_name, "in": "query", "schema": _schema(field, schemas)}
            for field in fields.values()
            if field.name not in route.variables and field.message_type is None
        ]
    if route.key and route.key not in route.variables:
        name = {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,64}$"}
        key = {"name": "Idempotency-Key", "in": "header", "required": True, "schema": name}
        found.append({**key, "example": f"{route.method.name}-example"})
    return [{**each, **_example_of(each["name"], example)} for each in found]


def _example_of(parameter: str, example: Example) -> dict[str, str]:
    return {"example": example.fields[parameter]} if parameter in example.fields else {}


def _object(kind: Descriptor, schemas: dict[str, Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    shown = [field for field in kind.fields if field.name not in without and not is_credential(field)]
    properties = {field.json_name: _schema(field, schemas) for field in shown}
    if kind.full_name == _MONEY:
        properties["amount"] = {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$"}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _schema(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    one = _one(field, schemas)
    return {"type": "array", "items": one} if field.is_repeated else one


def _one(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    if field.message_type is not None:
        return _reference(field.message_type, schemas)
    if field.enum_type is not None:
        return _enum(field.enum_type, schemas)
    if field.type in _INT64:
        return {"type": ["string", "integer"], "format": "int64", "pattern": "^-?[0-9]+$"}
    if field.type == FieldDescriptor.TYPE_BOOL:
        return {"type": "boolean"}
    if field.type == FieldDescriptor.TYPE_BYTES:
        return {"type": "string", "contentEncoding": "base64"}
    if field.type == FieldDescriptor.TYPE_STRING:
        return {"type": "string"}
    return {"type": "integer", "format": "int32"}


def _enum(kind: EnumDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    schemas[kind.name] = {"type": "string", "enum": [value.name for value in kind.values]}
    return {"$ref": _place(kind.name)}


def _reference(kind: Descriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    if kind.name not in schemas:
        schemas[kind.name] = {}  # its own fields may refer to it
        schemas[kind.name] = _object(kind, schemas)
    return {"$ref": _place(kind.name)}


def _place(name: str) -> str:
    return f"#/components/schemas/{name}"


def _camel_path(route: Route) -> str:
    """Return the path with its variables as JSON names fields."""
    fields = route.method.input_type.fields_by_name
    return re.sub(r"\{(\w+)\}", lambda found: f"{{{fields[found[1]].json_name}}}", route.path)


_PROBLEM: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "reason"],
    "properties": {
        "type": {"const": "about:blank"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "reason": {"type": "string"},
        "code": {"type": "string"},
        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
        "fields": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "description": {"type": "string"}},
            },
        },
        "retryAfterMs": {"type": "integer"},
    },
}
