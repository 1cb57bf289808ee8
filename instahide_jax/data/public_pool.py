"""The public pool: unlabelled natural patches, which cross-dataset InstaHide mixes in.

A flat patch (sky, wall) hides little, so a patch is kept only where SIFT finds many keypoints in
it, as the InstaHide paper does for its ImageNet patches (arXiv 2010.02772, appendix). Nothing
here is secret: seed, photos and patches are public.
"""

import fnmatch
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from instahide_jax.data.embedded import decoding
from instahide_jax.data.file_tree import tree_notes, walk
from instahide_jax.data.image_checks import (
    Facts,
    Problem,
    attempt,
    image_notes,
    inspect,
    lost_links,
    read_upright,
    settle,
)
from instahide_jax.data.image_format import FORMATS
from instahide_jax.data.pool_files import (
    PublicPool,
    check_outputs,
    existing,
    pool_files,
    pool_shape,
    read_json,
    sha256_of,
    summary,
    write,
)
from instahide_jax.errors import InputError
from instahide_jax.memory import check_memory
from instahide_jax.metrics import progress, progress_bar

# A photo is given up when, after so many tries, a smaller share than this was accepted.
_FIRST_TRIES = 100
_MIN_ACCEPTANCE = 0.05
_LARGEST_SIDE = 8  # of a patch, in test sizes: larger squares bring scenes, not only textures


@dataclass(frozen=True)
class PoolParameters:
    """How patches are cut and chosen.

    Attributes:
        size: side of the patches in the pool, in pixels.
        count: patches in the pool.
        test_size: side in pixels at which SIFT looks at a patch. Below 128 it finds almost nothing.
        min_keypoints: a patch is kept with more keypoints than this.
        seed: decides positions, sizes, flips and order; any integer from 0.
        channels: 3 (RGB) or 1 (luma).
        exclude: patterns (as in a shell) of file names, relative to the source, to leave out.
    """

    size: int = 32
    count: int = 10_000
    test_size: int = 128
    min_keypoints: int = 40
    seed: int = 0
    channels: int = 3
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, low in (("size", 1), ("count", 1), ("min_keypoints", 0), ("seed", 0)):
            if getattr(self, name) < low:
                raise InputError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if self.test_size < self.size:
            raise InputError(f"test_size must be at least size ({self.size}), got {self.test_size}")
        if self.channels not in (1, 3):
            raise InputError(f"channels must be 1 or 3, got {self.channels}")


@dataclass
class _Photo:
    """A photo with its random stream and what came of it so far."""

    path: Path
    name: str
    sha256: str
    rng: np.random.Generator
    tried: int = 0
    accepted: int = 0
    too_small: bool = False

    @property
    def is_live(self) -> bool:
        enough = self.tried < _FIRST_TRIES or self.accepted >= _MIN_ACCEPTANCE * self.tried
        return enough and not self.too_small


def build_public_pool(
    source: Path,
    out: Path,
    parameters: PoolParameters = PoolParameters(),
    overwrite: bool = False,
    *,
    skip_unreadable: bool = False,
) -> PublicPool:
    """Cut patches from the photos below `source` and save the textured ones.

    What a file is follows from its content. Links are followed; hidden files and folders and those
    that systems make are left out, of several pictures in a file the first is taken, and what is
    transparent becomes white. Files that cannot be used are treated as by
    `image_folder.read_image_folder`, with `skip_unreadable` as there.

    A patch is a square at a uniform position with a side between test_size and 8 test_size source
    pixels (log-uniform; at most the photo's short side), reduced to test_size by area averaging.
    With more than min_keypoints SIFT keypoints it is kept, reduced to `size` and mirrored with
    probability 1/2. Every photo gives equally many patches, as far as it has them: one of whose
    patches fewer than 5 % pass is given up, and the others give more. Patches of one photo may
    overlap. The pool's order is random.

    Writes:
        out: uint8 [count, size, size, channels] (.npy).
        out with suffix .png: 100 of the patches, to look at.
        out with suffix .json: parameters, photos (name, SHA-256, patches tried and accepted) and
            the SHA-256 of `out`; written last.

    Guarantees: the same photos, parameters and versions of Pillow and OpenCV give the same bytes.
    `out` is never half written. A pool of the same photos and parameters is left alone; with
    `overwrite` any pool at `out` that its .json describes is built anew, and the old one stays
    until the new one is whole.

    Raises:
        InputError: for a folder without photos, photos that cannot be used (up to ten named), too
            few textured patches, a pool larger than the memory, another pool at `out` or files in
            its way (before any work), or OpenCV not installed.
    """
    keypoints = _keypoint_counter()
    if out.suffix != ".npy":
        raise InputError(f"--out is {out}; it must end in .npy")
    check_outputs(out, overwrite)
    photos, notes = _find_photos(source, out, parameters, skip_unreadable)
    described: dict[str, Any] = {
        "parameters": {**asdict(parameters), "exclude": list(parameters.exclude)},
        "photos": [{"file": photo.name, "sha256": photo.sha256} for photo in photos],
    }
    if out.exists() and not overwrite:
        return existing(out, described)
    pool = _empty_pool(parameters)
    _fill(pool, photos, parameters, keypoints, source)
    np.random.default_rng([parameters.seed, len(photos)]).shuffle(pool)
    for photo, entry in zip(photos, described["photos"], strict=True):
        entry |= {"tried": photo.tried, "accepted": photo.accepted, "too_small": photo.too_small}
    write(out, pool, described)
    return replace(summary(out, pool.shape, described, built=True), notes=tuple(notes))


