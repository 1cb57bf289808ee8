"""A checkout that is not installed, as on clusters: it is on PYTHONPATH, and has no metadata."""

import json
import shutil
import site
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
from programs import ROOT, Place
from tiny import labelled

from instahide_jax import cli
from instahide_jax.version import __version__


def test_the_version_does_not_come_from_metadata(tmp_path, monkeypatch):
    def version(name):
        raise AssertionError(f"asks for the metadata of {name}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.metadata.version", version)
    arrays = labelled(8, (4, 4, 1))
    np.savez(tmp_path / "data.npz", image=arrays.images, label=arrays.labels)
    cli.run(["encrypt", "data.npz", "--out", "a.npz", "--secret-file", "a.secret"])
    described = json.loads(str(np.load(tmp_path / "a.npz")["description"]))
    assert described["instahide_jax"] == __version__
    modules = [*(ROOT / "instahide_jax").rglob("*.py"), ROOT / "train.py", ROOT / "eval.py"]
    assert not [path for path in modules if "importlib.metadata" in path.read_text("utf-8")]


def test_a_checkout_that_is_only_on_the_path(tmp_path):
    """Copied, so that no metadata lie beside it; without the site-packages that have some."""
    checkout, packages = tmp_path / "checkout", tmp_path / "packages"
    checkout.mkdir()
    packages.mkdir()
    shutil.copytree(ROOT / "instahide_jax", checkout / "instahide_jax")
    for program in ("train.py", "eval.py"):
        shutil.copy(ROOT / program, checkout)
    for entry in chain(*(Path(folder).iterdir() for folder in site.getsitepackages())):
        if "instahide" not in entry.name:
            (packages / entry.name).symlink_to(entry)
    place = Place(tmp_path)
    paths = {"PYTHONPATH": f"{checkout}:{packages}"}

    def run(*arguments):
        command = [sys.executable, "-S", *map(str, arguments)]
        return subprocess.run(
            command, cwd=tmp_path, env=place.environment | paths, capture_output=True, text=True
        )

    metadata = "import importlib.metadata as m; m.version('jax'); m.version('instahide-jax')"
    assert "PackageNotFoundError: No package metadata was found for instahide" in (
        run("-c", metadata).stderr
    )
    found = run("-c", "import instahide_jax; print(instahide_jax.__file__)").stdout
    assert Path(found.strip()).is_relative_to(checkout)
    train = run(checkout / "train.py", "tiny.py", "--workdir", "run", "--epochs", "2")
    assert (train.returncode, "Done: 10 steps" in train.stdout) == (0, True), train.stderr
    score = run(checkout / "eval.py", "run", "--encryptions", "1")
    assert (score.returncode, "T=1" in score.stdout) == (0, True), score.stderr
