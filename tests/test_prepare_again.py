"""`instahide prepare` of what is there: the same source, a changed one, none, and --overwrite."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from odd_images import TRANSPARENT
from original_files import (
    cifar10_binary,
    cifar_images,
    idx_bytes,
    labels_of,
    random_images,
    small_sizes,  # noqa: F401 (a fixture: tiny data sets in all tests)
    write_folder,
)
from PIL import Image
from test_movie_reviews import package  # noqa: F401 (a fixture)
from tiny_glue import TINY, write, zipped

from instahide_jax import cli
from instahide_jax.data import image_folder
from instahide_jax.data import prepare as prepare_module
from instahide_jax.data.content import RECORD, Content, SplitContent, differences, digest
from instahide_jax.data.prepare import prepare
from instahide_jax.errors import InputError


def photos(root: Path, count: int = 12) -> Path:
    """Folders dry and wet, each with so many images."""
    for label, name in enumerate(("dry", "wet")):
        (root / name).mkdir(parents=True)
        for index in range(count):
            image = random_images(100 * label + index, 8, 8, 3)
            Image.fromarray(image).save(root / name / f"{index:02d}.png")
    return root


def mnist(root: Path) -> Path:
    """Unpacked idx files, of which no sums are published."""
    root.mkdir()
    for seed, (stem, size) in enumerate({"train": 40, "t10k": 20}.items()):
        images, labels = random_images(seed, size, 28, 28), labels_of(size).astype(np.uint8)
        (root / f"{stem}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (root / f"{stem}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return root


def cifar10(root: Path) -> Path:
    write_folder(root, cifar10_binary())
    return root


def sst2(root: Path) -> Path:
    return write(root, TINY["sst2"])


def one_byte(source: Path, file: str) -> None:
    """Change the last byte of a file."""
    data = (source / file).read_bytes()
    (source / file).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def more_photos(source: Path) -> None:
    shutil.copy(source / "dry" / "00.png", source / "dry" / "99.png")


def other_photo(source: Path) -> None:
    Image.fromarray(random_images(77, 8, 8, 3)).save(source / "wet" / "00.png")


def swapped_photos(source: Path) -> None:
    (source / "dry" / "00.png").rename(source / "x.png")
    (source / "wet" / "00.png").rename(source / "dry" / "00.png")
    (source / "x.png").rename(source / "wet" / "00.png")


def other_class(source: Path) -> None:
    (source / "wet").rename(source / "humid")


def no_test(source: Path) -> None:
    (source / "test.tsv").unlink()


def other_label(source: Path) -> None:
    text = (source / "train.tsv").read_text()
    (source / "train.tsv").write_text(text.replace("\t1\n", "\t0\n"))


Make = Callable[[Path], Path]
CHANGES = [
    ("rainy_days", photos, more_photos, "train has 22 examples, the source 23"),
    ("rainy_days", photos, other_photo, "train has as many examples as the source but others (S"),
    ("rainy_days", photos, swapped_photos, "train has as many examples as the source but others"),
    ("rainy_days", photos, other_class, "its classes of label are dry, wet, the source's dry, hu"),
    ("mnist", mnist, lambda s: one_byte(s, "t10k-images-idx3-ubyte"), "test has as many examples"),
    ("cifar10", cifar10, lambda s: one_byte(s, "data_batch_1.bin"), "train has as many examples "),
    ("glue/sst2", sst2, other_label, "train has as many examples as the source but others"),
    ("glue/sst2", sst2, no_test, "the data set has a split test, the source has none"),
]


@pytest.mark.parametrize(("name", "make", "change", "message"), CHANGES)
def test_a_changed_source(
    name: str, make: Make, change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    source, root = make(tmp_path / "source"), tmp_path / "tfds"
    path = prepare(name, source, root).path
    again = prepare(name, source, root)
    assert not again.built
    assert str(again).endswith(f"of the same examples as {source}")

    kept = {f.name: f.read_bytes() for f in path.iterdir()}
    change(source)
    with pytest.raises(InputError) as caught:
        prepare(name, source, root)
    text = str(caught.value)
    assert text.startswith(f"{path} was made of other examples than those of {source}: {message}")
    assert text.endswith("give --overwrite to build it anew, or another --data-dir to keep both")
    assert {f.name: f.read_bytes() for f in path.iterdir()} == kept

    assert prepare(name, source, tmp_path / "other").built  # the one remedy
    result = prepare(name, source, root, overwrite=True)  # the other
    assert result.built
    assert result.path == path
    assert {f.name: f.read_bytes() for f in path.iterdir()} == {
        f.name: f.read_bytes() for f in (tmp_path / "other" / path.relative_to(root)).iterdir()
    }
    assert not prepare(name, source, root).built
    assert [f.name for f in path.parent.iterdir()] == [path.name]  # nothing is left beside it


@pytest.mark.parametrize(
    ("name", "make"),
    [("rainy_days", photos), ("mnist", mnist), ("cifar10", cifar10), ("glue/sst2", sst2)],
)
def test_a_source_that_is_gone(name: str, make: Make, tmp_path: Path) -> None:
    source, root = make(tmp_path / "source"), tmp_path / "tfds"
    prepare(name, source, root)
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"^--source .*nowhere (does not exist|is no folder)"):
            prepare(name, tmp_path / "nowhere", root, overwrite)
    shutil.rmtree(source)
    with pytest.raises(InputError, match=r"^--source .*source (does not exist|is no folder)"):
        prepare(name, source, root)
    assert not prepare(name, None, root).built  # whoever names no source wants what is there


def test_the_form_of_a_source_does_not_matter(tmp_path: Path) -> None:
    root = tmp_path / "tfds"
    prepare("glue/sst2", sst2(tmp_path / "a"), root)
    assert not prepare("glue/sst2", zipped(tmp_path / "s.zip", TINY["sst2"], "SST-2"), root).built
    assert json.loads((root / "glue/.config/metadata.json").read_text()) == (
        {"default_config_name": "cola"}
    )
    prepare("rainy_days", photos(tmp_path / "b"), root)
    shutil.move(tmp_path / "b", tmp_path / "c")
    assert not prepare("rainy_days", tmp_path / "c", root).built


def test_movie_reviews(package: Path, tmp_path: Path) -> None:  # noqa: F811
    root = tmp_path / "tfds"
    assert prepare("movie-reviews", package, root).built
    for source in (package, None):
        assert not prepare("movie-reviews", source, root).built
    with pytest.raises(InputError, match=r"^cannot read .*nowhere: No such file"):
        prepare("movie-reviews", tmp_path / "nowhere", root)
    with pytest.raises(InputError, match=r"^movie-reviews needs --source .*vader"):
        prepare("movie-reviews", None, root, overwrite=True)
    assert prepare("movie-reviews", package, root, overwrite=True).built


@pytest.mark.parametrize(
    ("name", "make"),
    [("rainy_days", photos), ("mnist", mnist), ("cifar10", cifar10), ("glue/sst2", sst2)],
)
def test_data_sets_without_a_record(name: str, make: Make, tmp_path: Path) -> None:
    """Those of earlier versions, and of TFDS itself."""
    source, root = make(tmp_path / "source"), tmp_path / "tfds"
    path = prepare(name, source, root).path
    (path / RECORD).unlink()
    with pytest.raises(InputError) as caught:
        prepare(name, source, root)
    assert str(caught.value) == (
        f"{path} has no record of its content, as TFDS or an earlier version made it, and cannot "
        f"be compared with {source}; leave --source out to keep it, or give --overwrite to build "
        "it anew"
    )
    assert not prepare(name, None, root).built
    (path / RECORD).write_text("{")
    with pytest.raises(InputError, match=r"made_of\.json cannot be read .*: give --overwrite"):
        prepare(name, source, root)
    assert prepare(name, source, root, overwrite=True).built
    assert not prepare(name, source, root).built


def test_counts_tell_even_without_a_record(tmp_path: Path) -> None:
    source, root = photos(tmp_path / "source"), tmp_path / "tfds"
    (prepare("rainy_days", source, root).path / RECORD).unlink()
    more_photos(source)
    with pytest.raises(InputError, match=": train has 22 examples, the source 23; give --overw"):
        prepare("rainy_days", source, root)


@pytest.mark.parametrize("damage", ["gone", "empty", "cut short"])
def test_records_that_cannot_be_read_are_not_prepared_already(damage: str, tmp_path: Path) -> None:
    source, root = photos(tmp_path / "source"), tmp_path / "tfds"
    path = prepare("rainy_days", source, root).path
    (file,) = path.glob("rainy_days-test*")
    whole = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes(whole[: len(whole) // 2] if damage == "cut short" else b"")
    for again in (source, None):
        with pytest.raises(InputError, match=r"test in .* cannot be decoded \(.+\): give --overw"):
            prepare("rainy_days", again, root)
    prepare("rainy_days", source, root, overwrite=True)
    assert file.read_bytes() == whole
    assert not prepare("rainy_days", source, root).built


def test_images_of_your_own_again(tmp_path: Path) -> None:
    source, root = photos(tmp_path / "source"), tmp_path / "tfds"
    prepare("rainy_days", source, root)
    with pytest.raises(InputError, match="--overwrite needs the images of rainy_days again: give"):
        prepare("rainy_days", None, root, overwrite=True)
    assert prepare("rainy_days", source, root, overwrite=True).built


def test_another_background_gives_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a data set of an earlier version, which took what is transparent for black."""
    source, root = photos(tmp_path / "source"), tmp_path / "tfds"
    assert prepare("rainy_days", source, root).built
    monkeypatch.setattr(image_folder, "BACKGROUND", "black")
    assert not prepare("rainy_days", source, root).built  # none is transparent
    monkeypatch.undo()
    place = next(path for path in source.iterdir() if path.is_dir())
    (place / "drawing.png").write_bytes(TRANSPARENT["rgba png"])
    assert prepare("rainy_days", source, root, overwrite=True).built
    assert not prepare("rainy_days", source, root).built
    monkeypatch.setattr(image_folder, "BACKGROUND", "black")
    with pytest.raises(InputError, match=r"as many examples as the source but others"):
        prepare("rainy_days", source, root)


