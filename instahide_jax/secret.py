"""The owner's secret: made from OS entropy, kept in a private file, never shown.

Key hierarchy: secret -> fingerprint of data and configuration -> purpose -> pass -> row. The
fingerprint makes it impossible for two runs that differ in data or configuration to derive the same
one-time key, even from the same secret file: their keys part at the first step.
"""

import errno
import operator
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instahide_jax import prng
from instahide_jax.errors import InputError
from instahide_jax.files import new_private_file, without_detours

# What os.link says on file systems without hard links.
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP}
SECRET_BYTES = 32
# Number of the way in which keys become draws and draws become mixtures. Whoever changes either
# raises it: a key then never hides by the new way what it has hidden by the old one.
ALGORITHM = 2


@jax.tree_util.register_pytree_node_class
class SecretKey:
    """A typed ChaCha20 key, shape [], that does not print, pickle or copy itself into text.

    It is a pytree with the key as its only leaf, so it passes through `jit`, `vmap` and `shard_map`
    as an argument. Never close over one: a closed-over key stands in the compiled program in clear.
    """

    __slots__ = ("_key",)

    def __init__(self, key: jax.Array):
        """Wrap a typed key.

        Raises:
          InputError: if it is not a ChaCha20 key (see `prng.check_secret_key`).
        """
        prng.check_secret_key(key)
        self._key = key

    @property
    def key(self) -> jax.Array:
        """The typed key itself, for `jax.random`; its repr shows the key's words."""
        return self._key

    @property
    def insecure(self) -> bool:
        """Whether the key stems from an integer seed (`prng.insecure_key`)."""
        return prng.is_insecure(self._key)

    def fold_in(self, number: Any) -> "SecretKey":
        """The child key of a number in [0, 2**32), an integer or an integer array of shape [].

        Raises:
          InputError: for another value, which would share its key with one in range.
        """
        if isinstance(number, jax.core.Tracer):  # of which the dtype alone is known
            in_range = number.dtype.kind in "iu" and number.dtype.itemsize <= 4
        else:
            try:
                in_range = 0 <= operator.index(number) < 2**32 and not isinstance(number, bool)
            except TypeError:
                in_range = False
        if not in_range:
            raise InputError(f"fold_in is given {number!r}; give an integer in [0, 2**32)")
        return SecretKey(jax.random.fold_in(self._key, jnp.asarray(number, jnp.uint32)))

    def stream(self, name: str) -> "SecretKey":
        """The child key of a named purpose."""
        return SecretKey(prng.stream(self._key, name))

    def run(self, fingerprint: bytes) -> "SecretKey":
        """The child key of one run, from all 256 bits of its fingerprint (`run_fingerprint`)."""
        if len(fingerprint) != 32:
            raise ValueError(f"a fingerprint has 32 bytes, not {len(fingerprint)}")
        return SecretKey(prng.fold_words(self._key, np.frombuffer(fingerprint, "<u4").tolist()))

    def __repr__(self) -> str:
        # JAX puts shapes and partition specs in the place of keys, and prints them in its errors.
        mark = ", insecure" if prng.is_key(self._key) and self.insecure else ""
        return f"SecretKey(<redacted{mark}>)"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a SecretKey is not pickled or copied; keep it with write_secret(path, key)"
        )

    def tree_flatten(self) -> tuple[tuple[Any], None]:
        return (self._key,), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Iterable[Any]) -> "SecretKey":
        # JAX also unflattens with placeholders that are no keys, so nothing is checked here.
        self = object.__new__(cls)
        (self._key,) = children
        return self


def secret_key() -> SecretKey:
    """A new secret of 256 bits from the operating system's entropy."""
    return _from_bytes(secrets.token_bytes(SECRET_BYTES))


def insecure_secret(seed: int) -> SecretKey:
    """The key of an integer seed in a `SecretKey`, for experiments that protect nothing."""
    return SecretKey(prng.insecure_key(seed))


def unwrap(key: Any) -> jax.Array:
    """The typed ChaCha20 key of a `SecretKey` or of a bare key; refuses everything else."""
    if isinstance(key, SecretKey):
        return key.key
    prng.check_secret_key(key)
    return key


def _from_bytes(data: bytes) -> SecretKey:
    words = jnp.asarray(np.frombuffer(data, "<u4").copy())
    return SecretKey(jax.random.wrap_key_data(words, impl=prng.chacha20))


def write_secret(path: str | Path, secret: SecretKey) -> None:
    """Write a secret to a new file of mode 0600: 64 hexadecimal digits and a line feed.

    The file appears whole or not at all, and an existing file is never replaced: the data hidden
    under its secret could not be hidden the same way again.

    Raises:
      InputError: if the file exists or cannot be written, its file system keeps no modes, or the
        key is an insecure one.
    """
    path = without_detours(Path(path))
    if secret.insecure:
        raise InputError("a key from an integer seed is not a secret; keep the seed instead")
    data = np.asarray(jax.random.key_data(secret.key)).astype("<u4").tobytes()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = new_private_file(path)
    except OSError as error:
        raise InputError(
            f"cannot write a secret below {path.parent}: {error.strerror}; name another place"
        ) from None
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(data.hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        _put(temporary, path)
    except FileExistsError:
        raise InputError(f"secret file {path} exists already; name another one") from None
    except OSError as error:
        raise InputError(
            f"cannot write secret file {path}: {error.strerror}; free space, or name another one"
        ) from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def _put(temporary: str, path: Path) -> None:
    """Give a file its name, unless there is one of that name: then `FileExistsError`."""
    try:
        os.link(temporary, path)  # unlike rename, fails where the name exists
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # FAT, some network and FUSE file systems. An empty file takes the name, which fails where
        # it exists, and is replaced by the whole one.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            os.rename(temporary, path)
        except BaseException:
            path.unlink()
            raise


def read_secret(path: str | Path) -> SecretKey:
    """Read a file of `write_secret`.

    Raises:
      InputError: if the file is missing, is not a file, can be read or written by others (mode &
        0o077), or does not hold 64 hexadecimal digits. The content is never quoted.
    """
    path = without_detours(Path(path))
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())  # of the opened file: no race with a rename
            content = file.read(4 * SECRET_BYTES)
    except FileNotFoundError:
        raise InputError(
            f"secret file {path} is missing; without it this run's data cannot be hidden as "
            "before: restore the file, or start a new run in another folder"
        ) from None
    except OSError as error:
        raise InputError(
            f"secret file {path} cannot be read: {error.strerror}; mend that, or name another one"
        ) from None
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise InputError(
            f"secret file {path} has mode {mode:04o}, so others may read it (at most 0600); "
            f"run 'chmod 600 {path}' (where that has no effect, move it to another file system "
            "first), and renew the secret if others may have read it"
        )
    try:
        data = bytes.fromhex(content.decode("ascii"))
    except ValueError:  # from None: the message of the cause would quote the content
        data = b""
    if len(data) != SECRET_BYTES:
        raise InputError(
            f"secret file {path} is damaged: not {2 * SECRET_BYTES} hexadecimal digits; restore "
            "it from a copy, or start anew with another one"
        )
    return _from_bytes(data)
