"""Prints a summary of the import graph: modules, imports, cycles, and upward imports.

Imports inside functions count, those for type checkers alone do not. The layers are those of
pyproject.toml.
"""

import graphlib
import sys
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    sys.path.insert(0, str(ROOT))
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    contract = next(c for c in config["contracts"] if c["id"] == "layers")
    graph = grimp.build_graph(
        *config["root_packages"], cache_dir=None, exclude_type_checking_imports=True
    )
    layers = [_layer(text) for text in contract["layers"]]
    upward = graph.find_illegal_dependencies_for_layers(layers, set(contract["containers"]))
    cycle = _module_cycle(graph)
    packages = [m for m in graph.modules if graph.find_children(m)]
    breakers = {edge for package in packages for edge in graph.nominate_cycle_breakers(package)}
    print(f"modules         {len(graph.modules)}")
    print(f"imports         {graph.count_imports()}")
    print(f"cycles          {max(len(breakers), bool(cycle))}")
    print(f"upward imports  {len(upward)}")
    for dependency in upward:
        print(f"  upward: {dependency.importer} -> {dependency.imported}")
    for importer, imported in sorted(breakers):
        print(f"  cycle through {importer} -> {imported}")
    if cycle:
        print(f"  cycle: {' -> '.join(cycle)}")
    return 1 if upward or breakers or cycle else 0


def _layer(text: str) -> grimp.Layer:
    """`a : b` may import each other, `a | b` may not; brackets mark an optional layer."""
    names = [name.strip(" ()") for name in text.replace("|", ":").split(":")]
    return grimp.Layer(*names, independent=":" not in text)


def _module_cycle(graph: grimp.ImportGraph) -> list[str]:
    """One cycle of modules, or []."""
    imports = {m: graph.find_modules_directly_imported_by(m) for m in graph.modules}
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


if __name__ == "__main__":
    sys.exit(main())