def load_public_pool(path: Path, image_shape: tuple[int, ...]) -> np.ndarray:
    """Open a pool for images of shape `image_shape` = (H, W, C).

    Returns:
        uint8 [M, H, W, C], memory-mapped and read-only.

    Raises:
        InputError: when the file is missing, is no such array, or is not the one that the .json
            beside it describes (a pool without a .json is taken as it is).
    """
    if path.is_dir():
        raise InputError(f"the public pool is {path}, a folder; name the .npy file of a pool")
    remedy = _remedy(path, image_shape)
    if not path.exists():
        raise InputError(f"the public pool {path} does not exist; {remedy}")
    with decoding(f"the public pool {path}", remedy):
        pool = np.load(path, mmap_mode="r", allow_pickle=False)
    if (
        not isinstance(pool, np.ndarray)
        or pool.dtype != np.uint8
        or pool.ndim != 4
        or not len(pool)
    ):
        found = "several arrays"
        if isinstance(pool, np.ndarray):
            found = f"{pool.dtype} {pool.shape}"
            if pool.dtype == np.uint8 and (*pool.shape[1:], 1) == tuple(image_shape):
                remedy = "save pool[..., None] instead"
        raise InputError(
            f"the public pool {path} holds {found}; expected uint8 [M, H, W, C]; {remedy}"
        )
    if pool.shape[1:] != tuple(image_shape):
        if pool.shape[1:] == (image_shape[2], *image_shape[:2]):
            remedy = "save np.transpose(pool, (0, 2, 3, 1)) instead"
        raise InputError(
            f"the public pool {path} holds images of {pool.shape[1:]}, the private images are "
            f"{tuple(image_shape)}; {remedy}"
        )
    description = path.with_suffix(".json")
    if description.exists() and read_json(description).get("sha256") != sha256_of(path):
        raise InputError(f"{description} describes another pool than {path}; {remedy}")
    return pool


def _remedy(path: Path, image_shape: tuple[int, ...]) -> str:
    """How to come to a pool for images of this shape."""
    height, width, channels = image_shape
    if height != width or channels not in (1, 3):
        return f"save one with numpy.save: uint8 [M, {height}, {width}, {channels}]"
    larger = f" --test-size {height}" if height > PoolParameters.test_size else ""
    is_free = path.suffix == ".npy" and not path.exists()
    return (
        "build one with: instahide prepare public-pool --source FOLDER "
        f"--out {path if is_free else 'ANOTHER.npy'} --size {height} --channels {channels}{larger}"
    )


def _keypoint_counter() -> Callable[[np.ndarray], int]:
    """A function that counts the SIFT keypoints of a uint8 [H, W] image."""
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "SIFT needs OpenCV, which is not installed: pip install -e '.[public-pool]'"
        ) from error
    sift = cv2.SIFT.create()
    return lambda gray: len(sift.detect(gray, None))


def _find_photos(
    source: Path, out: Path, parameters: PoolParameters, skip_unreadable: bool
) -> tuple[list[_Photo], list[str]]:
    """The photos by name, and notes of what is left out; a pool at `out` is not among them."""
    if not source.is_dir():
        raise InputError(f"--source {source} is no folder; give a folder of photographs")

    def name_of(path: Path) -> str:
        return path.relative_to(source).as_posix()

    own = {file.absolute() for file in pool_files(out)}
    unused = set(parameters.exclude)

    def is_wanted(path: Path) -> bool:
        matching = {p for p in parameters.exclude if fnmatch.fnmatch(name_of(path), p)}
        unused.difference_update(matching)
        return not matching and path.absolute() not in own

    def look(data: bytes) -> tuple[str, Facts]:
        return hashlib.sha256(data).hexdigest(), inspect(data)

    tree = walk(source)
    paths = sorted(filter(is_wanted, tree.files), key=name_of)
    problems = [problem for problem in lost_links(tree) if is_wanted(problem.path)]
    if unused:
        raise InputError(
            f"--exclude {min(unused)!r} matches no file below {source}; give patterns of paths "
            "from there, such as 'folder/*.jpg', or leave it out"
        )
    total = len(paths) + len(problems)
    found: list[tuple[Path, str, Facts]] = []
    for path in progress(paths, "checking", len(paths), " photos"):
        outcome = attempt(path, look)
        if isinstance(outcome, Problem):
            problems.append(outcome)
        else:
            found.append((path, *outcome))
    problems.sort(key=lambda problem: problem.path)
    notes = tree_notes(tree) + settle(problems, total, skip_unreadable)
    if not found:
        raise InputError(
            f"{source} holds no photos ({', '.join(FORMATS)}), or --exclude leaves none; "
            "give another --source or fewer patterns"
        )
    photos = [
        _Photo(path, name_of(path), sha256, np.random.default_rng([parameters.seed, index]))
        for index, (path, sha256, _) in enumerate(found)
    ]
    notes += image_notes((path, facts) for path, _, facts in found)
    return photos, notes


