"""The rules of the code's layout: imports point one way, files and classes stay small."""

import ast
import functools
import re
from pathlib import Path

import pytest

import vae_lightning

PACKAGE = Path(vae_lightning.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Lowest first; packages in one set may not import each other.
LEVELS = [
    {""},
    {"distributions", "nets", "plotting"},
    {"images", "models"},
    {"explore"},
    {"figures"},
    {"training"},
    {"data"},
    {"metrics"},
    {"cli"},
]

MOST_LINES_OF_A_FILE = 500
MOST_LINES_OF_A_CLASS = 300


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def room(module: str) -> str:
    """The package in which a module is, "" for modules at the top."""
    _, *inner = module.split(".")
    is_package = MODULES.get(module, Path()).name == "__init__.py"
    return inner[0] if len(inner) > 1 or (inner and is_package) else ""


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def walk(node: ast.AST):
    """All nodes, those inside functions too, but not what only a type checker sees."""
    yield node
    children = node.orelse if is_type_checking(node) else ast.iter_child_nodes(node)
    for child in children:
        yield from walk(child)


def at_import(node: ast.AST):
    """Nodes that run when a module is imported: not those inside functions."""
    yield node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return
    children = node.orelse if is_type_checking(node) else ast.iter_child_nodes(node)
    for child in children:
        yield from at_import(child)


def imports(path: Path, nodes=walk) -> set[str]:
    """The modules of this project that a file imports, by their full names."""
    found = set()
    for node in nodes(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.add(full if full in MODULES else base)
    return {name for name in found if name.partition(".")[0] == "vae_lightning"}


def is_exempt(path: Path) -> bool:
    """The entry points at the top see everything."""
    return path.parent == PACKAGE and path.name in ("__init__.py", "__main__.py")


def may_import(importer: str, imported: str) -> bool:
    level = {name: i for i, names in enumerate(LEVELS) for name in names}
    return importer == imported or level[imported] < level[importer]


def test_the_levels_are_all_packages():
    folders = {path.parent.name for path in FILES if path.parent.parent == PACKAGE}
    assert folders | {""} == set().union(*LEVELS)


def test_imports_point_one_way():
    wrong = [
        f"{module} imports {imported}"
        for module, path in MODULES.items()
        if not is_exempt(path)
        for imported in imports(path)
        if imported != "vae_lightning" and not may_import(room(module), room(imported))
    ]
    assert not wrong, "\n".join(wrong)


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """Groups of modules that import each other, by Tarjan's algorithm without recursion limits."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[str] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph[node]:
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(", ".join(sorted(group)))

    for node in graph:
        if node not in order:
            visit(node)
    return found


def test_there_are_no_cycles_between_modules():
    """Importing a module of a package runs the package's ``__init__`` too, which is not counted:
    it imports all modules of its package so that new ones are found."""
    graph = {
        module: imports(path) & MODULES.keys() - {module}
        for module, path in MODULES.items()
        if path.name != "__init__.py"
    }
    graph = {module: {name for name in names if name in graph} for module, names in graph.items()}
    assert not cycles(graph)


def test_cycles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert cycles(graph) == ["b, c"]


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("models", "training", False),
        ("", "models", False),
        ("nets", "distributions", False),
        ("training", "models", True),
        ("cli", "figures", True),
        ("models", "", True),
        ("data", "metrics", False),
    ],
)
def test_directions_are_told_apart(importer, imported, allowed):
    assert may_import(importer, imported) == allowed


def test_imports_inside_functions_count(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from vae_lightning.cli import main\n"
        "else:\n    import vae_lightning.errors\n"
        "def f():\n    from vae_lightning.models import base\n"
    )
    assert imports(file) == {"vae_lightning.errors", "vae_lightning.models.base"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_classes_are_small(path):
    lines = len(path.read_text().splitlines())
    assert lines <= MOST_LINES_OF_A_FILE
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= MOST_LINES_OF_A_CLASS, f"{node.name} has {length} lines"


# Private names of other packages

OTHERS = {"torch", "lightning", "jsonargparse", "zuko", "wandb", "matplotlib", "sklearn", "numpy"}

# Objects of other packages by the names that they usually have.
FOREIGN = re.compile(
    r"^(self\.)?(trainer|pl_module|parser|loop|fit_loop|epoch_loop|strategy|launcher|optimizer"
    r"|logger|loader|callback|action|subparser|scheduler|precision_plugin|plugin|scaler)\b"
)


def private_names(path: Path) -> set[str]:
    """Uses of private names of other packages, as far as they can be told from the text."""
    used = set()
    roots = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in OTHERS:
            used |= {f"{node.module}.{a.name}" for a in node.names if is_private(a.name)}
            if any(is_private(part) for part in (node.module or "").split(".")):
                used.add(node.module or "")
            roots |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in OTHERS:
                    roots.add(alias.asname or alias.name.partition(".")[0])
                    if any(is_private(part) for part in alias.name.split(".")):
                        used.add(alias.name)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            if owner.partition(".")[0] in roots or FOREIGN.match(owner):
                used.add(f"{owner}.{node.attr}")
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("getattr", "hasattr", "setattr")
            and len(node.args) > 1
            and isinstance(node.args[1], ast.Constant)
            and is_private(str(node.args[1].value))
        ):
            owner = ast.unparse(node.args[0])
            if owner.partition(".")[0] in roots or FOREIGN.match(owner):
                used.add(f"{owner}.{node.args[1].value}")
    return used


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def test_private_names_of_others_are_in_one_place():
    allowed = PACKAGE / "training" / "compat.py"
    used = {name_of(path): private_names(path) for path in FILES if path != allowed}
    wrong = [f"{module} uses {name}" for module, names in used.items() for name in sorted(names)]
    assert not wrong, "\n".join(wrong)


def test_private_names_are_found(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        "import torch\nfrom jsonargparse import _common\n"
        "def f(self, trainer):\n"
        "    trainer._x\n    torch.nn._y\n    self._mine\n    getattr(trainer.loop, '_z')\n"
        "    self.trainer._a\n    trainer.__class__\n"
    )
    assert private_names(file) == {
        "jsonargparse._common",
        "trainer._x",
        "torch.nn._y",
        "trainer.loop._z",
        "self.trainer._a",
    }


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_text_files_are_in_utf_8(path):
    """Not in the encoding of the terminal, which differs between machines."""
    for node in walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name not in ("open", "read_text", "write_text") or "Image" in ast.unparse(node.func):
            continue
        modes = [ast.unparse(a) for a in (*node.args, *node.keywords)]
        if any(re.search(r"'\w*b\w*'", mode) for mode in modes) or "os.open" in ast.unparse(node):
            continue
        known = {keyword.arg for keyword in node.keywords}
        assert "encoding" in known, ast.unparse(node)