def test_what_tfds_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretended: TensorFlow is not here. TFDS' own files carry counts alone."""
    monkeypatch.setattr(prepare_module, "_has_tensorflow", lambda: True)
    data = prepare_module.read_official("cifar10", cifar10(tmp_path / "source"), {})
    base = tfds.builder_cls("cifar10")
    asked: list[tuple[Path, Any]] = []

    def pretended(name: str, root: Path) -> Any:
        builder = prepare_module._official_builder(base, data, root)
        plain = builder.download_and_prepare

        def download_and_prepare(**options: Any) -> None:
            asked.append((root, options["download_dir"]))
            plain(**options)

        builder.download_and_prepare = download_and_prepare
        return builder

    monkeypatch.setattr(prepare_module, "_official_download", pretended)
    root = tmp_path / "tfds"
    first = prepare("cifar10", None, root)
    assert first.built
    assert not prepare("cifar10", None, root).built
    assert len(asked) == 1
    assert asked[0][1] == root / "downloads"  # kept for the next time
    with pytest.raises(
        InputError, match=r"cannot be compared with .*source; leave --source out to"
    ):
        prepare("cifar10", tmp_path / "source", root)
    assert prepare("cifar10", None, root, overwrite=True).built
    assert prepare("cifar10", tmp_path / "source", root, overwrite=True).built


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = photos(tmp_path / "source")
    command = ["prepare", "rainy_days", "--source", str(source), "--data-dir", str(tmp_path / "d")]
    for line, *options in (("wrote",), ("already prepared:",), ("wrote", "--overwrite")):
        cli.run([*command, *options])
        assert capsys.readouterr().out.startswith(f"{line} rainy_days 1.0.0 (train 22, test 2)")
    other_photo(source)
    with pytest.raises(InputError, match="give --overwrite to build it anew"):
        cli.run(command)


