"""The import rules of DESIGN.md, "The house", read from the source: one way, no siblings, no torch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kerple_eval

ROOT = Path(kerple_eval.__file__).parent

#: cli -> run, reports -> scoring, stats, records -> model, checkpoints, protocols, data -> schemes
#: -> kernels, types. A module may import from its own level (but see SIBLINGS) and below.
LEVELS = (
    (
        "__init__",
        "types",
        "catalogue_lines",
        "kernels",
        "files",
        "devices",
        "interrupts",
        "kernel_view",
        "schema",
        "scheme_lines",
        "shares",
    ),  # __init__: its version; its other names are lazy
    ("catalogue",),
    ("schemes",),
    ("model", "protocols", "data"),
    ("checkpoints",),
    (
        "scoring",
        "stats",
        "reductions",
        "cells",
        "records",
        "exchange",
        "explanation",
        "merging",
        "scheme_view",
    ),
    ("crew", "precision"),
    (
        "budget",
        "explanation_command",
        "footprint",
        "forecast",
        "plan",
        "plan_checks",
        "growing",
        "reuse",
        "run",
        "worker",
        "worklist",
        "reports",
        "training",
    ),
    ("commands",),
    ("cli", "mistakes"),
    ("__main__",),
)

#: What the plug-ins of a family share.
PLUG_INS = {
    "schemes": {"adaptive", "base", "composite", "networks", "rotary", "slopes"},
    "protocols": {"base"},
    "checkpoints": {"base", "card", "decoder_model", "extension", "pickle_scan", "pickles", "shipped"},
    "reports": {"blocks", "gathered", "grid", "rows", "sheet", "style", "sums", "words"},
}

#: Not plug-ins: what resolves formats, the page made of the other reports, native folders by name, and
#: the parts of one format.
COMPOSED = {
    "checkpoints.zoo": {"native"},
    "checkpoints.neox": {
        "neox_config",
        "neox_files",
        "neox_release",
        "neox_scheme",
        "neox_tensors",
        "neox_tokenizer",
        "neox_weights",
    },
    "checkpoints.neox_release": {"neox_config", "neox_scheme"},
    "checkpoints.neox_scheme": {"neox_config", "neox_tensors"},
    "checkpoints.neox_tokenizer": {"neox_config", "neox_files"},
    "checkpoints.neox_weights": {"neox_config", "neox_files", "neox_scheme", "neox_tensors"},
    "checkpoints.hf": {
        "hf_config",
        "hf_files",
        "hf_model",
        "hf_native",
        "hf_rope",
        "hf_tokenizer",
        "hf_weights",
    },
    "checkpoints.hf_config": {"hf_files", "hf_rope"},
    "checkpoints.hf_model": {"hf_rope"},
    "checkpoints.hf_tokenizer": {"hf_files"},
    "checkpoints.hf_weights": {"hf_config", "hf_files", "pickles"},
    "reports.curve": {"seeds"},
    "reports.table": {"paper", "seeds"},
    "reports.sections": {
        "answers",
        "compare",
        "curve",
        "depth",
        "explain",
        "intervals",
        "position",
        "ratio",
        "scatter",
        "table",
    },
    "reports.page": {"html", "markdown", "provenance", "sections"},
}

NO_TORCH = (
    "protocols",
    "stats",
    "reductions",
    "explanation",
    "explanation_command",
    "cells",
    "schema",
    "exchange",
    "merging",
    "records",
    "reports",
    "catalogue",
    "scheme_lines",
    "types",
    "files",
    "commands/listing",
    "commands/plot",
    "kernel_view",
)


def modules() -> dict[str, Path]:
    """Dotted name without the package -> file; a package's ``__init__`` by the package's name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


def imports(path: Path, *, at_import_time: bool = False) -> set[str]:
    """Full names a file imports, also inside functions unless only ``at_import_time`` ones are asked."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return  # annotations only
        if at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def internal(path: Path, *, at_import_time: bool = False) -> set[str]:
    """Modules of the package that a file imports."""
    known = modules()
    found = set()
    for name in imports(path, at_import_time=at_import_time):
        if not name.startswith("kerple_eval."):
            continue
        parts = name.removeprefix("kerple_eval.").split(".")
        whole = ".".join(parts)
        parent = ".".join(parts[:-1])
        target = whole if whole in known else parent or "__init__"
        assert target in known, f"{path}: {name}"
        found.add(target)
    return found


def level(module: str) -> int:
    top = module.split(".", maxsplit=1)[0]
    found = [i for i, names in enumerate(LEVELS) if top in names]
    assert len(found) == 1, f"{module}: say at which level of the house it lives"
    return found[0]


def test_the_reader_of_imports_sees_them() -> None:
    assert "run" in internal(ROOT / "commands" / "run.py")
    assert "commands.run" in internal(ROOT / "cli.py")
    assert "commands.run" not in internal(ROOT / "cli.py", at_import_time=True)
    assert len(modules()) > 40


@pytest.mark.parametrize("module", [m for m in modules() if m != "__init__"])
def test_imports_point_one_way(module: str) -> None:
    assert not [other for other in internal(modules()[module]) if level(other) > level(module)]


@pytest.mark.parametrize("module", [m for m in modules() if m.split(".")[0] in PLUG_INS and "." in m])
def test_plug_ins_never_import_a_sibling(module: str) -> None:
    family, _ = module.split(".", 1)
    allowed = PLUG_INS[family] | COMPOSED.get(module, set())
    siblings = {m.split(".", 1)[1] for m in internal(modules()[module]) if m.startswith(family + ".")}
    assert siblings <= allowed


def test_no_cycles() -> None:
    graph = {module: internal(path, at_import_time=True) for module, path in modules().items()}
    done: set[str] = set()

    def walk(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for other in graph[module]:
                walk(other, (*above, module))
            done.add(module)

    for module in graph:
        walk(module, ())


def reached(module: str) -> set[str]:
    """Outside packages that importing a module imports, through the package's own modules."""
    known = modules()
    seen: set[str] = set()
    outside: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        todo += internal(known[name], at_import_time=True)
        todo += [".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 1)]
        outside |= {n.split(".")[0] for n in imports(known[name], at_import_time=True)}
    return outside


@pytest.mark.parametrize(
    "module",
    [m for m in modules() if any(m == n.replace("/", ".") or m.startswith(n + ".") for n in NO_TORCH)],
)
def test_no_torch_below_reports(module: str) -> None:
    everywhere = {name.split(".")[0] for name in imports(modules()[module])}
    assert not everywhere & {"torch", "safetensors"}
    assert not reached(module) & {"torch", "safetensors", "pandas", "tokenizers", "datasets"}


def test_reached_finds_torch_where_it_is() -> None:
    assert "torch" in reached("run")
    assert "torch" in reached("schemes.alibi")


def test_protocols_are_pure_integers() -> None:
    """numpy only where another tool's random draw is repeated; typing and abc say what things are."""
    pure = {"kerple_eval", "__future__", "abc", "collections", "typing"}
    for module, path in modules().items():
        if module.startswith("protocols"):
            allowed = pure | ({"numpy"} if module == "protocols.kerple_release" else set())
            assert not {n.split(".")[0] for n in imports(path)} - allowed
            assert not {n for n in internal(path) if n.split(".")[0] in ("data", "model", "schemes")}
