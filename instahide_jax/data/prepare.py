"""Build data sets in the TFDS folder, without TensorFlow wherever the files are at hand.

What is written has TFDS' official name, version and features and is stored as array_record, so
`tfds.data_source(name, split=..., data_dir=...)` reads it and TensorFlow is never imported.
"""

import importlib.util
import io
import re
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.util import DownloadError

from instahide_jax.data.archives import LabelledImages
from instahide_jax.data.content import Content, SplitContent, digest
from instahide_jax.data.image_checks import read_again
from instahide_jax.data.image_folder import ImageFile, ImageFolder, read_image_folder
from instahide_jax.data.official import SIZES, Official, read_official
from instahide_jax.data.prepare_text import (
    is_glue,
    is_movie_reviews,
    prepare_glue,
    prepare_movie_reviews,
)
from instahide_jax.data.prepared import (
    INSTALL_TENSORFLOW,
    Prepared,
    already,
    build_or_compare,
    is_there,
    run_builder,
    temporary_files_in,
)
from instahide_jax.data.tfds_io import FILE_FORMAT, data_root
from instahide_jax.errors import InputError, did_you_mean
from instahide_jax.metrics import progress

_FOLDER_VERSION = "1.0.0"
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def prepare(
    name: str,
    source: Path | None = None,
    data_dir: Path | None = None,
    overwrite: bool = False,
    *,
    skip_unreadable: bool = False,
) -> Prepared:
    """Build data set `name` in the TFDS folder, unless it is there already.

    One that is there must have been made of the examples that `source` holds, if that is given.

    Args:
        name: a TFDS data set (optionally with configuration or version: `glue/sst2`), or with
            `source` any new name.
        source: the original files of mnist, fashion_mnist, cifar10 or cifar100 (see
            `instahide_jax.data.official`), GLUE's own files of a task (`glue/sst2`, see
            `instahide_jax.data.glue_files`), vaderSentiment's source package (`movie-reviews`, see
            `instahide_jax.data.movie_reviews`), or a folder with one folder of images per class
            (see `instahide_jax.data.image_folder`). None: TFDS downloads, which takes TensorFlow.
        data_dir: the TFDS folder; None is $TFDS_DATA_DIR, or ~/tensorflow_datasets.
        overwrite: build it anew if it is there.
        skip_unreadable: of a folder of images, leave out the files that cannot be used.

    Guarantees: the folder NAME/VERSION appears only when it is whole, and an old one stays until
    then; a run that is killed leaves at most an `incomplete.*` folder beside it. A kill just when
    the new one takes the place of the old one leaves the old one as `replaced.VERSION`, perhaps
    with no data set beside it; the next `prepare` puts it back, or removes it. Equal files give
    equal records.

    Raises:
        InputError: for anything wrong with the name, the files, the download or the disk, or a data
            set that was made of other examples.
    """
    root = data_root(data_dir).absolute()
    has_own_files = name in SIZES or is_glue(name) or is_movie_reviews(name)
    if skip_unreadable and (source is None or has_own_files):
        raise InputError(
            f"{name} is not made of a folder of images, which alone --skip-unreadable is for; "
            "leave it out"
        )
    if is_movie_reviews(name):
        return prepare_movie_reviews(source, root, overwrite)
    if is_glue(name) and (source is not None or not _has_tensorflow()):
        return prepare_glue(name, source, root, overwrite)
    if source is None:
        return _download(name, root, overwrite)
    if name in SIZES:
        return _prepare_official(name, source, root, overwrite)
    return _prepare_folder(name, source, root, overwrite, skip_unreadable)


def _prepare_official(name: str, source: Path, root: Path, overwrite: bool) -> Prepared:
    base = tfds.builder_cls(name)
    path = root / name / str(base.VERSION)
    data = read_official(name, source, published_sums(name))
    content = Content(
        {split: _array_content(part) for split, part in data.splits.items()}, data.class_names
    )
    make = partial(_official_builder, base, data)
    return build_or_compare(make, path, content, source, (data.checked,), overwrite)


def _array_content(part: LabelledImages) -> SplitContent:
    arrays = [part.images, *(part.labels[label] for label in sorted(part.labels))]
    parts = (piece for array in arrays for piece in (f"{array.shape}", array.tobytes()))
    return SplitContent(len(part.images), digest(parts))


def published_sums(name: str) -> dict[str, str]:
    """File name -> SHA-256 of what TFDS would download."""
    urls = tfds.builder_cls(name).url_infos
    return {info.filename: info.checksum for info in urls.values()}


def _prepare_folder(
    name: str, source: Path, root: Path, overwrite: bool, skip_unreadable: bool
) -> Prepared:
    if not _NAME.fullmatch(name):
        raise InputError(
            f"data set name {name!r} must be lower-case words joined by underscores, "
            "such as chest_xray"
        )
    if name in _official_names():
        raise InputError(
            f"{name} is an official TFDS data set, and local files are read only for "
            f"{', '.join(SIZES)}; choose another name for {source}"
        )
    folder = read_image_folder(source, skip_unreadable=skip_unreadable)
    content = Content(
        {split: _file_content(split, files) for split, files in folder.splits.items()},
        {"label": folder.class_names},
    )
    path = root / name / _FOLDER_VERSION
    make = partial(_folder_builder, name, folder)
    return build_or_compare(make, path, content, source, folder.notes, overwrite)