def test_digests_and_differences() -> None:
    assert len({digest(parts) for parts in (["ab"], ["a", "b"], ["a b"], [b"ab", b""], [])}) == 5
    assert digest(["a", "é"]) == digest([b"a", "é".encode()])
    old = Content({"train": SplitContent(3, "a" * 64), "val": SplitContent(1)}, {"y": ["p", "q"]})
    assert differences(old, old) == []
    assert differences(old, Content({"train": SplitContent(3), "val": SplitContent(1)})) == []
    names = [f"c{i}" for i in range(7)]
    new = Content({"train": SplitContent(3, "b" * 64), "test": SplitContent(1)}, {"y": names})
    assert differences(old, new) == [
        "its classes of y are p, q, the source's c0, c1, c2, c3, c4 and 2 more",
        "train has as many examples as the source but others (SHA-256 aaaaaaaaaaaa and "
        "bbbbbbbbbbbb)",
        "the data set has a split val, the source has none",
        "the source has a split test, the data set has none",
    ]


def test_records_hold_what_they_say(tmp_path: Path) -> None:
    source = cifar10(tmp_path / "source")
    path = prepare("cifar10", source, tmp_path / "tfds").path
    record = json.loads((path / RECORD).read_text())
    images = cifar_images(1, 20)
    parts = [str(images.shape), images.tobytes(), "(20,)", labels_of(20).astype(np.int64).tobytes()]
    assert record["splits"]["test"] == {"examples": 20, "sha256": digest(parts)}
    assert record["classes"]["label"][:2] == ["airplane", "car"]
