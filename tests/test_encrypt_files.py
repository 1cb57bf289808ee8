"""Data sets hidden batch by batch, and files that are whole or absent."""

import json
import re

import chex
import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from programs import short_files
from tiny import CLASSES, labelled, pixels

from instahide_jax import (
    InputError,
    InstaHide,
    SecretKey,
    encrypt,
    encrypt_files,
    insecure_key,
    insecure_secret,
)
from instahide_jax.encrypt_files import (
    _content_digest,
    check_output,
    encrypt_dataset,
    write_encrypted,
)

__all__ = ["short_files"]  # a fixture
SECRET = insecure_secret(11)
SCHEME = InstaHide.inside(k=4, num_classes=CLASSES, mean=(0.5,), std=(0.25,))
ARRAYS = labelled(21, (8, 8, 1))
DATA = {"image": ARRAYS.images, "label": ARRAYS.labels}
CROSS = InstaHide.cross(k=6, num_classes=CLASSES)
SOFT_NAN = np.where(np.arange(21)[:, None] == 2, np.nan, np.eye(CLASSES)[ARRAYS.labels])


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Every call compiles anew; keep what is the same. No secret is closed over."""
    names = ("cache_dir", "cache_max_size")
    before = {f"jax_compilation_{n}": getattr(jax.config, f"jax_compilation_{n}") for n in names}
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()  # else the folder remains in use in the tests of other modules


@pytest.fixture(scope="module", autouse=True)
def one_key_for_many_calls():
    """The calls of a pass share its key and part by row number; JAX's checker calls that reuse."""
    with jax.debug_key_reuse(False):
        yield


def _hidden(data=DATA, pool=None, scheme=SCHEME, secret=SECRET, **settings):
    batches = list(encrypt_dataset(secret, data, pool, scheme=scheme, progress=False, **settings))
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def _assert_equal(a, b):
    np.testing.assert_array_equal(a["image"], b["image"])
    np.testing.assert_array_equal(a["label"], b["label"])


@pytest.fixture(scope="module")
def whole(compiled_once, one_key_for_many_calls):
    """Two passes in batches of the whole set."""
    return _hidden(passes=2, batch_size=21)


def test_equals_one_call_of_encrypt(whole):
    key = SECRET.run(_content_digest(DATA, None, SCHEME)).stream("encrypt_dataset")
    expected = jax.jit(encrypt, static_argnames="scheme")(
        key.fold_in(0), DATA, scheme=SCHEME, rows=np.arange(21, dtype=np.uint32), private_pool=DATA
    )
    _assert_equal({name: values[:21] for name, values in whole.items()}, expected)


@pytest.mark.parametrize("batch_size", [8, 4, 100])
def test_batch_size_changes_nothing(whole, batch_size):
    """With 4, the last batch is a single row, and its partners fewer than k."""
    _assert_equal(_hidden(passes=2, batch_size=batch_size), whole)


def test_memory_maps_are_taken(whole, tmp_path):
    for name, values in DATA.items():
        np.save(tmp_path / f"{name}.npy", values)
    maps = {name: np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in DATA}
    _assert_equal(_hidden(maps, passes=2, batch_size=21), whole)


def test_passes_differ_in_partners_coefficients_and_masks(whole):
    image, label = whole["image"].reshape(2, 21, -1), whole["label"].reshape(2, 21, -1)
    assert (np.abs(np.abs(image[0]) - np.abs(image[1])).max(axis=1) > 0.1).all()
    assert (np.abs(label[0] - label[1]).max(axis=1) > 1e-3).all()
    agreement = (np.sign(image[0]) == np.sign(image[1])).mean()
    assert abs(agreement - 0.5) < 6 * 0.5 / image[0].size ** 0.5


def test_each_image_is_used_num_private_times_in_a_pass():
    """Image i is black but for its pixel i, so a mixture shows what is in it."""
    images = np.zeros((21, 64, 1), np.uint8)
    images[np.arange(21), np.arange(21)] = 255
    data = {"image": images.reshape(21, 8, 8, 1), "label": ARRAYS.labels}
    scheme = InstaHide.mixup(k=3, num_classes=CLASSES)
    made = _hidden(data, scheme=scheme, passes=3, batch_size=8)["image"].reshape(3, 21, 64)
    used = made > made.min() + 1e-3
    np.testing.assert_array_equal(used[:, :, :21].sum(axis=1), 3)
    np.testing.assert_array_equal(used.sum(axis=2), 3)
    assert used[:, np.arange(21), np.arange(21)].all()


