"""instahide_jax.secret: the file, what a secret never shows, and the keys derived from it."""

import copy
import errno
import io
import logging
import os
import pickle
import pprint
import secrets
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from programs import without_modes

from instahide_jax import (
    InputError,
    InstaHide,
    SecretKey,
    encrypt,
    insecure_secret,
    prng,
    read_secret,
    secret_key,
    write_secret,
)
from instahide_jax.secret import unwrap

KEY = bytes.fromhex("f1e2d3c4b5a69788796a5b4c3d2e1f00ff0110213243545565768798a9bacbdc")


def fixed_secret() -> SecretKey:
    """A new object each time, because the key-reuse check consumes arrays."""
    words = np.frombuffer(KEY, "<u4").copy()
    return SecretKey(jax.random.wrap_key_data(words, impl=prng.chacha20))


def key_bytes(secret: SecretKey) -> bytes:
    return np.asarray(jax.random.key_data(secret.key)).astype("<u4").tobytes()


def shown(text: str, key: bytes = KEY) -> set[str]:
    """Which renderings of a key's words a text contains."""
    words = np.frombuffer(key, "<u4")
    forms = {key.hex(), key.hex(" "), repr(key).lower()}
    for word in words.tolist():
        data = int(word).to_bytes(4, "little")
        forms |= {str(word), str(np.uint32(word).view(np.int32)), data.hex(), data[::-1].hex()}
    return {form for form in forms if form in text.lower()}


# --- the file -------------------------------------------------------------------------------------


def test_a_secret_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "run.secret"
    secret = secret_key()
    write_secret(path, secret)
    assert path.read_text() == key_bytes(secret).hex() + "\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert key_bytes(read_secret(path)) == key_bytes(secret)
    assert not read_secret(path).insecure
    assert list(path.parent.iterdir()) == [path]  # no temporary file is left


def test_a_secret_is_read_through_links(tmp_path: Path) -> None:
    write_secret(tmp_path / "real" / "a.secret", fixed_secret())
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    (tmp_path / "file").symlink_to(tmp_path / "real" / "a.secret")
    for path in (tmp_path / "folder" / "a.secret", tmp_path / "file"):
        assert key_bytes(read_secret(path)) == KEY


def test_an_existing_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run.secret"
    write_secret(path, fixed_secret())
    with pytest.raises(InputError, match=r"run\.secret exists already; name another"):
        write_secret(path, secret_key())
    assert key_bytes(read_secret(path)) == KEY
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o601, 0o644, 0o777])
def test_a_file_open_to_others_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "run.secret"
    write_secret(path, fixed_secret())
    path.chmod(mode)
    remedy = rf"mode {mode:04o}.*at most 0600.*chmod 600.*move it to another file system first"
    with pytest.raises(InputError, match=remedy) as error:
        read_secret(path)
    assert not shown(str(error.value))
    for private in (0o600, 0o400):
        path.chmod(private)
        assert key_bytes(read_secret(path)) == KEY


@pytest.mark.parametrize("function", ["link", "fsync"])
def test_a_killed_write_leaves_nothing(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, function, killed)
    with pytest.raises(KeyboardInterrupt):
        write_secret(tmp_path / "run.secret", secret_key())
    assert list(tmp_path.iterdir()) == []


def test_the_file_gets_its_name_when_it_is_whole_and_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def checked(source: str, target: Path) -> None:
        assert Path(source).read_text() == KEY.hex() + "\n"
        assert Path(source).stat().st_mode & 0o777 == 0o600
        assert not target.exists()
        link(source, target)

    monkeypatch.setattr(os, "link", checked)
    write_secret(tmp_path / "run.secret", fixed_secret())
    assert (tmp_path / "run.secret").exists()


