"""The rules of DESIGN.md, "The house", read from the source: one way, no circle, no siblings, no torch.

Every import counts, those inside functions and under ``TYPE_CHECKING`` too.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

import kerple_eval

ROOT = Path(kerple_eval.__file__).parent

#: One row a room: its floor, counted from the ground. A room imports from its own floor or from below.
ROOMS = {
    "__main__": 8,
    "__init__": 8,
    "cli": 7,
    "api": 7,
    "evaluation": 6,
    "reports": 6,
    "models": 5,
    "stats": 5,
    "records": 4,
    "data": 4,
    "schemes": 3,
    "protocols": 3,
    "support": 2,
    "types": 1,
}

#: A folder of plug-ins -> what they share. Its other modules do not know of each other.
PLUG_INS = {
    "schemes": {
        "adaptive",
        "augmented",
        "base",
        "catalogue",
        "composite",
        "kernels",
        "networks",
        "rotary",
        "slopes",
    },
    "protocols": {"base", "neox_split"},
    "data.synthetic": {"base", "haystack"},
    "reports.figures": {"style"},
    "reports.tables": {"explain_command", "paper", "seeds"},
}

#: Modules in those folders that build, read or write the plug-ins: they may know any of them.
ABOUT_PLUG_INS = {
    "schemes.assembly",
    "schemes.layers",
    "schemes.spelling",
    "protocols.catalogue",
    "data.synthetic.catalogue",
    "data.synthetic.texts",
}

#: Checkpoint formats: each may be a folder of parts, and none knows another.
FORMATS = ("models.hf", "models.neox", "models.native", "models.python")

NO_TORCH = (
    "types",
    "support",
    "protocols",
    "schemes.catalogue",
    "schemes.spelling",
    "schemes.kernel_view",
    "records",
    "stats",
    "reports",
    "cli.listing",
    "cli.plot",
)


@cache
def modules() -> Mapping[str, Path]:
    """Dotted name without the package -> file; a package's ``__init__`` by the package's name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


@cache
def imports(path: Path, *, at_import_time: bool = False) -> frozenset[str]:
    """Full names a file imports; ``at_import_time``: only those that importing the file imports."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        if at_import_time and deferred:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return frozenset(found)


@cache
def internal(module: str, *, at_import_time: bool = False) -> frozenset[str]:
    """Modules of the package that a module imports."""
    known = modules()
    found = set()
    for name in imports(known[module], at_import_time=at_import_time):
        if name == "kerple_eval":
            found.add("__init__")
        if not name.startswith("kerple_eval."):
            continue
        whole = name.removeprefix("kerple_eval.")
        target = whole if whole in known else whole.rpartition(".")[0] or "__init__"
        assert target in known, f"{module}: {name}"
        found.add(target)
    return frozenset(found - {module})


def room(module: str) -> str:
    return module.partition(".")[0]


def circle(graph: Mapping[str, frozenset[str]]) -> str:
    """A circle of imports, as ``a -> b -> a``; empty where there is none."""
    done: set[str] = set()

    def walk(node: str, above: tuple[str, ...]) -> str:
        if node in above:
            return " -> ".join((*above[above.index(node) :], node))
        if node in done:
            return ""
        found = next(filter(None, (walk(other, (*above, node)) for other in sorted(graph[node]))), "")
        done.add(node)
        return found

    return next(filter(None, (walk(node, ()) for node in graph)), "")


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    assert "cli.run" in internal("cli.main")
    assert "cli.run" not in internal("cli.main", at_import_time=True)
    file = tmp_path / "one.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a\ndef f():\n    import b\n"
    )
    assert {"a", "b"} <= imports(file)
    assert not {"a", "b"} & imports(file, at_import_time=True)
    assert len(modules()) > 200


def test_the_package_has_these_rooms_alone() -> None:
    found = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert found == set(ROOMS)
    assert len(set(ROOMS.values())) == 8


def test_imports_point_down() -> None:
    """From its own floor or below; ``__init__`` names what the upper floors have, for users alone."""
    wrong = [
        f"{module} -> {other}"
        for module in modules()
        for other in internal(module)
        if ROOMS[room(other)] > ROOMS[room(module)]
    ]
    assert not wrong


def test_no_circle_of_modules() -> None:
    assert circle({module: internal(module) for module in modules()}) == ""


def test_no_circle_of_rooms() -> None:
    graph: dict[str, set[str]] = {name: set() for name in ROOMS}
    for module in modules():
        graph[room(module)] |= {room(other) for other in internal(module)} - {room(module)}
    assert circle({name: frozenset(others) for name, others in graph.items()}) == ""


def test_a_circle_is_found() -> None:
    graph = {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("b")}
    assert circle(graph) == "b -> c -> b"


def test_plug_ins_never_import_a_sibling() -> None:
    wrong = []
    for folder, shared in PLUG_INS.items():
        inside = [m for m in modules() if m.startswith(folder + ".")]
        for module in inside:
            name = module.removeprefix(folder + ".").partition(".")[0]
            if module in ABOUT_PLUG_INS or name in shared:
                continue
            for other in internal(module):
                sibling = other.removeprefix(folder + ".").partition(".")[0]
                if other in inside and sibling not in {name, *shared}:
                    wrong.append(f"{module} -> {other}")
    assert not wrong


def test_formats_never_import_each_other() -> None:
    def which(module: str) -> str | None:
        return next((f for f in FORMATS if module == f or module.startswith(f + ".")), None)

    wrong = [
        f"{module} -> {other}"
        for module in modules()
        for other in internal(module)
        if which(module) and which(other) and which(module) != which(other)
    ]
    assert not wrong


@cache
def reached(module: str) -> frozenset[str]:
    """Outside packages that importing a module imports, through the package's own modules."""
    seen: set[str] = set()
    outside: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        todo += internal(name, at_import_time=True)
        todo += [".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 1)]
        outside |= {n.split(".")[0] for n in imports(modules()[name], at_import_time=True)}
    return frozenset(outside)


def test_no_torch_where_none_is_needed() -> None:
    for module in modules():
        if not any(module == name or module.startswith(name + ".") for name in NO_TORCH):
            continue
        everywhere = {name.split(".")[0] for name in imports(modules()[module])}
        assert not everywhere & {"torch", "safetensors"}, module
        heavy = reached(module) & {"torch", "safetensors", "pandas", "tokenizers", "datasets"}
        assert not heavy, f"{module}: {heavy}"


def test_reached_finds_torch_where_it_is() -> None:
    assert "torch" in reached("evaluation.run")
    assert "torch" in reached("schemes.alibi")


@pytest.mark.parametrize("module", [m for m in modules() if m.startswith("protocols.")])
def test_protocols_are_pure_integers(module: str) -> None:
    """numpy only where another tool's random draw is repeated, and in an annotation of the base."""
    pure = {"kerple_eval", "__future__", "abc", "collections", "re", "typing"}
    allowed = pure | ({"numpy"} if module in ("protocols.base", "protocols.kerple_release") else set())
    assert not {name.split(".")[0] for name in imports(modules()[module])} - allowed
    assert {room(other) for other in internal(module)} <= {"protocols", "support", "types"}