def _file_content(split: str, files: Sequence[ImageFile]) -> SplitContent:
    """Of the files as they are, not of what is stored, which may depend on a version of Pillow.

    And of the background of those that are transparent, which is not in the files.
    """

    def parts() -> Iterator[bytes | str]:
        for file in progress(files, f"sums of {split}", len(files), " images"):
            yield from (file.key, str(file.label), read_again(file.path))
            if file.background:
                yield file.background

    return SplitContent(len(files), digest(parts()))


def _official_names() -> list[str]:
    # The community's data sets would need the network.
    return list(tfds.list_builders(with_community_datasets=False))


def _official_builder(base: Any, data: Official, root: Path) -> Any:
    """TFDS' own builder, but fed from memory: name, version and features stay the official ones."""

    class LocalBuilder(base, skip_registration=True):  # type: ignore[call-arg]
        name = base.name

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            for label, names in data.class_names.items():
                self.info.features[label].names = names
            with_id = "id" in self.info.features
            return {s: _array_examples(s, part, with_id) for s, part in data.splits.items()}

    return LocalBuilder(data_dir=root, file_format=FILE_FORMAT)


def _array_examples(
    split: str, data: LabelledImages, with_id: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
    # The running number as key and as id is what TFDS uses: the order on disk comes out the same.
    for index, image in enumerate(progress(data.images, split, len(data.images), " images")):
        example: dict[str, Any] = {"image": encode_png(image)}
        example |= {label: int(values[index]) for label, values in data.labels.items()}
        yield index, example | ({"id": f"{split}_{index:05d}"} if with_id else {})


def encode_png(image: np.ndarray) -> bytes:
    """uint8 [H, W, 1] or [H, W, 3] -> PNG. TFDS itself would call TensorFlow to encode arrays."""
    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, "PNG")
    return stream.getvalue()


def _folder_builder(name: str, folder: ImageFolder, root: Path) -> Any:
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=folder.shape),
            "label": tfds.features.ClassLabel(names=list(folder.class_names)),
        }
    )

    builder_type: Any = tfds.core.GeneratorBasedBuilder

    class LocalBuilder(builder_type, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version(_FOLDER_VERSION)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self, features=features, supervised_keys=("image", "label")
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(split) for split in folder.splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
            files = folder.splits[split]
            for file in progress(files, split, len(files), " images"):
                yield file.key, {"image": folder.read(file), "label": file.label}

    LocalBuilder.name = name
    return LocalBuilder(data_dir=root, file_format=FILE_FORMAT)


def _download(name: str, root: Path, overwrite: bool) -> Prepared:
    """TFDS' own download and preparation, or a data set of any name that is there already."""
    of_folder = root / name / _FOLDER_VERSION
    if _NAME.fullmatch(name) and is_there(of_folder) and name not in _official_names():
        if overwrite:
            raise InputError(
                f"--overwrite needs the images of {name} again: give their folder with --source"
            )
        return already(of_folder)
    has_tensorflow = _has_tensorflow()
    _check_known(name, has_tensorflow)
    try:
        with tempfile.TemporaryDirectory() as folder, temporary_files_in(folder):
            builder = _official_download(name, root)
    except (ValueError, AssertionError) as error:  # the latter for an unknown version
        raise InputError(
            f"TFDS cannot build {name!r}: {error}; name another configuration or version, or none"
        ) from error
    path = Path(builder.data_dir)
    if is_there(path) and not overwrite:
        return already(path)
    local = ", or give its original files with --source" if name in SIZES else ""
    if not has_tensorflow:
        raise InputError(
            f"TFDS needs TensorFlow to download and prepare {name}: {INSTALL_TENSORFLOW}{local}"
        )
    downloads = root / "downloads"
    manual = downloads / "manual"
    instructions = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    if instructions and not (manual.exists() and any(manual.iterdir())):
        raise InputError(f"{name} must be downloaded by hand, into {manual}: {instructions}")
    make = partial(_official_download, name)
    remedy = f"check network and disk{local}"
    try:
        return run_builder(make, path, None, remedy, quiet=False, downloads=downloads)
    except (DownloadError, NonMatchingChecksumError) as error:
        raise InputError(f"the download of {name} failed: {error}; try again{local}") from error


def _official_download(name: str, root: Path) -> Any:
    return tfds.builder(name, data_dir=root, file_format=FILE_FORMAT)


def _has_tensorflow() -> bool:
    return importlib.util.find_spec("tensorflow") is not None


def _check_known(name: str, has_tensorflow: bool) -> None:
    """InputError, with the nearest name, unless TFDS has the data set."""
    base, known = re.split("[/:]", name)[0], _official_names()
    if base in known:
        return
    hint = did_you_mean(base, known, "for files of your own give --source FOLDER")
    if not has_tensorflow:
        hint += f" (a few, such as c4, need TensorFlow to be listed: {INSTALL_TENSORFLOW})"
    raise InputError(f"TFDS has no data set {base!r}; {hint}")