def test_public_pool_and_soft_labels():
    soft = np.eye(CLASSES, dtype=np.float32)[ARRAYS.labels]
    pool = pixels(9, 8, 8, 1, seed=5)
    hard = _hidden(DATA, pool, CROSS, batch_size=21)
    as_soft = _hidden(DATA | {"label": soft}, pool, CROSS, batch_size=21)
    mass = hard["label"].sum(axis=1)
    assert ((mass >= 0.3) & (mass < 1)).all()
    assert np.abs(hard["image"] - as_soft["image"]).max() > 0.1  # other data, other keys
    assert as_soft["label"].shape == (21, CLASSES)


def _digests():
    """One per thing that must not share a one-time key with another."""
    flipped = DATA["image"].copy()
    flipped[20, 7, 7, 0] ^= 1
    labels = np.roll(DATA["label"], 1)
    pool = pixels(9, 8, 8, 1, seed=5)
    other = InstaHide.inside(k=4, num_classes=CLASSES, mean=(0.5,), std=(0.5,))
    return {
        "same": _content_digest(DATA, None, SCHEME),
        "one bit": _content_digest(DATA | {"image": flipped}, None, SCHEME),
        "order": _content_digest({n: v[::-1] for n, v in DATA.items()}, None, SCHEME),
        "labels": _content_digest(DATA | {"label": labels}, None, SCHEME),
        "dtype": _content_digest(DATA | {"label": labels.astype(np.int64)}, None, SCHEME),
        "shape": _content_digest(DATA | {"image": flipped.reshape(21, 4, 16, 1)}, None, SCHEME),
        "pool": _content_digest(DATA, pool, SCHEME),
        "another pool": _content_digest(DATA, pool[::-1], SCHEME),
        "scheme": _content_digest(DATA, None, other),
    }


def test_any_change_of_content_gives_other_keys(whole):
    digests = _digests()
    assert len(set(digests.values())) == len(digests)
    changed = DATA | {"image": DATA["image"] ^ np.uint8(1)}
    made = _hidden(changed, batch_size=21)["image"]
    agreement = (np.sign(made) == np.sign(whole["image"][:21])).mean()
    assert abs(agreement - 0.5) < 6 * 0.5 / made.size**0.5
    other_secret = _hidden(secret=insecure_secret(12), batch_size=21)["image"]
    assert np.abs(other_secret - whole["image"][:21]).max(axis=(1, 2, 3)).min() > 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"passes": 0}, "passes is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"scheme": InstaHide.inside(k=22, num_classes=4)}, "22 private images .* there are 21"),
        ({"scheme": InstaHide.cross(k=6, num_classes=4)}, "needs a public pool"),
        ({"scheme": InstaHide.inside(k=4)}, "num_classes"),
        ({"data": DATA | {"name": ARRAYS.labels}}, "released in clear"),
        ({"data": DATA | {"label": ARRAYS.labels[:20]}}, "21 images.* 20 labels"),
        ({"data": DATA | {"label": ARRAYS.labels + 1}}, "label 3 is 4: must be in"),
        ({"data": DATA | {"label": SOFT_NAN}}, "soft label 2 holds NaN, infinity or a negative"),
        ({"scheme": CROSS, "public_pool": DATA["image"][:, :4]}, "public_pool holds uint8 images"),
        ({"public_pool": np.full((9, 8, 8, 1), np.inf)}, "image 0 holds NaN or infinite"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(settings, message):
    with pytest.raises(InputError, match=message):
        encrypt_dataset(SECRET, **{"data": DATA, "scheme": SCHEME} | settings)


def test_nan_pixels_are_refused():
    images = np.ones((21, 8, 8, 1), np.float32)
    images[5, 1, 2, 0] = np.nan
    with pytest.raises(InputError, match="image 5 holds NaN or infinite pixels"):
        _hidden(DATA | {"image": images})


# Files


def _batches(sizes, fail=False):
    rng = np.random.default_rng(0)
    for size in sizes:
        image = rng.normal(size=(size, 4, 4, 1)).astype(np.float32)
        yield {"image": image, "label": rng.random((size, 3)).astype(np.float32)}
    if fail:
        raise RuntimeError("the disk is full")


@pytest.mark.parametrize("name", ["hidden.npz", "hidden.npy"])
def test_files_are_read_by_numpy(tmp_path, name):
    write_encrypted(tmp_path / name, _batches([5, 5, 2]), 12, {"k": 4})
    if name.endswith("npz"):
        with np.load(tmp_path / name, allow_pickle=False) as file:
            image, label, note = file["image"], file["label"], str(file["description"])
        expected_files = ["hidden.npz"]
    else:
        image = np.load(tmp_path / name, mmap_mode="r")
        label = np.load(tmp_path / "hidden.labels.npy")
        note = (tmp_path / "hidden.json").read_text()
        expected_files = ["hidden.json", "hidden.labels.npy", "hidden.npy"]
    expected = list(_batches([5, 5, 2]))
    np.testing.assert_array_equal(image, np.concatenate([b["image"] for b in expected]))
    np.testing.assert_array_equal(label, np.concatenate([b["label"] for b in expected]))
    assert json.loads(note) == {"k": 4}
    assert sorted(p.name for p in tmp_path.iterdir()) == expected_files


@pytest.mark.parametrize("name", ["hidden.npz", "hidden.npy"])
def test_a_failure_half_way_leaves_nothing(tmp_path, name):
    with pytest.raises(RuntimeError, match="disk is full"):
        write_encrypted(tmp_path / name, _batches([5, 5], fail=True), 12, {})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(AssertionError, match="10 encryptions instead of 12"):
        write_encrypted(tmp_path / name, _batches([5, 5]), 12, {})
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_used(tmp_path):
    taken = tmp_path / "taken.npz"
    taken.write_bytes(b"precious")
    for path, message in {
        taken: "exists already; remove it or name another --out",
        tmp_path / "hidden.txt": r"must end in \.npz or \.npy",
        tmp_path / "nowhere" / "hidden.npz": "nowhere does not exist; create it",
        taken / "hidden.npz": "taken.npz does not exist",
    }.items():
        for refuse in (check_output, lambda p: write_encrypted(p, _batches([1]), 1, {})):
            with pytest.raises(InputError, match=message):
                refuse(path)
    assert taken.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir()] == ["taken.npz"]


