"""Fails when a dependency, as locked, declares a newer Rust than the one named as the first argument, has a licence that a user
might not take, or comes from elsewhere than the registry; lists those that are there in two versions. The licences are
deny.toml's. A second argument names a file with the output of `cargo tree`: only those packages are looked at."""

import collections
import json
import re
import sys
import tomllib

with open("deny.toml", "rb") as file:
    allowed = set(tomllib.load(file)["licenses"]["allow"])


def version(text):
    return tuple(int(part) for part in (text + ".0.0").split(".")[:3])


def is_allowed(expression):
    """Of an SPDX expression: one side of each OR, both of each AND."""
    expression = expression.replace("/", " OR ").strip()
    while expression.startswith("(") and expression.endswith(")"):
        expression = expression[1:-1].strip()
    for operator, holds in ((" AND ", all), (" OR ", any)):
        parts = re.split(operator + r"(?![^(]*\))", expression)
        if len(parts) > 1:
            return holds(is_allowed(part) for part in parts)
    return expression in allowed


metadata = json.load(sys.stdin)
packages = {package["id"]: package for package in metadata["packages"]}
root = packages[metadata["resolve"]["root"]]
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
seen, waiting = set(), [root["id"]]
while waiting:
    package = waiting.pop()
    if package in seen:
        continue
    seen.add(package)
    for dependency in nodes[package]["deps"]:
        # The examples' and tests' own dependencies are not what a user builds.
        if any(kind["kind"] != "dev" for kind in dependency["dep_kinds"]):
            waiting.append(dependency["pkg"])
used = [packages[id] for id in seen if id != root["id"]]
named = lambda package: f"{package['name']} {package['version']}"
if len(sys.argv) > 2:
    with open(sys.argv[2]) as tree:
        built = {" ".join(line.split()[:2]).replace(" v", " ") for line in tree}
    used = [package for package in used if named(package) in built]
promise = sys.argv[1]
promised = version(promise)
newer = [
    f"{named(package)} needs {package['rust_version']}"
    for package in used
    if package["rust_version"] and version(package["rust_version"]) > promised
]
refused = [f"{named(package)}: {package['license']}" for package in used if not is_allowed(package["license"] or "none")]
foreign = [named(package) for package in used if not (package["source"] or "").startswith("registry+")]
counts = collections.Counter(package["name"] for package in used)
doubles = sorted(name for name, count in counts.items() if count > 1)
print(f"{len(used)} packages, promised Rust {promise}; newer: {newer or 'none'}")
print(f"licences not allowed: {refused or 'none'}; from elsewhere: {foreign or 'none'}; in two versions: {doubles or 'none'}")
sys.exit(bool(newer or refused or foreign))
