"""What a public pool is on disk: an array, a description of it, and a contact sheet."""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from instahide_jax.errors import InputError, how_many

_SHEET_SIDE = 10  # patches in a row and in a column of the contact sheet
# What is said of a photo.
_OF_PHOTOS = {"file": str, "sha256": str, "tried": int, "accepted": int, "too_small": bool}


@dataclass(frozen=True)
class PublicPool:
    """A pool on disk: `shape` is (M, size, size, channels), `per_photo` patches from each photo."""

    path: Path
    shape: tuple[int, ...]
    tries: int
    per_photo: tuple[int, ...]
    skipped: tuple[str, ...]  # photos too small for a patch
    built: bool  # False: the same pool was there already and was left alone
    notes: tuple[str, ...] = ()  # photos of which not all is used, files left out

    def __str__(self) -> str:
        used = [accepted for accepted in self.per_photo if accepted]
        line = (
            f"{'wrote' if self.built else 'already prepared:'} {self.path} "
            f"{'x'.join(map(str, self.shape))} uint8: {sum(used)} of {self.tries} patches kept, "
            f"from {len(used)} photos (at most {max(used)} of one)"
        )
        small = f"; {how_many(len(self.skipped), 'photo')} too small" if self.skipped else ""
        notes = "".join(f"; {note}" for note in self.notes)
        return f"{line}{small}{notes}; look at {self.path.with_suffix('.png')}"


def pool_shape(parameters: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """(count, size, size, channels)."""
    return (
        parameters["count"], parameters["size"], parameters["size"], parameters["channels"],
    )  # fmt: skip


def pool_files(out: Path) -> tuple[Path, Path, Path]:
    """The contact sheet, the array and the description of the pool at `out`."""
    return out.with_suffix(".png"), out, out.with_suffix(".json")


def existing(out: Path, described: dict[str, Any]) -> PublicPool:
    """The pool at `out`, if it is the very one that is asked for.

    Raises:
        InputError: if it is another one; says in what it differs.
    """
    found = description(out)
    differing = _differences(found, described)
    if not differing and found.get("sha256") != sha256_of(out):
        differing = ["its content is not that of which its .json tells"]
    if differing:
        raise InputError(
            f"{out} exists and is another pool: {'; '.join(differing)}; give --overwrite to build "
            "it anew, or choose another --out"
        )
    return summary(out, tuple(found["shape"]), found, built=False)


def description(out: Path) -> dict[str, Any]:
    """What the .json beside the pool at `out` says of it.

    Raises:
        InputError: if it says nothing of a pool, be it missing, damaged or of other content, such
            as that of encryptions: the array may then be the user's own.
    """
    with suppress(InputError):
        found = read_json(out.with_suffix(".json"))
        photos = found.get("photos")
        if (
            isinstance(found.get("parameters"), dict)
            and isinstance(photos, list)
            and all(
                isinstance(photo, dict)
                and all(type(photo.get(name)) is kind for name, kind in _OF_PHOTOS.items())
                for photo in photos
            )
        ):
            return found
    raise InputError(
        f"{out} exists, and no .json beside it says that it is a pool; move it or choose another "
        "--out"
    )


def _differences(found: dict[str, Any], described: dict[str, Any]) -> list[str]:
    """In what a pool, by its description, differs from the one that is asked for."""
    photos, parameters = found["photos"], found["parameters"]
    lines = [
        f"its {name} is {parameters.get(name)}, not {value}"
        for name, value in described["parameters"].items()
        if parameters.get(name) != value
    ]
    old, new = (
        {photo["file"]: photo["sha256"] for photo in listed}
        for listed in (photos, described["photos"])
    )
    for what, count in (
        ("new", len(new.keys() - old.keys())),
        ("gone", len(old.keys() - new.keys())),
        ("changed", sum(old[name] != new[name] for name in old.keys() & new.keys())),
    ):
        if count:
            lines.append(f"{count} of the photos {'is' if count == 1 else 'are'} {what}")
    shape = list(pool_shape(described["parameters"]))
    if not lines and (
        found.get("shape") != shape or sum(photo["accepted"] for photo in photos) != shape[0]
    ):
        lines.append("its .json contradicts itself")
    return lines


def summary(
    out: Path, shape: tuple[int, ...], described: dict[str, Any], *, built: bool
) -> PublicPool:
    photos = described["photos"]
    return PublicPool(
        path=out,
        shape=shape,
        tries=sum(photo["tried"] for photo in photos),
        per_photo=tuple(photo["accepted"] for photo in photos),
        skipped=tuple(photo["file"] for photo in photos if photo["too_small"]),
        built=built,
    )


def write(out: Path, pool: np.ndarray, described: dict[str, Any]) -> None:
    """Write the three files, all of them or none, and the description last.

    They take the place of old ones only when all three are whole.
    """
    targets = pool_files(out)
    # In the same folder: a rename is atomic only within a file system.
    temporaries = [target.with_name(f".{target.name}.{os.getpid()}.tmp") for target in targets]
    added: list[Path] = []
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _whole(temporaries[0]) as file:
            _contact_sheet(pool).save(file, "PNG")
        with _whole(temporaries[1]) as file:
            np.save(file, pool, allow_pickle=False)
        record = {"shape": list(pool.shape), "sha256": sha256_of(temporaries[1]), **described}
        with _whole(temporaries[2]) as file:
            file.write((json.dumps(record, indent=1) + "\n").encode())
        for temporary, target in zip(temporaries, targets, strict=True):
            if not target.exists():
                added.append(target)
            os.replace(temporary, target)
    except BaseException as error:
        for path in added:  # what stays would be in the way of the next attempt
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(
                f"cannot write {out}: {error.strerror or error}; free space, or choose another "
                "--out"
            ) from error
        raise
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def check_outputs(out: Path, overwrite: bool) -> None:
    """Refuse a pool that could not be written, before any work.

    Raises:
        InputError: for an array that is not known to be a pool, for a .json or .png of another
            origin where those of the pool would go, and for a folder that cannot be written to.
    """
    if out.exists():
        description(out)
        if not overwrite:
            return  # nothing will be written
    else:
        for path in (out.with_suffix(".json"), out.with_suffix(".png")):
            if path.exists():
                raise InputError(
                    f"{path} exists, and would be written with {out}; move it or choose another "
                    "--out"
                )
    try:
        folder = next(parent for parent in out.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}; choose another --out") from error


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A new file that is on the disk when the block ends."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _contact_sheet(pool: np.ndarray) -> Image.Image:
    """Up to 100 evenly spaced patches, three times enlarged."""
    count = min(len(pool), _SHEET_SIDE**2)
    chosen = pool[np.linspace(0, len(pool) - 1, count).astype(int)]
    scale = 3
    cell = pool.shape[1] * scale + 4
    sheet = Image.new("RGB", (cell * _SHEET_SIDE, cell * math.ceil(count / _SHEET_SIDE)), "white")
    for index, patch in enumerate(chosen):
        row, column = divmod(index, _SHEET_SIDE)
        picture = Image.fromarray(patch[..., 0] if patch.shape[-1] == 1 else patch)
        side = picture.width * scale
        enlarged = picture.resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (column * cell + 2, row * cell + 2))
    return sheet


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {path}: {error}; move it away, and the array beside it is taken as it is"
        ) from error
    return content if isinstance(content, dict) else {}


def sha256_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; check its path and permissions"
        ) from error
