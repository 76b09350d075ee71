"""The arrangement of the repository: packages, links, layers, and the imports that `--help` needs."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.masked_cpu import NUMERIC

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"runtime"},
    {"kernels", "audio", "formats"},
    {"features", "kmeans_tools"},
    {"codec"},
    {"training", "corpus", "evaluation"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Importing sideways within a layer is allowed only here: readers of audio ask formats for bounds and tar headers.
SIDEWAYS: set[tuple[str, str]] = {("audio", "formats")}


def folders():
    return sorted(name for name in LEVEL if (ROOT / name).is_dir())


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def rooms(folder):
    """Return a folder and its subfolders that hold modules."""
    return [p for p in (ROOT / folder, *(ROOT / folder).rglob("*")) if p.is_dir() and any(p.glob("*.py"))]


@pytest.mark.parametrize("folder", folders())
def test_each_folder_is_linked_and_packaged(folder):
    link = ROOT / "src" / "sctok" / folder
    assert link.is_symlink()
    assert link.resolve() == ROOT / folder
    settings = project()["tool"]["setuptools"]
    assert settings["package-dir"][f"sctok.{folder}"] == folder
    for room in rooms(folder):
        name = ".".join(["sctok", *room.relative_to(ROOT).parts])
        assert name in settings["packages"], f"{name} is not installed"


def test_kernels_cannot_be_imported_by_its_bare_name():
    assert not (ROOT / "kernels" / "__init__.py").exists()


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in folders()
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def imported_modules(name):
    """Return the modules of sctok that a module imports."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    package = name.split(".")[:-1]
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = package[: len(package) + 1 - node.level] + (node.module.split(".") if node.module else [])
        elif node.module and node.module.split(".")[0] == "sctok":
            base = node.module.split(".")[1:]
        else:
            continue
        targets = {".".join(base), *(".".join([*base, alias.name]) for alias in node.names)}
        found |= targets & MODULES.keys()
    return found


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    folder = name.split(".")[0]
    for other in {each.split(".")[0] for each in imported_modules(name)} - {folder}:
        assert LEVEL[other] < LEVEL[folder] or (folder, other) in SIDEWAYS, f"{folder} imports {other}"


def test_there_is_no_import_circle():
    """Imports inside functions count too: modules that import each other are really one module."""
    open_modules, done = [], set()

    def visit(name):
        assert name not in open_modules, " imports ".join([*open_modules[open_modules.index(name) :], name])
        if name not in done:
            open_modules.append(name)
            for other in sorted(imported_modules(name)):
                visit(other)
            done.add(open_modules.pop())

    for name in MODULES:
        visit(name)


def functions(name):
    """Return the name and the number of lines of each function of a module."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [(node.name, (node.end_lineno or 0) - node.lineno + 1) for node in nodes]


@pytest.mark.parametrize("name", MODULES)
def test_functions_are_short(name):
    limit = 40 if name.startswith("cli.") else 60
    assert not [(function, lines) for function, lines in functions(name) if lines > limit]


def test_each_public_class_name_is_unique():
    found = {}
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(name)
    assert not {name: modules for name, modules in found.items() if len(modules) > 1}


BENCHMARKS = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "benchmarks" / "paper").glob("[ft]*.py")]


@pytest.mark.parametrize("path", sorted(BENCHMARKS), ids=lambda path: path.stem)
def test_a_benchmark_parses_its_arguments(path):
    """Without a parser, `--help` would run the script or print nothing. Modules without a command are in parts/."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert {"ArgumentParser", "parse_args"} <= attributes
    assert any(isinstance(node, ast.Name) and node.id == "__name__" for node in nodes)


def test_help_imports_no_heavy_library():
    code = (
        "import sys; from sctok.cli.app import main\n"
        "code = main(['--help'])\n"
        "heavy = {'torch', 'h5py', 'faiss', 'pyarrow', 'webdataset', 'numpy'} & sys.modules.keys()\n"
        "sys.exit(code or (f'imported {heavy}' if heavy else 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tokenize" in done.stdout


@pytest.mark.parametrize("test", NUMERIC)
def test_a_masked_test_exists(test):
    """The masked run comes last, so a renamed test must be noticed before it."""
    file, _, name = test.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text() if name else (ROOT / file).is_file()
