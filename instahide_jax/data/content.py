"""What a prepared data set was made of: a record beside it, to be compared with a source."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from instahide_jax.errors import InputError, listed

RECORD = "made_of.json"  # in the folder of the data set's version


@dataclass(frozen=True)
class SplitContent:
    """A split: number of examples, and a SHA-256 over all of them; None where it is not known."""

    examples: int
    sha256: str | None = None


@dataclass(frozen=True)
class Content:
    """What a data set holds, whatever files it came in.

    Attributes:
      splits: by name.
      classes: label -> names, where they come with the source.
    """

    splits: Mapping[str, SplitContent]
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """Examples of each split."""
        return {name: split.examples for name, split in self.splits.items()}

    @property
    def is_known(self) -> bool:
        """Whether every split has its sum."""
        return all(split.sha256 is not None for split in self.splits.values())


def digest(parts: Iterable[bytes | str]) -> str:
    """SHA-256 over parts in their order, each with its length, so that no others read alike."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(f"{len(data)} ".encode())
        total.update(data)
    return total.hexdigest()


def differences(old: Content, new: Content) -> list[str]:
    """How a data set and a source differ, in words; sums that are not known count as equal."""
    lines = []
    for label, names in new.classes.items():
        known = old.classes.get(label)
        if known is not None and list(known) != list(names):
            lines.append(
                f"its classes of {label} are {listed(known, 5)}, the source's {listed(names, 5)}"
            )
    for name in {**old.splits, **new.splits}:
        there, wanted = (content.splits.get(name) for content in (old, new))
        if there is None or wanted is None:
            has, lacks = ("source", "data set") if there is None else ("data set", "source")
            lines.append(f"the {has} has a split {name}, the {lacks} has none")
        elif there.examples != wanted.examples:
            lines.append(f"{name} has {there.examples} examples, the source {wanted.examples}")
        elif None not in (there.sha256, wanted.sha256) and there.sha256 != wanted.sha256:
            lines.append(
                f"{name} has as many examples as the source but others (SHA-256 "
                f"{str(there.sha256)[:12]} and {str(wanted.sha256)[:12]})"
            )
    return lines


def write_record(folder: Path, content: Content) -> None:
    """Write the record into a folder that is not yet in its place."""
    (folder / RECORD).write_text(json.dumps(asdict(content), indent=1) + "\n", encoding="utf-8")


def read_record(folder: Path) -> Content | None:
    """The record in a data set's folder; None where there is none.

    Raises:
      InputError: if it cannot be read.
    """
    file = folder / RECORD
    try:
        value: Any = json.loads(file.read_bytes())
        splits = {
            str(name): SplitContent(int(split["examples"]), split["sha256"])
            for name, split in value["splits"].items()
        }
        return Content(splits, {str(label): list(n) for label, n in value["classes"].items()})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{file} cannot be read ({error}): give --overwrite to build the data set anew"
        ) from error
