"""Cases of `remedies`: releasing encryptions, arrays as users give them, and paths."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from remedies import case, refused
from remedies_commands import ARRAYS, DATA, command, followed

from instahide_jax import InstaHide, TextHide, encrypt, encrypt_dataset, hide, insecure_secret
from instahide_jax.data.public_pool import load_public_pool
from instahide_jax.encrypt_command import _write_order
from instahide_jax.folders import user_path
from instahide_jax.run import secret_files

SCHEME = InstaHide.inside(k=2, num_classes=4)


@case
def releasing(place: Path) -> None:
    np.savez("data.npz", **DATA)
    start = "data.npz --k 2 --out"
    followed(
        lambda line: command(f"encrypt {line}"),
        (
            "data.npz --k 2 --secret-file a.secret",
            "give --out FILE, or --order-file FILE",
            f"{start} a.npz --secret-file a.secret",
        ),
        (
            "data.npz --k 2 --secret-file none.secret --order-file a.npy",
            "name the secret of the file whose order is wanted",
            "data.npz --k 2 --secret-file a.secret --order-file a.npy",
        ),
        (
            f"{start} b.npz --secret-file a.secret --keep-order --order-file b.npy",
            "leave one of them out",
            f"{start} b.npz --secret-file a.secret --order-file b.npy",
        ),
        (
            f"{start} c.npz --secret-file a.secret --order-file c.txt",
            "must end in .npy",
            f"{start} c.npz --secret-file a.secret --order-file c.npy",
        ),
        (
            f"{start} d.npz --secret-file d.npy --order-file d.npy",
            "is the secret file; name another one",
            f"{start} d.npz --secret-file d.npy --order-file e.npy",
        ),
        (
            f"{start} f.npz --secret-file a.secret --mean 127.5 --std 63.75",
            "a 255th of what it is",
            f"{start} f.npz --secret-file a.secret --mean 0.5 --std 0.25",
        ),
    )
    order = np.zeros(3, np.int64)
    with refused("free space, or name another --order-file"):
        _write_order(Path("nowhere/a.npy"), order)
    _write_order(Path("again.npy"), order)
    command("encrypt data.npz --k 2 --secret-file a.secret --order-file after.npy")


@case
def arrays_of_users(place: Path) -> None:
    def start(data: Any = DATA, scheme: Any = SCHEME, **options: Any) -> Any:
        return encrypt_dataset(insecure_secret(0), data, scheme=scheme, progress=False, **options)

    masked = np.ma.masked_array(ARRAYS.labels, ARRAYS.labels == 0)
    for bad, message, good in (
        ({"scheme": TextHide.intra()}, "such as InstaHide.inside()", {"scheme": SCHEME}),
        ({"data": list(DATA.values())}, "give a dict of 'image' and 'label'", {"data": DATA}),
        (
            {"data": DATA | {"label": masked}},
            "array.filled(0)",
            {"data": DATA | {"label": masked.filled(0)}},
        ),
        (
            {"data": DATA | {"label": [[0], [1, 2]]}},
            "give a NumPy or JAX array of",
            {"data": DATA | {"label": np.arange(6) % 4}},
        ),
        (
            {"data": DATA | {"label": ARRAYS.labels.astype(str)}},
            "convert to integers",
            {"data": DATA | {"label": ARRAYS.labels.astype(str).astype(int)}},
        ),
        (
            {"public_pool": np.full((3, 8, 8, 1), np.nan, np.float32)},
            "public_pool: ",
            {},
        ),
    ):
        with refused(message):
            start(**bad)
        start(**good)
    with refused("give a dict of 'image' and 'label'"):
        encrypt(insecure_secret(0), ARRAYS.images, scheme=SCHEME)
    jax.eval_shape(lambda: encrypt(insecure_secret(0), DATA, scheme=SCHEME))
    scheme = TextHide.intra(k=2, num_masks=4, num_classes=4)
    features, labels = np.zeros((6, 8), np.float32), ARRAYS.labels
    masks = scheme.mask_pool(insecure_secret(1).stream("masks"), 8)
    with refused("give a tuple (features, labels)"):
        hide(insecure_secret(0), features, labels, masks, scheme=scheme, private_pool=features)
    pool = (features, labels)
    jax.eval_shape(
        lambda: hide(insecure_secret(0), features, labels, masks, scheme=scheme, private_pool=pool)
    )


@case
def paths(place: Path) -> None:
    with refused("--out is empty; name a file or folder, or leave --out out"):
        user_path("", "--out")
    user_path("a", "--out")
    with refused("write the whole path"):
        user_path("~nobody-here/a", "--out")
    user_path(place / "a", "--out")
    (place / "folder").mkdir()
    for folder, named, message in (
        ("/", None, "name a folder in it"),
        ("run", "folder", "name a file"),
        ("run", "run/key", "name a file elsewhere"),
    ):
        secret = None if named is None else Path(named)
        with refused(message):
            secret_files(Path(folder), secret, range(1), 1)
    secret_files(place / "run", None, range(1), 1)
    secret_files(Path("run"), Path("folder/key"), range(1), 1)
    np.save("pool.npy", np.zeros((3, 8, 8, 1), np.uint8))
    with refused("name the .npy file of a pool"):
        load_public_pool(Path("folder"), (8, 8, 1))
    load_public_pool(Path("pool.npy"), (8, 8, 1))
