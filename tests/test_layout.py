"""Rules of the house: imports point down, files stay short, TensorFlow stays out, keys stay in."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "instahide_jax"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}
PROGRAMS = [
    path for folder in (".", "configs", "scripts") for path in sorted((ROOT / folder).glob("*.py"))
]

# From the bottom up; a module imports from lower layers, or from its own where that is no circle.
LAYERS = [
    ["errors", "arrays", "files", "folders", "memory", "metrics", "scores", "version"],
    ["chance", "device_groups", "distributed"],
    ["prng", "secret", "arguments", "parallel", "placement", "compiled", "boundary", "pictures"],
    ["coefficients", "data"],
    ["encoders", "optimizers", "mixing", "hiding"],
    ["instahide", "texthide", "config", "checkpoint"],
    ["run", "training", "image_data", "dataset_encryption", "encrypt_files"],
    ["task", "image_step", "text_step", "image_evaluation", "text_evaluation"],
    ["image_task", "text_task", "encrypt_command"],
    ["cli"],
]


def _imports(path):
    """Modules of the package that a file imports, wherever the import stands; not for typing."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & set(MODULES) or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in MODULES} | (found & {"instahide_jax"})


def _layer(module):
    name = module.removeprefix("instahide_jax.")
    fits = [
        (len(prefix), level)
        for level, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if name == prefix or name.startswith(f"{prefix}.")
    ]
    assert fits, f"{module} has no place in LAYERS"
    return max(fits)[1]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    for other in _imports(MODULES[module]) - {module}:
        if other == "instahide_jax.cli":  # only for the type of its arguments
            assert "if TYPE_CHECKING:" in MODULES[module].read_text()
            continue
        assert other != "instahide_jax", "a module imports from modules, not from the package"
        assert _layer(other) <= _layer(module), f"{module} imports {other} from above"


def test_no_circles():
    graph = {name: _imports(path) - {name, "instahide_jax.cli"} for name, path in MODULES.items()}
    while graph:
        free = {name for name, needs in graph.items() if not needs & set(graph)}
        assert free, f"a circle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


def test_only_programs_see_configs_and_each_other():
    for path in MODULES.values():
        assert not re.search(r"^\s*(from|import) (configs|train|eval)\b", path.read_text(), re.M)


@pytest.mark.parametrize("path", [*MODULES.values(), *PROGRAMS], ids=lambda p: p.stem)
def test_files_are_short_and_say_what_they_are(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 410
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"


@pytest.mark.parametrize("path", [*MODULES.values(), *PROGRAMS], ids=lambda p: p.stem)
def test_nothing_prints_a_key(path):
    """No print, log, message or f-string is given a key's words."""
    for node in ast.walk(ast.parse(path.read_text())):
        shown = []
        if isinstance(node, ast.FormattedValue):
            shown = [node.value]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("print", "repr", "str") or name.startswith(("_log.", "logging.")):
                shown = node.args
        for value in shown:
            text = ast.unparse(value)
            assert not re.search(r"key_data|\bdata\.hex|\.key\b|^secret$|\b_key\b", text), text


def test_nothing_imports_tensorflow():
    """Not even the data modules, whose TFDS imports it where it can."""
    code = (
        "import sys, pkgutil, importlib, instahide_jax\n"
        "for m in pkgutil.walk_packages(instahide_jax.__path__, 'instahide_jax.'):\n"
        "    importlib.import_module(m.name)\n"
        "import tensorflow_datasets\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'torch')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_public_names_are_there():
    import instahide_jax

    assert sorted(instahide_jax.__all__) == list(instahide_jax.__all__)
    assert all(hasattr(instahide_jax, name) for name in instahide_jax.__all__)
