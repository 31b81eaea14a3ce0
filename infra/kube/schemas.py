"""Writes a JSON schema for each kind of Kubernetes, for kubeconform: schemas.py FOLDER SOURCE... The sources are the API's own
description (swagger.json), or CustomResourceDefinitions as JSON. One file each, with every reference put in place and no field beyond
those that are named. Where both are given, only the latter are written, with the metadata of the former."""

import json
import pathlib
import sys

TARGET = pathlib.Path(sys.argv[1])
SOURCES = [json.loads(pathlib.Path(source).read_text()) for source in sys.argv[2:]]
DEFINITIONS = {name: one for source in SOURCES for name, one in source.get("definitions", {}).items()}
# What the description has as a string, and the API takes as a number, too.
EITHER = {"resource.Quantity": ["string", "number"], "intstr.IntOrString": ["string", "integer"]}


def whole(node, inside):
    """The schema `node`, within the definitions named `inside`; a type that holds itself may hold anything there."""
    if isinstance(node, list):
        return [whole(one, inside) for one in node]
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("$ref"), str):
        name = node["$ref"].rsplit("/", 1)[-1]
        for ending, types in EITHER.items():
            if name.endswith(ending):
                return {"type": types}
        return {} if name in inside else whole(DEFINITIONS[name], inside | {name})
    if node.get("x-kubernetes-int-or-string") is True:
        return {"type": ["string", "integer"]}
    schema = {key: whole(value, inside) for key, value in node.items() if not key.startswith("x-") and key not in ("description", "format")}
    # Whatever the fields are called.
    if isinstance(node.get("properties"), dict):
        schema["properties"] = {name: whole(value, inside) for name, value in node["properties"].items()}
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    return schema


def write(kind, group, version, schema):
    parts = [kind.lower(), group.split(".")[0], version.lower()]
    (TARGET / ("-".join(filter(None, parts)) + ".json")).write_text(json.dumps(schema))


CUSTOM = [source["spec"] for source in SOURCES if source.get("kind") == "CustomResourceDefinition"]
METADATA = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
for custom in CUSTOM:
    for version in custom["versions"]:
        schema = whole(version["schema"]["openAPIV3Schema"], frozenset())
        schema["properties"]["metadata"] = whole(DEFINITIONS[METADATA], frozenset([METADATA]))
        write(custom["names"]["kind"], custom["group"], version["name"], schema)
if CUSTOM:
    sys.exit()
for name, definition in DEFINITIONS.items():
    kinds = definition.get("x-kubernetes-group-version-kind", [])
    # More than one: an object that every group takes, such as DeleteOptions.
    if len(kinds) == 1:
        write(kinds[0]["kind"], kinds[0]["group"], kinds[0]["version"], whole(definition, frozenset([name])))
