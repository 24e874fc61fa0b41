"""Fails when a dependency, as locked, declares a newer Rust than this package promises."""

import json
import sys


def version(text):
    return tuple(int(part) for part in (text + ".0.0").split(".")[:3])


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
promised = version(root["rust_version"])
newer = [
    f"{packages[id]['name']} {packages[id]['version']} needs {packages[id]['rust_version']}"
    for id in seen
    if packages[id]["rust_version"] and version(packages[id]["rust_version"]) > promised
]
print(f"{len(seen)} packages, promised Rust {root['rust_version']}; newer: {newer or 'none'}")
sys.exit(bool(newer))