def test_progress_is_shown(capsys):
    next(encrypt_dataset(SECRET, DATA, scheme=SCHEME, batch_size=21)).keys()
    assert re.search(r"encrypt: +0%.*0/21", capsys.readouterr().err)


@pytest.mark.parametrize("taken", ["out.json", "out.labels.npy", "out.npy"])
def test_no_file_beside_the_images_is_overwritten(tmp_path, taken):
    (tmp_path / taken).write_text("precious")
    for refuse in (check_output, lambda p: write_encrypted(p, _batches([1]), 1, {})):
        with pytest.raises(InputError, match=rf"{taken} exists already; remove it or name another"):
            refuse(tmp_path / "out.npy")
    assert [p.name for p in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "precious"


def test_what_is_no_secret_is_refused_at_the_call():
    for wrong in (0, jax.random.key(0), b"0" * 32):
        with pytest.raises(InputError, match="secret_key"):
            encrypt_dataset(wrong, DATA, scheme=SCHEME)


def test_a_typed_key_will_do():
    key = insecure_key(3)
    chex.assert_trees_all_equal(_hidden(secret=key), _hidden(secret=SecretKey(key)))


def test_negative_soft_labels_are_refused():
    soft = -np.eye(len(DATA["image"]), dtype=np.float32)
    with pytest.raises(InputError, match="soft label 0 holds NaN, infinity or a negative number"):
        encrypt_dataset(insecure_secret(0), {**DATA, "label": soft}, scheme=SCHEME)


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(tmp_path, short_files):
    with pytest.raises(InputError, match=r"cannot write .*: File too large; free space, or name"):
        write_encrypted(tmp_path / "a.npz", _batches([5000]), 5000, {})
    assert not list(tmp_path.iterdir())


def test_another_algorithm_has_other_keys(monkeypatch):
    before = _content_digest(DATA, None, SCHEME)
    monkeypatch.setattr(encrypt_files, "ALGORITHM", encrypt_files.ALGORITHM + 1)
    assert _content_digest(DATA, None, SCHEME) != before
