"""Cases of `remedies`: releasing encryptions, arrays as users give them, and paths."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from programs import without_modes
from remedies import case, refused
from remedies_commands import ARRAYS, DATA, command, followed

from instahide_jax import (
    InstaHide,
    TextHide,
    encrypt,
    encrypt_dataset,
    hide,
    insecure_secret,
    memory,
)
from instahide_jax.data.public_pool import load_public_pool
from instahide_jax.data.sources import Statistics, round_statistics
from instahide_jax.distributed import start_backend
from instahide_jax.encrypt_command import _write_order
from instahide_jax.folders import user_path
from instahide_jax.run import secret_files

SCHEME = InstaHide.inside(k=2, num_classes=4)
CROSS = InstaHide.cross(k=3, num_classes=4)
POOL = DATA["image"]


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
    np.savez("levels.npz", **DATA | {"image": DATA["image"].astype(np.float32)})
    np.savez("scaled.npz", **DATA | {"image": DATA["image"] / np.float32(255)})
    given = "--mean 0.5 --std 0.25"
    with refused("scale the images to [0, 1], or leave --mean and --std out"):
        command(f"encrypt levels.npz --k 2 --secret-file a.secret --out g.npz {given}")
    command(f"encrypt scaled.npz --k 2 --secret-file a.secret --out g.npz {given}")
    command("encrypt levels.npz --k 2 --secret-file a.secret --out h.npz")
    order = np.zeros(3, np.int64)
    with refused("free space, or name another --order-file"):
        _write_order(Path("nowhere/a.npy"), order)
    with without_modes(), refused("put it on another one, and give the same command without"):
        _write_order(Path("again.npy"), order)
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
        ({"public_pool": POOL}, "leave it out, or give InstaHide.cross()", {}),
        (
            {"public_pool": POOL * np.nan, "scheme": CROSS},
            "public_pool: ",
            {"public_pool": POOL, "scheme": CROSS},
        ),
        (
            {"public_pool": POOL},
            "or give InstaHide.cross()",
            {"public_pool": POOL, "scheme": CROSS},
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
    with refused("--out is empty; name a file or folder"):
        user_path("", "--out")
    user_path("a", "--out")
    with refused("write the whole path"):
        user_path("~nobody-here/a", "--out")
    (place / "loop").symlink_to("loop")
    with refused("loop/a, a link that leads to itself; mend or remove it"):
        user_path(place / "loop/a", "--out")
    (place / "loop").unlink()
    user_path(place / "loop/a", "--out")
    with refused("an address; name a local path"):
        user_path("gs://bucket/a", "--out")
    user_path(place / "a", "--out")
    (place / "folder").mkdir()
    (place / "other").mkdir()
    for name in ("file", "other/config.json", "other/run.json", "other/old"):
        (place / name).write_text("")
    for folder, named, message in (
        ("/", None, "name a folder in it"),
        ("run", "folder", "name a file"),
        ("run", "run/key", "name a file elsewhere"),
        ("run", "file/key", "file is no folder; name a file elsewhere"),
        ("run", "other/key", "name a file elsewhere"),
        ("run", "other/old", "move it elsewhere, and name it there"),
        ("other/run", None, "name a file elsewhere with --secret-file"),
    ):
        secret = None if named is None else Path(named)
        with refused(message):
            secret_files(Path(folder), secret, range(1), 1)
    secret_files(place / "run", None, range(1), 1)
    secret_files(Path("run"), Path("folder/key"), range(1), 1)
    secret_files(Path("other/run"), Path("folder/key"), range(1), 1)
    (place / "other" / "old").rename(place / "folder" / "old")
    secret_files(Path("run"), Path("folder/old"), range(1), 1)
    np.save("pool.npy", np.zeros((3, 8, 8, 1), np.uint8))
    with refused("name the .npy file of a pool"):
        load_public_pool(Path("folder"), (8, 8, 1))
    load_public_pool(Path("pool.npy"), (8, 8, 1))


@case
def what_the_memory_holds(place: Path) -> None:
    np.savez("data.npz", **DATA)
    start = "encrypt data.npz --k 2 --secret-file a.secret --out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "machine_memory", lambda: 6 * 2 * 20**2)
        for bad, message, good in (
            ("--passes 1000", "lower passes to at most 27", "--passes 27 --batch-size 1"),
            ("--size 21", "lower --size to at most 20", "--size 20 --batch-size 1"),
        ):
            with refused(message):
                command(f"{start} a.npz {bad}")
            command(f"{start} a.npz {good}")
            Path("a.npz").unlink()


@case
def statistics(place: Path) -> None:
    for bad, message, good in (
        ((0.5, 0.5), "give a mean and a std per channel", ((0.5,), (0.5,))),
        (((0.5,), (0.0,)), "give finite numbers, and a std above 0", ((0.5,), (1.0,))),
    ):
        given: Any = bad
        with refused(message):
            round_statistics(given)
        round_statistics(Statistics(*good))


@case
def platforms(place: Path) -> None:
    def devices() -> None:
        raise RuntimeError("no such platform")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", devices)
        with refused("unset it, or name what this machine has, such as cpu"):
            start_backend()
    start_backend()
