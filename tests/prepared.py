"""TFDS data sets that are prepared for a test, without TensorFlow."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds


def write_rows(
    folder: Path | str,
    name: str,
    features: Mapping[str, Any],
    splits: Mapping[str, Iterable[Mapping[str, Any]]],
    *,
    version: str = "1.0.0",
    config: str | None = None,
    configs: Iterable[str] = (),
) -> None:
    """Prepare a set whose splits have these rows, in their order.

    `config` is the one to prepare, of all `configs` that the set has.
    """

    class Rows(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=each) for each in configs]  # noqa: RUF012

        def _info(self) -> tfds.core.DatasetInfo:
            described = tfds.features.FeaturesDict(dict(features))
            return tfds.core.DatasetInfo(builder=self, features=described, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(rows) for split, rows in splits.items()}

        def _generate_examples(self, rows: Iterable[Mapping[str, Any]]) -> Any:
            return enumerate(rows)

    Rows.name = name
    Rows(config=config, data_dir=folder, file_format="array_record").download_and_prepare()
