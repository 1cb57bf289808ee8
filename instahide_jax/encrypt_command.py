"""`instahide encrypt`: from a data set to a file of encryptions."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from instahide_jax.config import to_json
from instahide_jax.data.embedded import Arrays, arrays_from_npz, resized
from instahide_jax.data.image_folder import arrays_from_folder
from instahide_jax.data.public_pool import load_public_pool
from instahide_jax.data.sources import measure_statistics, round_statistics
from instahide_jax.data.tfds_arrays import load_arrays
from instahide_jax.data.tfds_io import is_name, open_split
from instahide_jax.dataset_encryption import encrypt_dataset, encryption_order
from instahide_jax.distributed import start_backend
from instahide_jax.encrypt_files import (
    check_new_file,
    check_output,
    output_files,
    partial_folder,
    write_encrypted,
)
from instahide_jax.errors import InputError, listed
from instahide_jax.files import check_private_place, private_file
from instahide_jax.folders import user_path
from instahide_jax.instahide import InstaHide
from instahide_jax.memory import check_memory
from instahide_jax.secret import read_secret, secret_key, write_secret
from instahide_jax.version import __version__

if TYPE_CHECKING:
    from instahide_jax.cli import EncryptArguments

_FARTHEST = 10  # standard deviations between a mean that is given and that of the images


def encrypt(arguments: "EncryptArguments") -> None:
    """Carry out `instahide encrypt`.

    Raises:
      InputError: for data, pool, secret or output that cannot be used.
    """
    out, order_file, secret_file = _check_files(arguments)
    scheme = _scheme(arguments)
    start_backend()
    is_new = not secret_file.exists()
    if is_new and out is None:
        raise InputError(
            f"--secret-file {secret_file} does not exist, so nothing is hidden under it; name the "
            "secret of the file whose order is wanted, or give --out"
        )
    secret = secret_key() if is_new else read_secret(secret_file)
    data, notes = _load(arguments)
    shape = data.images.shape[1:]
    _check_statistics(scheme, data.images)
    statistics: Any = (scheme.mean, scheme.std)
    if scheme.mean is None:
        statistics = round_statistics(measure_statistics(data.images))
    scheme = scheme.for_data(data.num_classes, *statistics)
    pool = load_public_pool(arguments.public_pool, shape) if arguments.public_pool else None
    given = {"image": data.images, "label": data.labels}
    settings: dict[str, Any] = {"scheme": scheme, "passes": arguments.passes}
    done = []
    if out is not None:
        batches = encrypt_dataset(
            secret,
            given,
            pool,
            batch_size=arguments.batch_size,
            shuffle=not arguments.keep_order,
            **settings,
        )
        if is_new:  # only now, when the data has been found in order
            write_secret(secret_file, secret)
        total = arguments.passes * len(data.labels)
        try:
            write_encrypted(out, batches, total, _description(scheme, arguments.passes, data))
        except BaseException:
            if is_new and not out.exists():  # it has hidden nothing that is left
                secret_file.unlink()
            raise
        order = "in the order of the source" if arguments.keep_order else "in a secret order"
        size = "x".join(map(str, shape))
        told = "".join(f"; {note}" for note in notes)
        images = f"{len(data.labels):,} images of {size}"
        done.append(f"{out}: {total:,} encryptions of {images}, {order}{told}")
    if order_file is not None:
        _write_order(order_file, encryption_order(secret, given, pool, **settings))
        done.append(
            f"{order_file}: the image of each encryption; for the owner only, like the secret"
        )
    print("\n".join(done))  # last: stdout may be closed or full


def _description(scheme: InstaHide, passes: int, data: Arrays) -> dict[str, Any]:
    """What goes with the encryptions in clear: what training on them needs, and nothing else.

    The scheme says how plain images are standardised and how others are hidden for the model, the
    names what the entries of a label mean, the passes how many rows are one image's own, as
    whoever splits or counts them must know.
    """
    return {
        "scheme": to_json(scheme),
        "passes": passes,
        "class_names": list(data.class_names),
        "instahide_jax": __version__,
    }


def _check_files(arguments: "EncryptArguments") -> tuple[Path | None, Path | None, Path]:
    """What to write, the order file and the secret file; refuses what could not be written."""
    out, order_file = arguments.out, arguments.order_file
    secret_file = arguments.secret_file
    if out is None and order_file is None:
        raise InputError("nothing is to be written; give --out FILE, or --order-file FILE")
    if order_file is not None and arguments.keep_order:
        raise InputError(
            f"--order-file is {order_file}, but --keep-order leaves the source's order; leave one "
            "of them out"
        )
    if out is not None:
        check_output(out)
    if order_file is not None:
        if order_file.suffix != ".npy":
            raise InputError(f"order file {order_file} must end in .npy")
        check_new_file(order_file, "order file", "--order-file")
        check_private_place(order_file, "--order-file")
    check_private_place(secret_file, "--secret-file")
    for option, path in (("--secret-file", secret_file), ("--order-file", order_file)):
        if path is None or out is None:
            continue
        # The output's folder goes with all that is in it when the output is whole.
        places = (*output_files(out), partial_folder(out))
        if any(path.resolve().is_relative_to(place.resolve()) for place in places):
            raise InputError(f"{option} {path} is a file of the output; name another one")
    if order_file is not None and order_file.resolve() == secret_file.resolve():
        raise InputError(f"--order-file {order_file} is the secret file; name another one")
    return out, order_file, secret_file


def _scheme(arguments: "EncryptArguments") -> InstaHide:
    """The scheme that the options describe, without what is learned from the data."""
    settings: dict[str, Any] = {
        "mask": arguments.mask,
        "renormalise_labels": arguments.renormalise_labels,
        "mean": arguments.mean,
        "std": arguments.std,
    }
    if arguments.k is not None:
        settings["k"] = arguments.k
    make = InstaHide.inside if arguments.mode == "inside" else InstaHide.cross
    scheme = make(**settings)
    if arguments.public_pool is not None and not scheme.num_public:
        other = "raise --k" if arguments.mode == "cross" else "choose --mode cross"
        raise InputError(
            f"--public-pool is given, but {arguments.mode} with k={scheme.k} mixes private images "
            f"only; leave it out, or {other}"
        )
    if scheme.num_public and arguments.public_pool is None:
        raise InputError("cross needs a public pool; pass --public-pool FILE.npy")
    return scheme


def _check_statistics(scheme: InstaHide, images: np.ndarray) -> None:
    """Refuse statistics that are not of these images, as of [0, 1] where pixels are in [0, 255]."""
    if scheme.mean is None or scheme.std is None:
        return
    if images.dtype != np.uint8:
        _check_distance(scheme.mean, scheme.std, measure_statistics(images).mean)
        return
    for option, values in (("--mean", scheme.mean), ("--std", scheme.std)):
        if not all(0 <= value <= 1 for value in values):
            raise InputError(
                f"{option} is {' '.join(map(str, values))}; give it of pixels in [0, 1], a 255th "
                "of what it is of pixels in [0, 255]"
            )


def _check_distance(
    means: tuple[float, ...], stds: tuple[float, ...], measured: tuple[float, ...]
) -> None:
    """Refuse to standardise floats to a mean far from 0; `affine` counts the entries."""
    for channel, exact in enumerate(measured):
        mean, std = (values[min(channel, len(values) - 1)] for values in (means, stds))
        if abs(exact - mean) > _FARTHEST * std:
            raise InputError(
                f"--mean is {mean} and --std {std}, but the floats of channel {channel} have mean "
                f"{exact:.3g}, more than {_FARTHEST} --std from it; scale the images to [0, 1], or "
                "leave --mean and --std out"
            )


def _write_order(path: Path, order: np.ndarray) -> None:
    try:
        with private_file(path) as file:
            np.save(file, order)
    except InputError as error:  # the encryptions are there already
        raise InputError(f"{error}, and give the same command without --out") from error
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; free space, or name another --order-file, and "
            "give the same command without --out"
        ) from error


def _load(arguments: "EncryptArguments") -> tuple[Arrays, tuple[str, ...]]:
    """The data, and what the user should know of how they were read."""
    path = user_path(arguments.source, "SOURCE")
    if path.suffix == ".npz":
        _check_options(arguments, "a .npz file", ("size",))
        arrays = arrays_from_npz(path)
        notes = _empty_classes(arrays)
        if arguments.size is None:
            return arrays, notes
        count, *_, channels = arrays.images.shape
        _check_size(arguments.size, 2 * count * channels)  # one by one, and then together
        return resized(arrays, arguments.size), notes
    if path.is_dir():
        prepared = ""
        if is_name(arguments.source):
            name = arguments.source.partition(":")[0]
            prepared = f", or give {name}:VERSION as SOURCE for the prepared data set"
        _check_options(arguments, "a folder", ("size", "split", "skip_unreadable"), prepared)
        _check_size(arguments.size, 4)  # the least: two gray images, and one of them twice more
        return arrays_from_folder(
            path, arguments.size, arguments.split, skip_unreadable=arguments.skip_unreadable
        )
    if path.exists():
        raise InputError(
            f"{path} is neither a folder nor a .npz file; give a TFDS name, a .npz file "
            "(numpy.savez) or a folder"
        )
    if not is_name(arguments.source):
        raise InputError(f"{path} does not exist; give a TFDS name, a .npz file or a folder")
    _check_options(arguments, "a TFDS name", ("split", "data_dir", "size"))
    split = "train" if arguments.split is None else arguments.split
    if arguments.size is not None:
        opened = open_split(arguments.source, split, arguments.data_dir)
        _check_size(arguments.size, opened.num_examples * (opened.image_shape[2] or 1))
    return load_arrays(arguments.source, split, arguments.data_dir, arguments.size), ()


def _empty_classes(arrays: Arrays) -> tuple[str, ...]:
    """A note of classes without images, as of labels that begin at 1."""
    empty = np.setdiff1d(np.arange(arrays.num_classes), arrays.labels).tolist()
    if not empty:
        return ()
    return (f"{arrays.num_classes} classes, but no image has the label {listed(empty)}",)


def _check_size(size: int | None, planes: int) -> None:
    """Refuse to scale to images larger than the memory; `planes` channels are held at once."""
    if size is None:
        return
    check_memory(
        "--size",
        size,
        f"images of {size} x {size} pixels",
        planes * size**2,
        lambda memory: math.isqrt(memory // planes),
    )


def _check_options(
    arguments: "EncryptArguments", kind: str, taken: tuple[str, ...], other_remedy: str = ""
) -> None:
    """Refuse an option that has no effect on this kind of source."""
    for name in ("split", "data_dir", "size", "skip_unreadable"):
        value = getattr(arguments, name)
        if value is not None and value is not False and name not in taken:
            option = f"--{name.replace('_', '-')}"
            given = "given" if value is True else value
            raise InputError(
                f"{option} is {given}, but {arguments.source} is {kind}, which has no use for it; "
                f"leave {option} out{other_remedy}"
            )
