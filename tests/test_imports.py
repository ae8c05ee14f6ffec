"""Rules of the Python package that no tool checks: which way its imports point, and that they go in no circle."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from checkout import ROOT

PACKAGE = ROOT / "python" / "gossamer"
NATIVE = ("_core", "_cuda", "_simt")  # reached from anywhere
LEVELS = (
    ("cli",),
    ("distributed", "evaluation", "serving"),
    ("loading", "finetune"),
    ("zoo", "pruning", "generation", "nn"),
    ("packing", "gpu", "engine"),
    ("checkpoints", "machine"),
    ("arch", "audio", "text", "tokenizer"),
    (
        "errors",
        "files",
        "folders",
        "formats",
        "hashes",
        "importance",
        "kinds",
        "model_files",
        "part_files",
        "pictures",
        "progress",
        "runs",
        "safetensors_io",
        "tables",
    ),
)
# The drop-in stands beside the rest: it reaches these alone. Methods of pruning are there for any matrix.
DROP_IN, REACHED = "torch", ("packing", "gpu", "machine", "pruning", *LEVELS[-1])
ENTRIES = ("__init__", "__main__")  # lead to everything


def imported(module: str, is_package: bool, text: str, *, types: bool = True) -> Iterator[str]:
    """The names below the package that a module imports, wherever it does; each may be a module or a name in one.

    What is imported for annotations alone counts where `types` is true.
    """
    base = module.split(".") if is_package else module.split(".")[:-1]
    tree = ast.parse(text)
    if not types:
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            start = base[: len(base) - node.level + 1] + (node.module.split(".") if node.module else [])
            yield from (".".join([*start, alias.name]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gossamer":
            yield from (".".join([*str(node.module).split(".")[1:], alias.name]) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name[9:] for alias in node.names if alias.name.startswith("gossamer."))


def level(part: str) -> int:
    return next((number for number, parts in enumerate(LEVELS) if part in parts), -1)


def direction_complaints(module: str, targets: Iterable[str]) -> list[str]:
    """Imports that run back up, or reach what the drop-in may not."""
    part = module.split(".", maxsplit=1)[0]
    complaints = []
    for target in targets:
        other = target.split(".")[0]
        if part in ENTRIES or other in (part, *NATIVE, "__version__", ""):
            continue
        if part == DROP_IN:
            wrong = other not in REACHED
        elif other == DROP_IN:
            wrong = part != "cli"
        else:
            wrong = level(part) < 0 or level(other) < level(part)
        if wrong:
            complaints.append(f"{module}: imports {target}; {other} does not stand below {part}")
    return complaints


def circles(edges: dict[str, set[str]]) -> list[str]:
    """The circles that a walk over a graph comes to, as text."""
    found: list[str] = []
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> None:
        if node in path:
            found.append(" -> ".join([*path[path.index(node) :], node]))
        elif node not in done:
            for other in sorted(edges.get(node, ())):
                walk(other, [*path, node])
            done.add(node)

    for node in sorted(edges):
        walk(node, [])
    return found


def read_graph(*, types: bool) -> dict[str, set[str]]:
    """What each module imports, by its name below the package."""
    files: dict[str, Path] = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        files[name.removesuffix(".__init__")] = path
    assert len(files) > 100
    return {
        name: set(imported(name, path.name == "__init__.py" and name != "__init__", path.read_text(), types=types))
        for name, path in files.items()
    }


def test_imports_point_down() -> None:
    graph = read_graph(types=True)
    complaints = [c for module, targets in graph.items() for c in direction_complaints(module, sorted(targets))]
    assert not complaints, "\n".join(complaints)


def test_imports_go_in_no_circle() -> None:
    graph = read_graph(types=False)
    modules = {
        name: {
            other
            for target in targets
            for other in (target, target.rpartition(".")[0])
            if other in graph and other not in (name, "__init__") and not name.startswith(f"{other}.")
        }
        for name, targets in graph.items()
        if name not in ENTRIES
    }
    parts: dict[str, set[str]] = {}
    for name, others in modules.items():
        part = name.split(".")[0]
        parts.setdefault(part, set()).update({other.split(".")[0] for other in others} - {part})
    assert not circles(parts)
    assert not circles(modules)


@pytest.mark.parametrize(
    ("module", "text", "word"),
    [
        ("packing.folder", "from ..generation.model import Model", "generation does not stand below packing"),
        ("errors", "def f():\n    from .folders import home", ""),
        ("arch.llama", "from .. import zoo", "zoo does not stand below arch"),
        ("torch.swap", "from ..cli.output import print_json", "cli does not stand below torch"),
        ("text.x", "import gossamer.loading", "loading does not stand below text"),
        ("stray", "from .errors import GossamerError", "errors does not stand below stray"),
    ],
)
def test_direction_rule_catches(module: str, text: str, word: str) -> None:
    complaints = direction_complaints(module, imported(module, False, text))
    assert [word in complaint for complaint in complaints] == ([True] if word else [])


def test_circle_rule_catches() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a -> b -> c -> a"]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
