"""Hide a whole data set before it leaves the building: `encrypt_dataset`, and in which order."""

import hashlib
import itertools
import json
import operator
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from instahide_jax.arrays import as_array, is_float
from instahide_jax.data.embedded import check_arrays
from instahide_jax.errors import InputError
from instahide_jax.hiding import split_pass_key
from instahide_jax.instahide import InstaHide, encrypt, encrypt_rows
from instahide_jax.memory import check_memory
from instahide_jax.metrics import progress_bar
from instahide_jax.secret import ALGORITHM, SecretKey, insecure_secret, unwrap

_CHUNK_BYTES = 1 << 24
_MAX_BATCH = 1024
_WORDS = 1 << 16  # of 64 bits, drawn at once for the order
_ORDER_BYTES = 25  # of memory for an encryption's place while the order is drawn
_SUM_TOLERANCE = 1e-3  # of a soft label


class _Rows:
    """A user's array that becomes what is hidden row by row, so that memory maps stay on the disk.

    Floats become float32, labels int32.
    """

    def __init__(self, values: Any, name: str, give: str):
        self.given = np.asarray(as_array(values, name, give))
        self.dtype = self.given.dtype
        if is_float(self.dtype):
            self.dtype = np.dtype(np.float32)
        elif self.dtype.kind in "iu" and self.given.ndim == 1:
            self.dtype = np.dtype(np.int32)

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, rows: Any) -> np.ndarray:
        with np.errstate(over="ignore"):  # `_open` refuses what becomes infinite
            return np.ascontiguousarray(self.given[rows], self.dtype)


class _Data(NamedTuple):
    """What is hidden, in order and found to be so."""

    rows: dict[str, _Rows]
    pool: _Rows | None
    scheme: InstaHide

    @property
    def size(self) -> int:
        return len(self.rows["image"])


