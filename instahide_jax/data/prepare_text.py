"""Build the text sets glue/TASK and movie_reviews in the TFDS folder, without TensorFlow."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from instahide_jax.data import glue, movie_reviews
from instahide_jax.data.content import Content, SplitContent, digest
from instahide_jax.data.glue import GLUE, GlueTask, glue_task
from instahide_jax.data.glue_files import read_glue
from instahide_jax.data.movie_reviews import read_movie_reviews
from instahide_jax.data.prepared import (
    INSTALL_TENSORFLOW,
    Prepared,
    already,
    build_or_compare,
    is_there,
)
from instahide_jax.data.tfds_io import FILE_FORMAT
from instahide_jax.errors import InputError
from instahide_jax.metrics import progress

# split -> (key, features) of every example; keys are unique within a split.
Splits = Mapping[str, Sequence[tuple[Any, Mapping[str, Any]]]]


def is_glue(name: str) -> bool:
    """Whether a data set's name is GLUE's or that of one of its tasks."""
    return name.partition("/")[0] == "glue"


def is_movie_reviews(name: str) -> bool:
    """Whether a data set's name, as the command takes it, is that of the film reviews."""
    return name.replace("-", "_") == movie_reviews.NAME


def prepare_glue(name: str, source: Path | None, root: Path, overwrite: bool = False) -> Prepared:
    """Build `glue/TASK` of GLUE's own files, unless it is there already.

    Name, version, features and classes are TFDS' own, and so are the order on the disk and which
    rows are left out.

    Args:
      name: glue/TASK.
      source: the folder or zip file, see `glue_files.read_glue`; None only where the data set is
        there already.
      root: the TFDS folder.
      overwrite: build it anew if it is there.

    Raises:
      InputError: an unknown task, no source, anything wrong with the files or the disk, or a data
        set that was made of other files.
    """
    if "/" not in name:
        raise InputError(f"{name} has several tasks; name one of {', '.join(GLUE)}: glue/sst2")
    task = glue_task(name.partition("/")[2])
    path = root / "glue" / task.name / glue.VERSION
    if source is None:
        if is_there(path) and not overwrite:
            return already(path)
        raise InputError(
            f"{name} needs --source FOLDER_OR_ZIP with GLUE's own files, or TensorFlow to download "
            f"them: {INSTALL_TENSORFLOW}"
        )
    splits, notes = read_glue(task, source)
    keyed = {
        split: [(example["idx"], example) for example in examples]
        for split, examples in splits.items()
    }
    make = partial(_glue_builder, task, keyed)
    return build_or_compare(make, path, _content(keyed), source, tuple(notes), overwrite)


def _content(splits: Splits) -> Content:
    return Content(
        {
            split: SplitContent(len(examples), digest(json.dumps(each) for each in examples))
            for split, examples in splits.items()
        }
    )


def _glue_builder(task: GlueTask, splits: Splits, root: Path) -> Any:
    label = (
        tfds.features.ClassLabel(names=list(task.class_names)) if task.class_names else np.float32
    )
    texts = {feature: tfds.features.Text() for feature in task.texts}
    features = {**texts, task.label: label, "idx": np.int32}
    builder_type = _builder_type("glue", glue.VERSION, features, splits)
    # All of TFDS' configurations of these tasks: the first is the default of the whole data set.
    builder_type.BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, version=glue.VERSION) for name in GLUE
    ]
    return builder_type(config=task.name, data_dir=root, file_format=FILE_FORMAT)


def prepare_movie_reviews(source: Path | None, root: Path, overwrite: bool = False) -> Prepared:
    """Build movie_reviews of vaderSentiment's source package, unless it is there already.

    Splits train, test, tweets and editorials, features text, label (negative, positive; -1 in
    the last two splits, which are public texts) and rating; see `movie_reviews`.

    Args:
      source: vaderSentiment-3.3.2.tar.gz; None only where the data set is there already.
      root: the TFDS folder.
      overwrite: build it anew if it is there.

    Raises:
      InputError: no source, another file than the published one, anything wrong with the disk, or a
        data set that was made of another file.
    """
    path = root / movie_reviews.NAME / movie_reviews.VERSION
    if source is None and is_there(path) and not overwrite:
        return already(path)
    splits = read_movie_reviews(source)
    assert source is not None  # which is refused
    keyed = {
        split: [
            (text.key, example) for text, example in zip(part.texts, part.examples(), strict=True)
        ]
        for split, part in splits.items()
    }
    features = {
        "text": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=list(movie_reviews.CLASS_NAMES)),
        "rating": np.float32,
    }
    builder_type = _builder_type(movie_reviews.NAME, movie_reviews.VERSION, features, keyed)

    def make(folder: Path) -> Any:
        return builder_type(data_dir=folder, file_format=FILE_FORMAT)

    notes = ("SHA-256 of the source package as published",)
    return build_or_compare(make, path, _content(keyed), source, notes, overwrite)


def _builder_type(name: str, version: str, features: Mapping[str, Any], splits: Splits) -> Any:
    """A TFDS builder that takes its examples from memory."""
    base: Any = tfds.core.GeneratorBasedBuilder

    class LocalBuilder(base, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version(version)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[Any, Mapping[str, Any]]]:
            yield from progress(splits[split], split, len(splits[split]), " texts")

    LocalBuilder.name = name
    return LocalBuilder
