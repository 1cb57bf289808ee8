"""Hide a whole data set before it leaves the building: `encrypt_dataset` and its files."""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from instahide_jax.data.embedded import check_arrays
from instahide_jax.errors import InputError
from instahide_jax.instahide import InstaHide
from instahide_jax.secret import ALGORITHM, SecretKey, insecure_secret, unwrap

_CHUNK_BYTES = 1 << 24


def encrypt_dataset(
    secret: SecretKey,
    data: dict[str, np.ndarray],
    public_pool: np.ndarray | None = None,
    *,
    scheme: InstaHide,
    passes: int = 1,
    batch_size: int = 1024,
    progress: bool = True,
) -> Iterator[dict[str, np.ndarray]]:
    """Stream a data set through `encrypt`, batch by batch.

    Extra memory is constant: a batch with its partners, and 4 bytes per image for each partner's
    number. The arrays may be memory maps. Every image is a mixture's own image once per pass, and
    in every pass is used exactly `num_private` times; each pass has fresh partners, coefficients
    and masks.

    The key of every encryption depends on the secret, on the content of data and pool, on the
    scheme, on `secret.ALGORITHM` and on the pass: another data set under the same secret shares no
    one-time key, and the same call gives the same encryptions again.

    Args:
      secret: the owner's secret.
      data: "image" [N, H, W, C] uint8 or float, "label" [N] integers or [N, classes] soft.
      public_pool: [M, H, W, C] of the same dtype, for cross schemes.
      scheme: with `num_classes` where labels are integers.
      passes: encryptions of every image, >= 1.
      batch_size: encryptions per result; the last of each pass may be smaller.
      progress: show a progress bar.

    Yields:
      "image" [B, H, W, C] of scheme.dtype and "label" float32 [B, classes]: pass by pass in the
      order of the data.

    Raises:
      InputError: at the call, before any work: for a key that is no secret, arguments out of range,
        labels out of range or negative, NaN or infinite pixels or labels, and whatever `encrypt`
        refuses.
    """
    if passes < 1:
        raise InputError(f"passes is {passes}; it must be at least 1")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be at least 1")
    bound = SecretKey(unwrap(secret))
    _check_data(data, public_pool, scheme)
    return _encrypted(bound, data, public_pool, scheme, passes, batch_size, progress)


def _encrypted(
    secret: SecretKey,
    data: dict[str, np.ndarray],
    public_pool: np.ndarray | None,
    scheme: InstaHide,
    passes: int,
    batch_size: int,
    progress: bool,
) -> Iterator[dict[str, np.ndarray]]:
    size = len(data["image"])
    bound = secret.run(_content_digest(data, public_pool, scheme)).stream("encrypt_dataset")
    pool = None if public_pool is None else jnp.asarray(public_pool)
    draw = jax.jit(partial(scheme.pass_partners, num_candidates=size))
    hide = jax.jit(_hide_rows, static_argnames="scheme")
    with tqdm(total=passes * size, desc="encrypt", unit="image", disable=not progress) as bar:
        for number in range(passes):
            key = bound.fold_in(np.uint32(number))
            partners = np.asarray(draw(key))
            for start in range(0, size, batch_size):
                rows = np.arange(start, min(start + batch_size, size))
                mixed_in = partners[rows].reshape(-1)
                hidden = hide(
                    key,
                    {name: values[rows] for name, values in data.items()},
                    {name: values[mixed_in] for name, values in data.items()},
                    rows.astype(np.uint32),
                    pool,
                    scheme=scheme,
                )
                yield {name: np.asarray(values) for name, values in hidden.items()}
                bar.update(len(rows))


def _check_data(
    data: dict[str, np.ndarray], public_pool: np.ndarray | None, scheme: InstaHide
) -> None:
    """Refuse everything at once: what no shape tells, and what `encrypt` finds while traced."""
    if set(data) != {"image", "label"}:
        raise InputError(
            f"data has entries {sorted(data)}; give 'image' and 'label' only, anything else would "
            "be released in clear"
        )
    images, labels = data["image"], data["label"]
    hard = labels if labels.ndim == 1 else np.zeros(len(labels), np.int32)
    check_arrays(images, hard, scheme.num_classes or int(hard.max(initial=0)) + 1)
    if labels.ndim == 2:
        right = (np.isfinite(labels) & (labels >= 0)).all(axis=1)
        if not right.all():
            raise InputError(
                f"soft label {int(np.argmin(right))} holds NaN, infinity or a negative number; "
                "correct or remove it"
            )
    if public_pool is not None:
        check_arrays(public_pool, np.zeros(len(public_pool), np.int32), 1)
    if len(images) < scheme.private_slots:
        raise InputError(
            f"{scheme.private_slots} private images are to be mixed but there are {len(images)}; "
            "give more, or lower k"
        )
    row = {name: values[:1] for name, values in data.items()}
    mixed_in = {name: values[: scheme.num_partners] for name, values in data.items()}
    hide = partial(_hide_rows, scheme=scheme)
    jax.eval_shape(hide, insecure_secret(0), row, mixed_in, np.zeros(1, np.uint32), public_pool)