def test_where_no_file_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write a secret below"):
        write_secret(tmp_path / "file" / "run.secret", fixed_secret())

    def unsupported(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "link", unsupported)
    with pytest.raises(InputError, match=r"cannot write secret file .*Read-only file system"):
        write_secret(tmp_path / "run.secret", fixed_secret())
    with pytest.raises(InputError, match="not a secret; keep the seed"):
        write_secret(tmp_path / "run.secret", insecure_secret(5))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_secret_lies_where_no_modes_are_kept(tmp_path: Path) -> None:
    with (
        without_modes(),
        pytest.raises(InputError, match=r"keeps no modes, so others could read run\.secret"),
    ):
        write_secret(tmp_path / "run.secret", fixed_secret())
    assert list(tmp_path.iterdir()) == []


def test_where_no_file_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.secret is missing.*restore the file"):
        read_secret(tmp_path / "no.secret")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_secret(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        KEY.hex()[:-1].encode(),
        KEY.hex()[:-2].encode(),
        KEY.hex().encode() + b"00",
        2 * KEY.hex().encode(),
        KEY.hex().replace("f", "g").encode(),
        KEY,
        KEY.hex().encode("utf-16"),
    ],
)
def test_a_damaged_file_is_refused_and_not_quoted(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.secret"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InputError, match="is damaged: not 64 hexadecimal digits") as error:
        read_secret(path)
    printed = "".join(traceback.format_exception(error.value))
    assert "ValueError" not in printed  # the cause would quote a part of the content
    assert not shown(printed)


# --- nothing shows it -----------------------------------------------------------------------------


def test_the_search_finds_a_shown_key() -> None:
    """The test of the tests below: every way in which a key could be printed is found."""
    words = np.frombuffer(KEY, "<u4")
    key = fixed_secret().key
    renderings = [repr(key), str(key), str(words), repr(words.view(np.int32).tolist())]
    renderings += [KEY.hex(), KEY.hex().upper(), " ".join(map(hex, words.tolist())), repr(KEY)]
    for text in renderings:
        assert shown(text), text
    assert not shown("SecretKey(<redacted>) 0123456789 abcdef")


def test_no_text_of_a_secret_shows_it(caplog: pytest.LogCaptureFixture) -> None:
    secret = fixed_secret()
    logging.getLogger("test").warning("the key is %s, %r", secret, secret)
    texts = [repr(secret), str(secret), f"{secret}", f"{secret!r:>40}", format(secret), caplog.text]
    texts += [pprint.pformat({"key": [secret]}), repr((secret, {"a": secret})), ascii(secret)]
    for text in texts:
        assert "redacted" in text
        assert not shown(text)
    assert "insecure" in repr(insecure_secret(3))
    assert "insecure" not in repr(secret)


def test_a_secret_is_redacted_where_jax_replaces_the_key() -> None:
    secret = fixed_secret()
    for replaced in (
        jax.tree.map(lambda _: PartitionSpec(), secret),
        jax.eval_shape(lambda key: key, secret),
        jax.tree.map(lambda _: np.zeros(3), secret),
        jax.tree.map(lambda _: None, secret),
    ):
        assert repr(replaced) == "SecretKey(<redacted>)"
    traced: list[str] = []
    jax.jit(lambda key: traced.append(repr(key)))(secret)
    assert traced == ["SecretKey(<redacted>)"]
    assert not shown(str(jax.tree.structure(secret)))


@pytest.mark.parametrize(
    "copy_it",
    [pickle.dumps, copy.copy, copy.deepcopy, lambda key: pickle.Pickler(io.BytesIO()).dump([key])],
)
def test_a_secret_is_not_pickled_or_copied(copy_it: Callable[[SecretKey], Any]) -> None:
    with pytest.raises(TypeError, match="not pickled or copied; keep it with write_secret") as info:
        copy_it(fixed_secret())
    assert not shown("".join(traceback.format_exception(info.value)))
    assert not hasattr(fixed_secret(), "__dict__")


def test_errors_do_not_show_a_secret() -> None:
    def twice(secret: SecretKey) -> jax.Array:
        return jax.random.bits(secret.key, (1,)) + jax.random.bits(secret.key, (1,))

    mistakes: list[Callable[[Any], Any]] = [
        lambda secret: jnp.sin(secret),
        lambda secret: secret + 1,
        lambda secret: jax.jit(lambda key: key.key + 1)(secret),
        lambda secret: secret.fold_in(-1),
        lambda secret: secret.run(b"short"),
        lambda secret: unwrap([secret]),
        lambda secret: SecretKey(jax.random.split(secret.key)),
        lambda secret: SecretKey(jax.random.key_data(secret.key)),
        lambda secret: int(secret),
        lambda secret: encrypt(secret, {"image": np.zeros(3), "label": np.zeros(3)}),
        twice,
    ]
    for mistake in mistakes:
        with pytest.raises((TypeError, ValueError, OverflowError, RuntimeError)) as error:
            mistake(fixed_secret())
        assert not shown("".join(traceback.format_exception(error.value)))


def test_no_compiled_program_holds_the_secret(caplog: pytest.LogCaptureFixture) -> None:
    scheme = InstaHide(k=2, num_private=1, num_classes=3)
    batch = {"image": np.zeros((4, 2, 3, 1), np.float32), "label": np.arange(4, dtype=np.int32) % 3}
    pool = np.ones((5, 2, 3, 1), np.float32)

    def hide(secret: SecretKey) -> dict[str, jax.Array]:
        return encrypt(secret, batch, pool, scheme=scheme)

    with caplog.at_level(logging.DEBUG), jax.log_compiles():
        lowered = jax.jit(hide).lower(fixed_secret())
        compiled = lowered.compile()
        compiled(fixed_secret())
    assert "Compiling" in caplog.text
    for text in (lowered.as_text(), compiled.as_text(), caplog.text):
        assert len(text) > 1000
        assert not shown(text)


def test_a_secret_closed_over_would_stand_in_the_program() -> None:
    """Shows that the search above finds a key, and why keys are passed as arguments."""
    secret = fixed_secret()
    lowered = jax.jit(lambda x: x + jax.random.bits(secret.key, (4,), "uint32")).lower(np.uint32(1))
    assert len(shown(lowered.as_text())) >= 8
    assert len(shown(lowered.compile().as_text())) >= 8


# --- keys from it ---------------------------------------------------------------------------------


def test_a_secret_comes_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {key_bytes(secret_key()) for _ in range(50)}
    assert len(keys) == 50
    assert len({word for key in keys for word in np.frombuffer(key, "<u4").tolist()}) > 390
    assert not secret_key().insecure
    asked = []

    def entropy(size: int) -> bytes:
        asked.append(size)
        return KEY

    monkeypatch.setattr(secrets, "token_bytes", entropy)
    assert key_bytes(secret_key()) == KEY
    assert asked == [32]


def test_a_secret_passes_through_transformations() -> None:
    def data(secret: SecretKey) -> jax.Array:
        assert isinstance(secret, SecretKey)
        return jax.random.key_data(secret.key)[None, :]

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    expected = np.frombuffer(KEY, "<u4")
    sharded = jax.shard_map(
        data, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec("data"), check_vma=False
    )
    np.testing.assert_array_equal(jax.jit(data)(fixed_secret())[0], expected)
    for rows in (
        jax.jit(sharded)(fixed_secret()),
        jax.pmap(lambda secret, _: data(secret)[0], in_axes=(None, 0))(
            fixed_secret(), np.arange(8)
        ),
    ):
        np.testing.assert_array_equal(rows, np.tile(expected, (8, 1)))
    returned = jax.jit(lambda secret: secret)(fixed_secret())
    assert isinstance(returned, SecretKey)
    assert key_bytes(returned) == KEY
    clients = jax.tree.map(lambda *keys: jnp.stack(keys), secret_key(), fixed_secret())
    np.testing.assert_array_equal(jax.vmap(data)(clients)[1, 0], expected)


def assert_every_byte_counts(derive: Callable[[bytes], SecretKey]) -> None:
    fingerprint = bytes(range(32))
    keys = {key_bytes(derive(fingerprint))}
    places = range(0, 32, 3)  # every word, and every place within a word
    for place in places:
        changed = bytearray(fingerprint)
        changed[place] ^= 0x80
        keys.add(key_bytes(derive(bytes(changed))))
    assert len(keys) == 1 + len(places)


def test_runs_part_at_any_byte_of_the_fingerprint() -> None:
    secret = fixed_secret()
    assert_every_byte_counts(secret.run)
    with pytest.raises(AssertionError):
        assert_every_byte_counts(lambda fingerprint: secret.run(2 * fingerprint[:16]))
    with pytest.raises(AssertionError):
        assert_every_byte_counts(lambda fingerprint: secret.fold_in(fingerprint[0]))
    for size in (0, 4, 31, 64):
        with pytest.raises(ValueError, match=f"32 bytes, not {size}"):
            secret.run(bytes(size))
    assert key_bytes(secret.run(bytes(32))) != key_bytes(secret_key().run(bytes(32)))


def test_names_numbers_and_runs_give_distinct_keys() -> None:
    secret = fixed_secret()
    children = [secret, secret.run(bytes(32)), secret.stream("train"), secret.stream("evaluate")]
    children += [secret.stream("train").fold_in(i) for i in (0, 1, 2**32 - 1)]
    children += [secret.fold_in(i) for i in (0, 1, np.uint32(2), jnp.uint32(3))]
    assert len({key_bytes(child) for child in children}) == len(children)
    assert key_bytes(secret.stream("train")) == key_bytes(fixed_secret().stream("train"))


def test_the_insecure_mark_is_inherited() -> None:
    for secret, insecure in ((fixed_secret(), False), (insecure_secret(7), True)):
        children = [secret.fold_in(3), secret.stream("train"), secret.run(bytes(32))]
        assert [child.insecure for child in (secret, *children)] == 4 * [insecure]
    assert key_bytes(insecure_secret(2**32 + 5)) != key_bytes(insecure_secret(5))


def test_only_secrets_are_unwrapped() -> None:
    secret = fixed_secret()
    assert unwrap(secret) is secret.key
    assert unwrap(secret.key) is secret.key
    for wrong in (0, KEY, np.frombuffer(KEY, "<u4"), jax.random.key(0), None):
        with pytest.raises(InputError, match=r"secret_key\(\)"):
            unwrap(wrong)
        with pytest.raises(InputError, match=r"secret_key\(\)"):
            SecretKey(wrong)


@pytest.mark.parametrize(
    "number",
    [
        -1,
        2**32,
        np.int64(2**32),
        np.uint64(2**32 + 5),
        jnp.int32(-1),
        1.0,
        np.float32(2),
        True,
        "1",
    ],
)
def test_a_number_that_would_share_anothers_key_is_refused(number):
    with pytest.raises(InputError, match=r"fold_in is given .*; give an integer in \[0, 2\*\*32\)"):
        insecure_secret(0).fold_in(number)


def _words(key):
    return tuple(jax.random.key_data(key).tolist())


def test_numbers_of_every_integer_type_have_the_same_key():
    numbers = [7, np.int64(7), np.uint8(7), np.asarray(7), jnp.int32(7), jnp.uint32(7)]
    keys = {_words(insecure_secret(0).fold_in(n).key) for n in numbers}
    traced = jax.jit(lambda n: insecure_secret(0).fold_in(n).key)(jnp.int32(7))
    keys.add(_words(traced))
    assert len(keys) == 1
    largest = insecure_secret(0).fold_in(np.int64(2**32 - 1))
    assert _words(largest.key) not in keys
