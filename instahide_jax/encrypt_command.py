"""`instahide encrypt`: from a data set to a file of encryptions."""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instahide_jax.config import to_json
from instahide_jax.data.embedded import Arrays, arrays_from_npz
from instahide_jax.data.image_folder import arrays_from_folder
from instahide_jax.data.public_pool import load_public_pool
from instahide_jax.data.sources import measure_statistics
from instahide_jax.data.tfds_io import is_name, load_arrays
from instahide_jax.encrypt_files import (
    check_output,
    encrypt_dataset,
    output_files,
    write_encrypted,
)
from instahide_jax.errors import InputError
from instahide_jax.instahide import InstaHide
from instahide_jax.secret import read_secret, secret_key, write_secret

if TYPE_CHECKING:
    from instahide_jax.cli import EncryptArguments


def encrypt(arguments: "EncryptArguments") -> None:
    """Carry out `instahide encrypt`.

    Raises:
      InputError: for data, pool, secret or output that cannot be used.
    """
    out, secret_file = arguments.out.expanduser(), arguments.secret_file.expanduser()
    check_output(out)
    if secret_file.resolve() in {file.resolve() for file in output_files(out)}:
        raise InputError(f"--secret-file {secret_file} is a file of the output; name another one")
    settings: dict[str, Any] = {
        "mask": arguments.mask,
        "renormalise_labels": arguments.renormalise_labels,
    }
    if arguments.k is not None:
        settings["k"] = arguments.k
    make = InstaHide.inside if arguments.mode == "inside" else InstaHide.cross
    scheme = make(**settings)
    data, notes = _load(arguments)
    scheme = scheme.for_data(data.num_classes, *measure_statistics(data.images))
    pool = None
    if arguments.public_pool is not None and not scheme.num_public:
        raise InputError(
            f"--public-pool is given, but {arguments.mode} with k={scheme.k} mixes private images "
            "only; leave it out, or choose --mode cross"
        )
    if scheme.num_public:
        if arguments.public_pool is None:
            raise InputError("cross needs a public pool; pass --public-pool FILE.npy")
        pool = load_public_pool(arguments.public_pool, data.images.shape[1:])
    is_new = not secret_file.exists()
    secret = secret_key() if is_new else read_secret(secret_file)
    batches = encrypt_dataset(
        secret,
        {"image": data.images, "label": data.labels},
        pool,
        scheme=scheme,
        passes=arguments.passes,
        batch_size=arguments.batch_size,
    )
    if is_new:  # only now, when the data has been found in order
        write_secret(secret_file, secret)
    total = arguments.passes * len(data.labels)
    described = {
        "scheme": to_json(scheme),
        "passes": arguments.passes,
        "class_names": list(data.class_names),
        "instahide_jax": version("instahide-jax"),
    }
    try:
        write_encrypted(out, batches, total, described)
    except InputError:
        if is_new:  # it has hidden nothing that is left
            secret_file.unlink()
        raise
    shape = "x".join(map(str, data.images.shape[1:]))
    print(f"{out}: {total:,} encryptions of {len(data.labels):,} images of {shape}{notes}")


def _load(arguments: "EncryptArguments") -> tuple[Arrays, str]:
    """The data, and what the user should know of how they were read."""
    path = Path(arguments.source).expanduser()
    if path.suffix == ".npz":
        _check_options(arguments, "a .npz file", ())
        return arrays_from_npz(path), ""
    if path.is_dir():
        _check_options(arguments, "a folder", ("size", "split", "skip_unreadable"))
        arrays, notes = arrays_from_folder(
            path, arguments.size, arguments.split, skip_unreadable=arguments.skip_unreadable
        )
        return arrays, "".join(f"; {note}" for note in notes)
    if not is_name(arguments.source):
        raise InputError(f"{path} does not exist; give a TFDS name, a .npz file or a folder")
    _check_options(arguments, "a TFDS name", ("split", "data_dir"))
    return load_arrays(arguments.source, arguments.split or "train", arguments.data_dir), ""


def _check_options(arguments: "EncryptArguments", kind: str, taken: tuple[str, ...]) -> None:
    """Refuse an option that has no effect on this kind of source."""
    for name in ("split", "data_dir", "size", "skip_unreadable"):
        value = getattr(arguments, name)
        if value not in (None, False) and name not in taken:
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{option} is {value}, but {arguments.source} is {kind}, which has no use for it; "
                f"leave {option} out"
            )