def _hide_rows(
    key: SecretKey, batch: Any, mixed_in: Any, rows: jax.Array, pool: Any, *, scheme: InstaHide
) -> Any:
    count = scheme.num_partners
    partners = jnp.arange(len(rows) * count, dtype=jnp.int32).reshape(len(rows), count)
    return scheme.hide_inputs(
        key,
        batch,
        pool,
        rows=rows,
        private_pool=mixed_in if count else None,
        partners=partners,
    )


def _content_digest(
    data: dict[str, np.ndarray], public_pool: np.ndarray | None, scheme: InstaHide
) -> bytes:
    digest = hashlib.sha256(json.dumps([ALGORITHM, asdict(scheme)], sort_keys=True).encode())
    arrays = dict(sorted(data.items())) | ({} if public_pool is None else {"pool": public_pool})
    for name, values in arrays.items():
        digest.update(f"{name} {values.shape} {values.dtype.str} ".encode())
        step = max(1, _CHUNK_BYTES // max(1, values[:1].nbytes))
        for start in range(0, len(values), step):  # memory maps stay on the disk
            digest.update(np.ascontiguousarray(values[start : start + step]).data)
    return digest.digest()


def write_encrypted(
    path: Path,
    batches: Iterator[dict[str, np.ndarray]],
    total: int,
    described: dict[str, Any],
) -> None:
    """Write streamed encryptions to one file that is whole or absent.

    PATH.npz holds "image", "label" and "description" (a JSON text). PATH.npy holds the images,
    beside it PATH.labels.npy and PATH.json, which are in place before it. Until then everything
    lies in the folder .NAME.partial beside PATH; one that a kill has left is removed.

    Args:
      path: ends in .npz or .npy.
      batches: of `encrypt_dataset`.
      total: number of encryptions.
      described: what a reader should know; no secrets.

    Raises:
      InputError: for another suffix, an existing file, or a folder that cannot be written.
    """
    check_output(path)
    folder = path.with_name(f".{path.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        parts = _write_parts(folder, batches, total)
        note = json.dumps(described, indent=2) + "\n"
        if path.suffix == ".npz":
            np.save(folder / "description.npy", np.array(note))
            packed = folder / "packed.npz"
            with zipfile.ZipFile(packed, "w") as archive:  # numpy.savez would load every array
                for part in (*parts, folder / "description.npy"):
                    archive.write(part, part.name)
            os.replace(packed, path)
            return
        images, labels = parts
        (folder / "note.json").write_text(note)
        for part, target in zip(
            (folder / "note.json", labels, images), output_files(path), strict=True
        ):
            os.replace(part, target)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; free space, or name another --out"
        ) from error
    finally:
        shutil.rmtree(folder)


def output_files(path: Path) -> tuple[Path, ...]:
    """The files of an output in the order in which they appear; the last one makes it whole."""
    if path.suffix == ".npz":
        return (path,)
    return path.with_suffix(".json"), path.with_suffix(".labels.npy"), path


def check_output(path: Path) -> None:
    """Refuse an output that could not be written, before hours are spent on it."""
    if path.suffix not in (".npz", ".npy"):
        raise InputError(f"output {path} must end in .npz or .npy")
    for file in output_files(path):
        if file.exists():
            raise InputError(f"output {file} exists already; remove it or name another --out")
    if not path.parent.is_dir():
        raise InputError(f"folder {path.parent} does not exist; create it or name another file")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"folder {path.parent} cannot be written; name another file")


def _write_parts(
    folder: Path, batches: Iterator[dict[str, np.ndarray]], total: int
) -> tuple[Path, Path]:
    """image.npy and label.npy, filled batch by batch.

    As ordinary files: a disk that fills up under a memory map kills the process without a word.
    """
    paths = (folder / "image.npy", folder / "label.npy")
    done = 0
    with paths[0].open("wb") as images, paths[1].open("wb") as labels:
        for batch in batches:
            for file, name in ((images, "image"), (labels, "label")):
                values = np.ascontiguousarray(batch[name])
                if not done:
                    header = np.lib.format.header_data_from_array_1_0(values)
                    header["shape"] = (total, *values.shape[1:])
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(values.reshape(-1).view(np.uint8).data)
            done += len(batch["label"])
    assert done == total, f"{done} encryptions instead of {total}"
    return paths
