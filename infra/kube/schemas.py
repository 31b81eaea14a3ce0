"""Writes a JSON schema for each kind of Kubernetes, from the API's own description (swagger.json), for kubeconform: one file each,
with every reference put in place and no field beyond those that are named."""

import json
import pathlib
import sys

SOURCE, TARGET = sys.argv[1], pathlib.Path(sys.argv[2])
DEFINITIONS = json.loads(pathlib.Path(SOURCE).read_text())["definitions"]
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
    schema = {key: whole(value, inside) for key, value in node.items() if not key.startswith("x-") and key not in ("description", "format")}
    # Whatever the fields are called.
    if isinstance(node.get("properties"), dict):
        schema["properties"] = {name: whole(value, inside) for name, value in node["properties"].items()}
        schema.setdefault("additionalProperties", False)
    return schema


TARGET.mkdir(parents=True)
for name, definition in DEFINITIONS.items():
    kinds = definition.get("x-kubernetes-group-version-kind", [])
    # More than one: an object that every group takes, such as DeleteOptions.
    if len(kinds) == 1:
        parts = [kinds[0]["kind"].lower(), kinds[0]["group"].split(".")[0], kinds[0]["version"].lower()]
        file = TARGET / ("-".join(filter(None, parts)) + ".json")
        file.write_text(json.dumps(whole(definition, frozenset([name]))))
