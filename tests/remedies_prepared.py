"""Cases of `remedies`: prepared data sets, what reads them, and public pools."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny
from photos import SMALL, textured
from PIL import Image
from prepared import write_rows
from programs import files_up_to
from remedies import case, refused
from remedies_folders import NoMemory, photos
from remedies_images import GREY, LABELS

from instahide_jax import cli
from instahide_jax.data import prepare as prepare_module
from instahide_jax.data import tfds_arrays
from instahide_jax.data.embedded import (
    make_arrays,
)
from instahide_jax.data.pool_files import pool_files
from instahide_jax.data.prepare import prepare
from instahide_jax.data.public_pool import PoolParameters, build_public_pool, load_public_pool
from instahide_jax.data.sources import PoolHeldOut, PoolTfds, TfdsImages, TfdsStream, hold_out
from instahide_jax.data.tfds_arrays import load_arrays
from instahide_jax.data.tfds_io import open_split


@case
def preparing(place: Path) -> None:
    source, root = photos(place / "photos"), place / "d"
    with refused("lower-case words joined by underscores, such as chest_xray"):
        prepare("Chest-X", source, root)
    with refused("choose another name for"):
        prepare("svhn_cropped", source, root)
    path = prepare("chest_xray", source, root).path
    shutil.copy(source / "a" / "0.png", source / "a" / "9.png")
    with refused("give --overwrite to build it anew, or another --data-dir to keep both"):
        prepare("chest_xray", source, root)
    prepare("chest_xray", source, place / "e")
    prepare("chest_xray", source, root, overwrite=True)
    record = path / "made_of.json"
    record.unlink()
    with refused("leave --source out to keep it, or give --overwrite to build it anew"):
        prepare("chest_xray", source, root)
    prepare("chest_xray", None, root)
    record.write_text("{")
    with refused("give --overwrite to build the data set anew"):
        prepare("chest_xray", source, root)
    prepare("chest_xray", source, root, overwrite=True)
    info = path / "dataset_info.json"
    for damage, message in (
        (lambda text: text.replace("array_record", "tfrecord"), "as tfrecord, which needs Tens"),
        (lambda _: "x", "exists but is no data set"),
    ):
        info.write_text(damage(info.read_text()))
        with refused(message, "--overwrite", "choose another --data-dir"):
            prepare("chest_xray", source, root)
        prepare("chest_xray", source, root, overwrite=True)
    with refused("again: give their folder with --source"):
        prepare("chest_xray", None, root, overwrite=True)
    prepare("chest_xray", source, root, overwrite=True)
    Path("file").write_text("no folder")
    with refused("cannot prepare", "free space, or choose another --data-dir"):
        prepare("chest_xray", source, place / "file")
    prepare("chest_xray", source, place / "f")


@case
def downloads(place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "_has_tensorflow", lambda: False)
        with refused("pip install -e '.[tfds]', or give its original files with --source"):
            prepare("cifar10", None, place / "d")
        with refused("did you mean 'cifar10'?"):
            prepare("cifar1", None, place / "d")
        patch.setattr(prepare_module, "_has_tensorflow", lambda: True)
        temporary = place / "temporary"
        temporary.mkdir()
        patch.setattr("tempfile.tempdir", str(temporary))
        for unknown in ("cifar10/x", "cifar10:9.9.9"):
            with refused("name another configuration or version, or none"):
                prepare(unknown, None, place / "d")
        assert not list(temporary.iterdir())
        manual = place / "d" / "downloads" / "manual"
        with refused(f"must be downloaded by hand, into {manual}"):
            prepare("imagenet2012", None, place / "d")
        built: list[str] = []

        def run_builder(*_: Any, **__: Any) -> Any:
            built.append("tried")
            if len(built) == 1:
                raise prepare_module.DownloadError("gone")
            return "built"

        patch.setattr(prepare_module, "run_builder", run_builder)
        manual.mkdir(parents=True)
        (manual / "archive").write_text("by hand")
        with refused("try again"):
            prepare("imagenet2012", None, place / "d")
        assert prepare("cifar10", None, place / "d") == "built"


@case
def prepared_images(place: Path) -> None:
    tiny.write_tfds("d", "tiny", {"train": tiny.labelled(12), "test": tiny.labelled(4)})
    prepare("mixed", photos(place / "mixed", (8, 8), (9, 7), (8, 9)), place / "d")
    for bad, message, good in (
        (("tinny", "train"), "did you mean 'tiny'?", ("tiny", "train")),
        (("ti ny", "train"), "expected NAME, NAME/CONFIG or NAME:VERSION", ("tiny", "train")),
        (("tiny", "tset"), "available are train, test", ("tiny", "test")),
        (("tiny", "test[:9]"), "take fewer, at most test[:4]", ("tiny", "test[:4]")),
        (("tiny", "test[:0]"), "available are train, test", ("tiny", "test[:1]")),
        (("tiny:2.0.0", "train"), "available are 1.0.0", ("tiny:1.0.0", "train")),
        (("tiny/x", "train"), "name one of tiny", ("tiny", "train")),
        (("cifar10", "train"), "run `instahide prepare cifar10 --data-dir d`", ("tiny", "train")),
        (("mixed", "train"), "resize in a config, --size of", ("mixed", "train", "d", 6)),
        (("tiny", "train+train"), "name every record once", ("tiny", "train")),
    ):
        name, split = bad
        with refused(message):
            load_arrays(name, split, "d")
        load_arrays(*good[:2], "d", *good[3:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds_arrays, "np", NoMemory())
        with refused("take a part, such as train[:10%], or stream it (TfdsStream)"):
            load_arrays("tiny", "train", "d")
    load_arrays("tiny", "train[:10%]", "d")
    with refused("which is no valid UTF-8: name another folder"):
        load_arrays("tiny", "train", os.fsdecode(b"d\xe9"))
    with refused("an address; name a local path: mount or copy"):
        load_arrays("tiny", "train", "gs://bucket/d")
    path = place / "d" / "mixed" / "1.0.0"

    def anew() -> None:
        command = ["prepare", "mixed", "--overwrite", "--source", "mixed", "--data-dir", "d"]
        cli.run(command)
        load_arrays("mixed", "test", "d", 6)

    record = next(path.glob("*test.array_record*"))
    record.unlink()
    with refused("run `instahide prepare mixed --overwrite`, with --source and --data-dir as"):
        load_arrays("mixed", "test", "d", 6)
    anew()
    record.write_bytes(b"x" * record.stat().st_size)
    with refused("prepare the data set anew with `instahide prepare ... --overwrite`"):
        load_arrays("mixed", "test", "d", 6)
    anew()
    info = path / "dataset_info.json"
    for text in ("x", info.read_text().replace("array_record", "tfrecord")):
        info.write_text(text)
        with refused("run `instahide prepare mixed --overwrite`, with --source and --data-dir as"):
            load_arrays("mixed", "test", "d", 6)
        anew()


@case
def other_prepared_sets(place: Path) -> None:
    image, label = tfds.features.Image, tfds.features.ClassLabel(num_classes=2)
    for number, (features, message) in enumerate(
        (
            ({"label": label}, 'needs "image", "label"; choose another'),
            ({"image": np.float32, "label": label}, "expected uint8 (H, W, C); choose another"),
            (
                {"image": tfds.features.Tensor(shape=(8, 8, 5), dtype=np.uint8), "label": label},
                "expected 1, 3 or 4; choose another",
            ),
            ({"image": image(shape=(8, 8, 1)), "label": np.int64}, "expected classes (ClassLab"),
        )
    ):
        _write_tfds(f"odd{number}", features)
        with refused(message):
            open_split(f"odd{number}", "train", "d")
    tiny.write_tfds("d", "tiny", {"train": tiny.labelled(12), "test": tiny.labelled(4)})
    load_arrays("tiny", "train", "d")


def _write_tfds(name: str, features: dict[str, Any]) -> None:
    row = {"image": np.zeros((8, 8, 5), np.uint8), "label": 0}
    if "image" in features and not isinstance(features["image"], tfds.features.Tensor):
        row["image"] = np.float32(0)
    if type(features.get("image")) is tfds.features.Image:
        row["image"] = prepare_module.encode_png(np.zeros((8, 8, 1), np.uint8))
    write_rows("d", name, features, {"train": [{key: row[key] for key in features}]})


@case
def sources_of_images(place: Path) -> None:
    tiny.write_tfds("d", "tiny", {"train": tiny.labelled(12), "test": tiny.labelled(4)})
    prepare("mixed", photos(place / "mixed", (8, 8), (9, 7), (8, 9), (8, 8)), place / "d")
    one = make_arrays(GREY, np.zeros(6, int), 2, "ab")
    tiny.write_tfds("d", "one", {"train": one, "test": one})
    data = TfdsImages(name="tiny", validation=4, data_dir="d")
    dataset = data.load()
    for bad, message, good in (
        ({"validation": 0}, "hold out at least 1 image", {"validation": 1}),
        ({"validation": 12}, "hold out at most 11", {"validation": 5}),
        ({"name": "one"}, "give two classes", {"name": "tiny"}),
        (
            {"name": "mixed", "validation": 1, "test": "test[:1]", "train": "test[1:]"},
            "scale both with data.resize",
            {"name": "mixed", "validation": 1, "test": "test[:1]", "train": "train", "resize": 6},
        ),
    ):
        if bad.get("name") != "mixed":
            with refused(message):
                replace(data, **bad).load()
        replace(data, **good).load()
    with refused("training images are (8, 8, 3), test images (6, 6, 3)", "data.resize"):
        tiny.write_tfds("d", "two", {"train": tiny.labelled(12), "test": tiny.labelled(4)})
        with pytest.MonkeyPatch.context() as patch:
            loaded = {"train": tiny.labelled(12), "test": tiny.labelled(4, (6, 6, 3))}
            patch.setattr(
                "instahide_jax.data.sources.load_arrays", lambda name, split, *_: loaded[split]
            )
            replace(data, name="two").load()
    with refused("give more examples"):
        hold_out(make_arrays(GREY[:1], LABELS[:1], 3, "abc"), 1)
    hold_out(make_arrays(GREY[:2], LABELS[:2], 3, "abc"), 1)
    stream = TfdsStream(
        name="tiny", train="train[:8]", validation="train[8:]", mean=(0.5,), std=(0.5,),
        data_dir="d", test="test", resize=8,
    )  # fmt: skip
    with refused("in memory only; use PoolFile"):
        PoolHeldOut(2).load(stream.load(), (8, 8, 3))
    PoolHeldOut(2).load(dataset, (8, 8, 3))
    pool = PoolTfds("tiny", data_dir="d")
    with refused("scale them with public_pool.resize (PoolTfds) or data.resize, or take a pool"):
        pool.load(dataset, (6, 6, 3))
    replace(pool, resize=6).load(replace(data, resize=6).load(), (6, 6, 3))


@case
def public_pools(place: Path) -> None:
    for bad, message, good in (
        ({"size": 0}, "must be at least 1, got 0", {"size": 1}),
        ({"test_size": 8, "size": 9}, "at least size (9), got 8", {"test_size": 9, "size": 9}),
        ({"channels": 2}, "must be 1 or 3, got 2", {"channels": 1}),
    ):
        with refused(message):
            PoolParameters(**bad)
        PoolParameters(**good)
    source, out = Path("photos"), Path("p.npy")
    with refused("give a folder of photographs"):
        build_public_pool(source, out, SMALL)
    source.mkdir()
    with refused("give another --source or fewer patterns"):
        build_public_pool(source, out, SMALL)
    textured(0).save(source / "a.png")
    with refused("or fewer patterns"):
        build_public_pool(source, out, replace(SMALL, exclude=("*",)))
    with refused("'./b.png' matches no file", "patterns of paths from there"):
        build_public_pool(source, out, replace(SMALL, exclude=("./b.png",)))
    textured(1).save(source / "b.png")
    build_public_pool(source, Path("a.npy"), replace(SMALL, exclude=("b.png",)))
    (source / "b.png").unlink()
    with refused("no photo of at least 999 pixels", "or lower --test-size"):
        build_public_pool(source, out, replace(SMALL, test_size=999))
    with refused("it must end in .npy"):
        build_public_pool(source, Path("p.npz"), SMALL)
    with refused("lower --count to at most"):
        build_public_pool(source, out, replace(SMALL, count=10**11))
    for lower in ({"min_keypoints": 10_000}, {"min_keypoints": 10_000, "count": 1}):
        with refused("add photos with more detail, or lower --min-keypoints or --count"):
            build_public_pool(source, out, replace(SMALL, **lower))
    for name, content in (("b.png", b"no image"), ("b.png", _sixteen_bits())):
        (source / name).write_bytes(content)
        with refused("remove the file" if content == b"no image" else "reduce more than 8 bits"):
            build_public_pool(source, out, SMALL)
        (source / name).unlink()
    Path("p.png").write_text("precious")
    with refused("move it or choose another --out"):
        build_public_pool(source, out, SMALL)
    Path("p.png").rename("q.png")
    with refused("cannot write", "choose another --out"):
        build_public_pool(source, Path("q.png/p.npy"), SMALL)
    with files_up_to(1000), refused("cannot write p.npy", "free space, or choose another --out"):
        build_public_pool(source, out, SMALL)
    build_public_pool(source, out, SMALL)
    with refused("its seed is 0, not 1; give --overwrite to build it anew, or choose another"):
        build_public_pool(source, out, replace(SMALL, seed=1))
    build_public_pool(source, Path("r.npy"), replace(SMALL, seed=1))
    build_public_pool(source, out, replace(SMALL, seed=1), overwrite=True)


def _sixteen_bits() -> bytes:
    Image.fromarray(np.full((99, 99), 999, np.uint16)).save("x.png")
    return Path("x.png").read_bytes()


@case
def public_pools_that_are_loaded(place: Path) -> None:
    textured(0).save("a.png")
    source, out = place / "photos", place / "p.npy"
    source.mkdir()
    Path("a.png").rename(source / "a.png")

    def remedy(shape: tuple[int, int, int], made: Path, *message: str) -> None:
        """Run the command that the message names, then give what it made."""
        try:
            load_public_pool(out, shape)
        except ValueError as error:
            text = str(error)
        command = text.partition("build one with: instahide ")[2].replace("FOLDER", str(source))
        with refused(*message):
            load_public_pool(out, shape)
        cli.run([*command.split(), "--count", "4", "--min-keypoints", "10", "--test-size", "64"])
        load_public_pool(made, shape)
        if made != out:
            for path in pool_files(made):
                path.unlink()

    other = Path("ANOTHER.npy")
    remedy((8, 8, 3), out, "p.npy does not exist")
    remedy((6, 6, 1), other, "the private images are (6, 6, 1)")
    out.write_bytes(b"damaged")
    remedy((8, 8, 3), other, "p.npy cannot be decoded")
    np.save(out, np.zeros(3))
    remedy((6, 6, 1), other, "expected uint8 [M, H, W, C]")
    np.save(out, np.zeros((4, 6, 6, 1), np.uint8))
    remedy((6, 6, 1), other, "describes another pool than")
    out.with_suffix(".json").unlink()
    with refused("no .json beside it says that it is a pool; move it or choose another --out"):
        build_public_pool(source, out, SMALL, overwrite=True)
    build_public_pool(source, Path("new.npy"), SMALL, overwrite=True)
    out.with_suffix(".json").write_text("{")
    with refused("move it away, and the array beside it is taken as it is"):
        load_public_pool(out, (6, 6, 1))
    out.with_suffix(".json").rename("away.json")
    load_public_pool(out, (6, 6, 1))
    for pool, shape, message in (
        (np.zeros((4, 3, 6, 8), np.uint8), (6, 8, 3), "save np.transpose(pool, (0, 2, 3, 1)) inst"),
        (np.zeros((4, 6, 8), np.uint8), (6, 8, 1), "save pool[..., None] instead"),
    ):
        np.save("turned.npy", pool)
        with refused(message):
            load_public_pool(Path("turned.npy"), shape)
        turned = pool[..., None] if pool.ndim == 3 else np.transpose(pool, (0, 2, 3, 1))
        np.save("turned.npy", turned)
        load_public_pool(Path("turned.npy"), shape)
    with refused("save one with numpy.save: uint8 [M, 6, 8, 1]"):
        load_public_pool(out, (6, 8, 1))
    np.save("own.npy", np.zeros((4, 6, 8, 1), np.uint8))
    load_public_pool(Path("own.npy"), (6, 8, 1))
