"""Prints the public API of a crate from rustdoc's JSON, a line an item: so that a break shows in a review.

    python3 .ci/public_api.py target/doc/ws_supervisor.json > tests/public_api.txt
"""

import json
import sys

crate = json.load(open(sys.argv[1]))
if crate["format_version"] != 57:
    print(f"this toolchain's rustdoc writes version {crate['format_version']}, so the API is not compared", file=sys.stderr)
    sys.exit(3)
index = crate["index"]
lines = set()


def item(id):
    return index.get(str(id))


def args(given):
    if not given:
        return ""
    if "angle_bracketed" in given:
        given = given["angle_bracketed"]
        parts = [a.get("lifetime") or (ty(a["type"]) if "type" in a else str(a)) for a in given["args"]]
        for constraint in given["constraints"]:
            binding = constraint["binding"]
            what = binding.get("equality")
            bound = ": " + bounds(binding["constraint"]) if "constraint" in binding else " = " + ty(what["type"])
            parts.append(constraint["name"] + bound)
        return f"<{', '.join(parts)}>" if parts else ""
    inner = given["parenthesized"]
    out = f" -> {ty(inner['output'])}" if inner["output"] else ""
    return f"({', '.join(map(ty, inner['inputs']))}){out}"


def path(p):
    return p["path"].split("::")[-1] + args(p["args"])


def bounds(all):
    parts = []
    for bound in all:
        if "trait_bound" in bound:
            parts.append(("?" if bound["trait_bound"]["modifier"] == "maybe" else "") + path(bound["trait_bound"]["trait"]))
        else:
            parts.append(bound.get("outlives") or "use<…>")
    return " + ".join(parts)


def ty(t):
    if t is None:
        return "()"
    (kind, inner), = t.items()
    if kind == "resolved_path":
        return path(inner)
    if kind in ("generic", "primitive"):
        return inner
    if kind == "borrowed_ref":
        life = inner["lifetime"] + " " if inner["lifetime"] else ""
        return f"&{life}{'mut ' if inner['is_mutable'] else ''}{ty(inner['type'])}"
    if kind == "tuple":
        return f"({', '.join(map(ty, inner))})"
    if kind == "slice":
        return f"[{ty(inner)}]"
    if kind == "array":
        return f"[{ty(inner['type'])}; {inner['len']}]"
    if kind == "impl_trait":
        return f"impl {bounds(inner)}"
    if kind == "dyn_trait":
        traits = [path(bound["trait"]) for bound in inner["traits"]]
        return "dyn " + " + ".join(traits + ([inner["lifetime"]] if inner["lifetime"] else []))
    if kind == "qualified_path":
        return f"{ty(inner['self_type'])}::{inner['name']}"
    if kind == "function_pointer":
        sig = inner["sig"]
        return f"fn({', '.join(ty(t) for _, t in sig['inputs'])}) -> {ty(sig['output'])}"
    return kind


def generics(g):
    params = []
    for param in g["params"]:
        (kind, inner), = param["kind"].items()
        if kind == "lifetime":
            params.append(param["name"])
        elif kind == "type" and not inner["is_synthetic"]:
            params.append(param["name"] + (": " + bounds(inner["bounds"]) if inner["bounds"] else ""))
    return f"<{', '.join(params)}>" if params else ""


def function(name, f):
    inputs = []
    for arg, t in f["sig"]["inputs"]:
        shown = ty(t)
        inputs.append({"Self": "self", "&Self": "&self", "&mut Self": "&mut self"}.get(shown, f"{arg}: {shown}") if arg == "self" else f"{arg}: {shown}")
    out = f" -> {ty(f['sig']['output'])}" if f["sig"]["output"] else ""
    return f"fn {name}{generics(f['generics'])}({', '.join(inputs)}){out}"


def fields(ids, of):
    for field in filter(None, map(item, ids)):
        if field["visibility"] in ("public", "default"):
            lines.add(f"{of}.{field['name']}: {ty(field['inner']['struct_field'])}")


def impls(ids, of):
    for found in filter(None, map(item, ids)):
        body = found["inner"]["impl"]
        if body["is_synthetic"] or body["blanket_impl"]:
            continue
        if body["trait"]:
            lines.add(f"impl{generics(body['generics'])} {path(body['trait'])} for {ty(body['for'])}")
            continue
        for member in filter(None, map(item, body["items"])):
            if member["visibility"] != "public":
                continue
            if "function" in member["inner"]:
                lines.add(function(f"{of}::{member['name']}", member["inner"]["function"]))
            elif "assoc_const" in member["inner"]:
                lines.add(f"const {of}::{member['name']}: {ty(member['inner']['assoc_const']['type'])}")


def walk(id, at, name=None):
    found = item(id)
    if not found or found["visibility"] not in ("public", "default"):
        return
    (kind, inner), = found["inner"].items()
    full = f"{at}{name or found['name']}"
    mark = " (non-exhaustive)" if any("non_exhaustive" in str(a) for a in found["attrs"]) else ""
    if kind == "use":
        target = item(inner["id"]) if inner["id"] is not None else None
        if target and not inner["is_glob"]:
            walk(inner["id"], at, inner["name"])
        elif target:
            for child in target["inner"].get("module", {}).get("items", []):
                walk(child, at)
    elif kind == "module":
        lines.add(f"mod {full}" if name or found["name"] != "ws_supervisor" else "crate")
        inside = "" if found["name"] == "ws_supervisor" else full + "::"
        for child in inner["items"]:
            walk(child, inside)
    elif kind == "struct":
        lines.add(f"struct {full}{generics(inner['generics'])}{mark}")
        (shape, plain), = inner["kind"].items() if isinstance(inner["kind"], dict) else (("unit", None),)
        if shape == "plain":
            fields(plain["fields"], full)
        impls(inner["impls"], full)
    elif kind == "enum":
        lines.add(f"enum {full}{mark}")
        for variant in filter(None, map(item, inner["variants"])):
            of = f"{full}::{variant['name']}"
            shape = variant["inner"]["variant"]["kind"]
            if isinstance(shape, dict) and "tuple" in shape:
                held = [ty(item(f)["inner"]["struct_field"]) for f in shape["tuple"] if f is not None and item(f)]
                lines.add(f"{of}({', '.join(held)})")
            else:
                lines.add(of)
                if isinstance(shape, dict):
                    fields(shape["struct"]["fields"], of)
        impls(inner["impls"], full)
    elif kind == "trait":
        lines.add(f"trait {full}" + (f": {bounds(inner['bounds'])}" if inner["bounds"] else ""))
        for member in filter(None, map(item, inner["items"])):
            if "function" in member["inner"]:
                body = " { … }" if member["inner"]["function"]["has_body"] else ""
                lines.add(function(f"{full}::{member['name']}", member["inner"]["function"]) + body)
    elif kind == "function":
        lines.add(function(full, inner))
    elif kind == "constant":
        lines.add(f"const {full}: {ty(inner['type'])}")
    elif kind == "type_alias":
        lines.add(f"type {full} = {ty(inner['type'])}")


walk(crate["root"], "")
print("\n".join(sorted(lines)))