def _empty_pool(parameters: PoolParameters) -> np.ndarray:
    shape = pool_shape(asdict(parameters))
    check_memory(
        "--count",
        parameters.count,
        f"patches of {parameters.size} pixels",
        math.prod(shape),
        lambda memory: memory // math.prod(shape[1:]),
    )
    return np.empty(shape, np.uint8)


def _fill(
    pool: np.ndarray,
    photos: Sequence[_Photo],
    parameters: PoolParameters,
    keypoints: Callable[[np.ndarray], int],
    source: Path,
) -> None:
    """Fill `pool` in rounds; a round asks every live photo for an equal share of what lacks."""
    filled = 0
    with progress_bar(len(pool), "public pool", " patches") as progress:
        while filled < len(pool):
            live = [photo for photo in photos if photo.is_live]
            if not live:
                _raise_too_few(source, photos, filled, parameters)
            share = math.ceil((len(pool) - filled) / len(live))
            for photo in live:
                wanted = min(share, len(pool) - filled)
                for patch in _patches(photo, wanted, parameters, keypoints):
                    pool[filled] = patch
                    filled += 1
                    progress.update()


def _raise_too_few(
    source: Path, photos: Sequence[_Photo], filled: int, parameters: PoolParameters
) -> None:
    small = sum(photo.too_small for photo in photos)
    tried = sum(photo.tried for photo in photos)
    if small == len(photos):
        raise InputError(
            f"{source} has no photo of at least {parameters.test_size} pixels on its shorter side: "
            f"add larger ones, or lower --test-size ({parameters.size} at least)"
        )
    raise InputError(
        f"{source} gave {filled} of {parameters.count} patches: {tried} tried in "
        f"{len(photos) - small} photos ({small} more are smaller than {parameters.test_size} "
        f"pixels), and fewer than {_MIN_ACCEPTANCE:.0%} have more than "
        f"{parameters.min_keypoints} keypoints; add photos with more detail, or lower "
        "--min-keypoints or --count"
    )


def _patches(
    photo: _Photo,
    share: int,
    parameters: PoolParameters,
    keypoints: Callable[[np.ndarray], int],
) -> Iterator[np.ndarray]:
    """Yield up to `share` patches, uint8 [size, size, channels], while the photo is live."""
    import cv2

    pixels = np.asarray(read_upright(photo.path, "RGB"))
    short_side = min(pixels.shape[:2])
    photo.too_small = short_side < parameters.test_size
    wanted = photo.accepted + share
    while photo.is_live and photo.accepted < wanted:
        crop, mirror = _random_square(photo.rng, pixels, parameters.test_size)
        tested = cv2.resize(crop, (parameters.test_size,) * 2, interpolation=cv2.INTER_AREA)
        gray = cv2.cvtColor(tested, cv2.COLOR_RGB2GRAY)
        photo.tried += 1
        if keypoints(gray) <= parameters.min_keypoints:
            continue
        photo.accepted += 1
        chosen = gray if parameters.channels == 1 else tested
        patch = cv2.resize(chosen, (parameters.size,) * 2, interpolation=cv2.INTER_AREA)
        patch = patch.reshape(parameters.size, parameters.size, parameters.channels)
        yield patch[:, ::-1] if mirror else patch


def _random_square(
    rng: np.random.Generator, pixels: np.ndarray, test_size: int
) -> tuple[np.ndarray, bool]:
    """A random square of `pixels`, and whether to mirror it. Draws the same numbers every time."""
    height, width = pixels.shape[:2]
    largest = min(_LARGEST_SIDE * test_size, height, width)
    side = round(math.exp(rng.uniform(math.log(test_size), math.log(largest))))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    return pixels[top : top + side, left : left + side], bool(rng.integers(2))
