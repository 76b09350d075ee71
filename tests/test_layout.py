"""The arrangement of the repository: packages, links, layers, and what a newcomer's first import costs."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"kernels", "audio", "formats"},
    {"features", "kmeans_tools"},
    {"codec"},
    {"corpus", "evaluation"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Importing sideways within a layer is allowed here alone: readers of audio ask formats for bounds and tar headers.
SIDEWAYS: set[tuple[str, str]] = {("audio", "formats")}


def folders():
    return sorted(name for name in LEVEL if (ROOT / name).is_dir())


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("folder", folders())
def test_each_folder_is_linked_and_packaged(folder):
    link = ROOT / "src" / "sctok" / folder
    assert link.is_symlink()
    assert link.resolve() == ROOT / folder
    settings = project()["tool"]["setuptools"]
    assert f"sctok.{folder}" in settings["packages"]
    assert settings["package-dir"][f"sctok.{folder}"] == folder


def test_kernels_cannot_be_imported_by_its_bare_name():
    assert not (ROOT / "kernels" / "__init__.py").exists()


def imported_folders(path):
    """Return the folders of sctok that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            parts = node.module.split(".")
        elif isinstance(node, ast.Import):
            parts = node.names[0].name.split(".")
        else:
            continue
        if parts[0] == "sctok" and len(parts) > 1:
            found.add(parts[1])
    return found & LEVEL.keys()


@pytest.mark.parametrize(
    "path", sorted(p for f in folders() for p in (ROOT / f).glob("*.py")), ids=lambda p: f"{p.parent.name}/{p.name}"
)
def test_imports_point_down(path):
    folder = path.parent.name
    for other in imported_folders(path) - {folder}:
        assert LEVEL[other] < LEVEL[folder] or (folder, other) in SIDEWAYS, f"{folder} imports {other}"


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