def encrypt_dataset(
    secret: SecretKey,
    data: Mapping[str, Any],
    public_pool: Any = None,
    *,
    scheme: InstaHide,
    passes: int = 1,
    batch_size: int | None = None,
    shuffle: bool = True,
    progress: bool = True,
) -> Iterator[dict[str, np.ndarray]]:
    """Stream a data set through `encrypt`, batch by batch, in a secret order.

    Every image is a mixture's own image once per pass, and in every pass is used exactly
    `num_private` times; each pass has fresh partners, coefficients and masks.

    The key of every encryption depends on the secret, on the content of data and pool, on the
    scheme, on `secret.ALGORITHM` and on the pass: another data set under the same secret shares no
    one-time key, and the same call gives the same encryptions again.

    The encryptions of all passes come in one order, a uniformly random one of all that there are,
    drawn from the same secret: `encryption_order` gives it back to who has that. An order that
    others know would tell them which encryptions are of the same image, which is the clustering
    step of the published attack, and with the source's order, of which image.

    The arrays may be memory maps. Beside them this takes a constant amount of memory, for a batch
    with its partners; the size of the public pool, which goes to the device; and for every
    encryption 4 bytes for the number of each private partner and 8 for its place in the order (25
    while the order is drawn).

    Args:
      secret: the owner's secret.
      data: "image" [N, H, W, C] uint8 or float, "label" [N] or [N, 1] integers, or [N, classes]
        soft floats or one-hot; arrays of NumPy or JAX, or what NumPy makes an array of.
      public_pool: [M, H, W, C], uint8 or float like the images, for cross schemes.
      scheme: with `num_classes` where labels are integers. Its mean and std are released with the
        encryptions: round those of private images (`data.sources.round_statistics`).
      passes: encryptions of every image, >= 1.
      batch_size: encryptions per result, the last one may be smaller; by default as many as make 16
        MB, at most 1024. The encryptions do not depend on it.
      shuffle: False gives the encryptions pass by pass in the order of the data, for whoever does
        not release them. They are the same ones.
      progress: show a progress bar.

    Yields:
      "image" [B, H, W, C] of scheme.dtype and "label" float32 [B, classes].

    Raises:
      InputError: at the call, before any work: for a key that is no secret, arguments out of range
        or beyond the machine's memory, what is no array or has another dtype, labels out of range
        or negative, soft ones that do not sum to 1, NaN or infinite pixels or labels, a pool for a
        scheme that mixes none in, and whatever `encrypt` refuses.
    """
    passes = _count("passes", passes)
    if batch_size is not None:
        batch_size = _count("batch_size", batch_size)
    bound = SecretKey(unwrap(secret))
    opened = _open(data, public_pool, scheme)
    if batch_size is None:
        batch_size = max(
            1, min(_MAX_BATCH, _CHUNK_BYTES // (4 * opened.rows["image"].given[0].size))
        )
    _check_memory(opened, passes, batch_size, shuffle)
    return _encrypted(bound, opened, passes, batch_size, shuffle, progress)


def encryption_order(
    secret: SecretKey,
    data: Mapping[str, Any],
    public_pool: Any = None,
    *,
    scheme: InstaHide,
    passes: int = 1,
) -> np.ndarray:
    """Of which image each result of `encrypt_dataset` is, given what that was given.

    For the owner alone: whoever has it needs no clustering to attack the encryptions.

    Returns:
      int64 [passes * N]: result r, counted over all batches, is the encryption of image
      order[r] % N in pass order[r] // N; so results[np.argsort(order)] are pass by pass in the
      order of the data.

    Raises:
      InputError: as `encrypt_dataset`.
    """
    passes = _count("passes", passes)
    bound = SecretKey(unwrap(secret))
    opened = _open(data, public_pool, scheme)
    _check_passes(passes, opened.size * _ORDER_BYTES)
    return _order(bound.run(_content_digest(opened)), passes, opened.size)


def _encrypted(
    secret: SecretKey, data: _Data, passes: int, batch_size: int, shuffle: bool, progress: bool
) -> Iterator[dict[str, np.ndarray]]:
    size, total = data.size, passes * data.size
    run_secret = secret.run(_content_digest(data))
    bound = run_secret.stream("encrypt_dataset")
    pool = None if data.pool is None else jnp.asarray(data.pool[:])
    with progress_bar(total, "encrypt", " images", shown=progress) as bar:
        order: Any = _order(run_secret, passes, size) if shuffle else range(total)
        # Of all passes, because any batch of a shuffled order has rows of many.
        row_parents = _draw_row_parents(bound, np.arange(passes, dtype=np.uint32))
        partners = np.empty((passes, size, data.scheme.num_partners), np.int32)
        for number in range(passes):
            partners[number] = _draw_partners(
                bound, np.uint32(number), scheme=data.scheme, size=size
            )
        for start in range(0, total, batch_size):
            numbers, images = np.divmod(np.asarray(order[start : start + batch_size]), size)
            mixed_in = partners[numbers, images].reshape(-1)
            hidden = _hide_rows(
                row_parents,
                numbers.astype(np.uint32),
                images.astype(np.uint32),
                {name: rows[images] for name, rows in data.rows.items()},
                {name: rows[mixed_in] for name, rows in data.rows.items()},
                pool,
                scheme=data.scheme,
            )
            yield {name: np.asarray(values) for name, values in hidden.items()}
            bar.update(len(images))


@jax.jit
def _draw_row_parents(key: SecretKey, numbers: jax.Array) -> jax.Array:
    """What the keys of a pass's rows are folded from, typed keys [passes]."""
    return jax.vmap(lambda number: split_pass_key(key.fold_in(number))[0])(numbers)


@partial(jax.jit, static_argnames=("scheme", "size"))
def _draw_partners(key: SecretKey, number: jax.Array, scheme: InstaHide, size: int) -> jax.Array:
    return scheme.pass_partners(key.fold_in(number), size)


@partial(jax.jit, static_argnames="scheme")
def _hide_rows(
    row_parents: jax.Array,
    numbers: jax.Array,
    images: jax.Array,
    batch: Any,
    mixed_in: Any,
    pool: Any,
    *,
    scheme: InstaHide,
) -> Any:
    """Encryptions of images [B] in passes `numbers` [B].

    Args:
      row_parents: of all passes, see `_draw_row_parents`.
      numbers: of the passes.
      images: numbers of the images.
      batch: the images themselves, with labels.
      mixed_in: their partners, row after row, [B * num_partners].
      pool: public images, or None.
      scheme: the parameters.
    """
    count, size = scheme.num_partners, len(images)
    keys = jax.vmap(jax.random.fold_in)(row_parents[numbers], images)
    partners = jnp.arange(size * count, dtype=jnp.int32).reshape(size, count)
    return encrypt_rows(keys, batch, mixed_in if count else batch, pool, partners, scheme=scheme)


def _order(run_secret: SecretKey, passes: int, size: int) -> np.ndarray:
    """The order of `encryption_order`; every number of passes has one of its own."""
    stream = run_secret.stream("encrypt_dataset order").fold_in(passes)
    return draw_order(stream, passes * size)


def draw_order(key: SecretKey, size: int) -> np.ndarray:
    """A uniformly random order of 0..size-1, int64 [size].

    Random words of 64 bits are sorted, all anew where two are alike: so every order is as likely as
    any other.
    """
    for attempt in itertools.count():
        words = np.empty(size, np.uint64)
        of_attempt = key.fold_in(attempt)
        for number, start in enumerate(range(0, size, _WORDS)):
            drawn = np.asarray(_draw_words(of_attempt, np.uint32(number), _WORDS)).astype("<u4")
            words[start : start + _WORDS] = drawn.view("<u8")[: size - start]
        order = np.argsort(words)
        words = words[order]
        if not (words[1:] == words[:-1]).any():
            return order
    raise AssertionError("unreachable")


@partial(jax.jit, static_argnames="count")
def _draw_words(key: SecretKey, number: jax.Array, count: int) -> jax.Array:
    """Words of 64 bits as halves, uint32 [2 * count]."""
    return jax.random.bits(key.fold_in(number).key, (2 * count,), "uint32")


def _count(name: str, value: Any) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if not 1 <= count < 2**32:
        raise InputError(
            f"{name} is {value!r}; it must be an integer of at least 1 and below 4294967296"
        )
    return count


def _check_memory(data: _Data, passes: int, batch_size: int, shuffle: bool) -> None:
    """Refuse passes or batches that would take more memory than the machine has."""
    partners, image = data.scheme.num_partners, data.rows["image"]
    _check_passes(passes, data.size * (4 * partners + _ORDER_BYTES * shuffle))
    rows = min(batch_size, passes * data.size)
    of_row = image.given[0].size * (4 + (1 + partners) * image.dtype.itemsize)
    check_memory(
        "batch_size",
        batch_size,
        f"{rows:,} images with their partners and encryptions",
        rows * of_row,
        lambda memory: memory // of_row,
    )


def _check_passes(passes: int, of_pass: int) -> None:
    check_memory(
        "passes",
        passes,
        "order and partners of all encryptions",
        passes * of_pass,
        lambda memory: memory // of_pass,
    )


def _open(data: Any, public_pool: Any, scheme: Any) -> _Data:
    """Refuse everything at once: what no shape tells, and what `encrypt` finds while traced."""
    if not isinstance(scheme, InstaHide):
        raise InputError(f"scheme is {scheme!r}; give an InstaHide, such as InstaHide.inside()")
    if not isinstance(data, Mapping):
        raise InputError(f"data is a {type(data).__name__}; give a dict of 'image' and 'label'")
    if set(data) != {"image", "label"}:
        raise InputError(
            f"data has entries {sorted(map(str, data))}; give 'image' and 'label' only, anything "
            "else would be released in clear"
        )
    images = _Rows(data["image"], "images", "uint8 or float32")
    labels = _Rows(_class_labels(data["label"]), "labels", "integers, or floats [N, classes]")
    is_soft = labels.given.ndim == 2
    hard = np.zeros(len(labels), np.int32) if is_soft else labels.given
    is_hard = hard.dtype.kind in "iu" and hard.size > 0
    largest = max(0, int(hard.max())) if is_hard else 0
    check_arrays(images.given, hard, scheme.num_classes or largest + 1)
    if is_soft:
        _check_soft(labels)
    pool = None
    if public_pool is not None and not scheme.num_public:
        raise InputError(
            f"public_pool is given, but the scheme, with k={scheme.k}, mixes private images only; "
            "leave it out, or give InstaHide.cross()"
        )
    if public_pool is not None:
        pool = _Rows(public_pool, "images of public_pool", "uint8 or float32")
        try:
            check_arrays(pool.given, np.zeros(pool.given.shape[:1], np.int32), 1)
        except InputError as error:
            raise InputError(f"public_pool: {error}") from None
    if len(images) < scheme.private_slots:
        raise InputError(
            f"{scheme.private_slots} private images are to be mixed but there are {len(images)}; "
            "give more, or lower k"
        )
    rows, count = {"image": images, "label": labels}, scheme.num_partners
    jax.eval_shape(
        partial(encrypt, scheme=scheme),
        insecure_secret(0),
        {name: each[:1] for name, each in rows.items()},
        None if pool is None else jax.ShapeDtypeStruct(pool.given.shape, pool.dtype),
        rows=np.zeros(1, np.uint32),
        private_pool={name: each[:count] for name, each in rows.items()} if count else None,
        partners=np.zeros((1, count), np.int32),
    )
    return _Data(rows, pool, scheme)


def _class_labels(labels: Any) -> np.ndarray:
    """Labels as a user gives them, where they are integers or bool as [N] or one-hot floats."""
    given = np.asarray(as_array(labels, "labels", "integers, or floats [N, classes]"))
    if given.ndim != 2 or given.dtype.kind not in "biu":
        return given
    return given[:, 0] if given.shape[1] == 1 else given.astype(np.float32)


def _check_soft(labels: _Rows) -> None:
    step = max(1, _CHUNK_BYTES // max(1, labels[:1].nbytes))
    for start in range(0, len(labels), step):
        part = labels[start : start + step]
        right = (np.isfinite(part) & (part >= 0)).all(axis=1)
        if not right.all():
            raise InputError(
                f"soft label {start + int(np.argmin(right))} holds NaN, infinity or a negative "
                "number; correct or remove it"
            )
        sums = part.sum(axis=1, dtype=np.float64)
        right = np.abs(sums - 1) <= _SUM_TOLERANCE
        if not right.all():
            index = int(np.argmin(right))
            raise InputError(
                f"soft label {start + index} sums to {sums[index]:g}, but must sum to 1 within "
                f"{_SUM_TOLERANCE}; divide every label by its sum, as float32, or correct it"
            )


def _content_digest(data: _Data) -> bytes:
    described = json.dumps([ALGORITHM, asdict(data.scheme)], sort_keys=True, default=_plain)
    digest = hashlib.sha256(described.encode())
    arrays = dict(sorted(data.rows.items())) | ({} if data.pool is None else {"pool": data.pool})
    for name, rows in arrays.items():
        digest.update(f"{name} {rows.given.shape} {rows.dtype.str} ".encode())
        step = max(1, _CHUNK_BYTES // max(1, rows[:1].nbytes))
        for start in range(0, len(rows), step):
            digest.update(rows[start : start + step].data)
    return digest.digest()


def _plain(number: np.generic) -> Any:
    """A number of NumPy, which a scheme may hold, as JSON knows it."""
    return number.item()
