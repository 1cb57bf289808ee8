"""Commands on odd folders of images, as they are typed: names of files, what is left out."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from odd_images import FOREIGN, SEVERAL, write_classes
from PIL import Image

from instahide_jax.data.image_folder import arrays_from_folder
from instahide_jax.data.prepare import prepare
from instahide_jax.data.tfds_arrays import load_arrays
from instahide_jax.errors import InputError


def _command(*arguments: str | bytes | Path, **more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "instahide_jax.cli", *arguments]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"} | more  # as in most locales
    return subprocess.run(command, capture_output=True, check=False, env=environment)


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_classes(source, 3)
    for folder in "ab":
        name = os.path.join(os.fsencode(source / folder), b"caf\xe9.gif")
        with open(name, "wb") as file:
            file.write(SEVERAL["GIF"])
    done = _command("prepare", "cafes", "--source", source, "--data-dir", tmp_path / "tfds")
    assert (done.returncode, done.stdout[:20]) == (0, b"wrote cafes 1.0.0 (t"), done.stderr
    assert b"2 files with more than one picture" in done.stdout
    assert rb"a/caf\udce9.gif" in done.stdout
    assert len(load_arrays("cafes", "train", str(tmp_path / "tfds")).labels) == 6
    done = _command("encrypt", source, "--out", tmp_path / "x.npz", "--secret-file", tmp_path / "s")
    assert done.returncode == 0, done.stderr
    assert b"8 encryptions of 8 images of 6x8x3" in done.stdout
    os.rename(source / "a", os.path.join(os.fsencode(source), b"caf\xe9"))
    done = _command("prepare", "again", "--source", source, "--data-dir", tmp_path / "tfds")
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("error: the name of the class folder ")
    assert line.endswith(" is no valid UTF-8: rename it")


def test_names_in_utf8_under_a_locale_that_is_not(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_classes(source, 3, ["caf\u00e9", "\u00e4hre", "zebra"])
    names = ("caf\u00e9", "zebra", "\u00e4hre")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = "import sys; print(sys.getfilesystemencoding())"
    encoding = subprocess.check_output([sys.executable, "-c", code], env=os.environ | plain)
    assert encoding != b"utf-8\n"
    data_dir, out = tmp_path / "tfds", tmp_path / "x.npz"
    done = _command("prepare", "cafes", "--source", source, "--data-dir", data_dir, **plain)
    assert done.returncode == 0, done.stderr
    arrays = load_arrays("cafes", "train", str(data_dir))
    assert (arrays.class_names, sorted(arrays.labels)) == (names, [0, 0, 1, 1, 2, 2])
    here = arrays_from_folder(source).arrays
    labels = {image.tobytes(): label for image, label in zip(here.images, here.labels, strict=True)}
    assert [labels[image.tobytes()] for image in arrays.images] == arrays.labels.tolist()
    secret = tmp_path / "s"
    done = _command("encrypt", source, "--out", out, "--secret-file", secret, **plain)
    assert done.returncode == 0, done.stderr
    with np.load(out) as written:
        assert json.loads(str(written["description"]))["class_names"] == list(names)
    shutil.rmtree(source / "caf\u00e9")
    (source / "caf\u00e9").mkdir()
    done = _command("prepare", "empty", "--source", source, "--data-dir", data_dir, **plain)
    assert (done.returncode, b"holds no images" in done.stderr) == (2, True)


def test_all_commands_say_what_is_left_out(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in "ab":
        (source / folder).mkdir(parents=True)
        for index in range(5):
            blocks = np.random.default_rng(index).integers(0, 256, (30, 40, 3), np.uint8)
            texture = blocks.repeat(5, axis=0).repeat(5, axis=1)
            Image.fromarray(texture).save(source / folder / f"{index}.png")
            (source / "a" / f"{index}.heic").write_bytes(FOREIGN["HEIC"])
    pool = ["--size", "8", "--test-size", "64", "--count", "4", "--min-keypoints", "10"]
    for output, arguments in (
        ("tfds/x_y", ["prepare", "x_y", "--source", source, "--data-dir", tmp_path / "tfds"]),
        (
            "x.npz",
            ["encrypt", source, "--out", tmp_path / "x.npz", "--secret-file", tmp_path / "s"],
        ),
        (
            "p.npy",
            ["prepare", "public-pool", "--source", source, "--out", tmp_path / "p.npy", *pool],
        ),
    ):
        done = _command(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith(b"error: 5 of 15 files are no images that can be read here")
        assert not (tmp_path / output).exists()
        done = _command(*arguments, "--skip-unreadable")
        assert done.returncode == 0, done.stderr
        assert b"left out 5 files (5 HEIC): " in done.stdout


def test_the_option_is_of_folders_alone(tmp_path: Path) -> None:
    for name, source in (("mnist", tmp_path), ("glue/rte", tmp_path), ("imagenet2012", None)):
        with pytest.raises(
            InputError, match="not made of a folder of images, which alone --skip-u"
        ):
            prepare(name, source, tmp_path, skip_unreadable=True)
