"""instahide_jax.data.split_folders: which names class folders may have."""

import os
import re
from pathlib import Path

import pytest
from odd_images import write_classes
from test_split_folders import refused

from instahide_jax.data.image_folder import read_image_folder
from instahide_jax.errors import InputError


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\nb", b" ", b" b", b"b "])
def test_class_names_that_cannot_be_stored(name: bytes, tmp_path: Path) -> None:
    write_classes(tmp_path, 2)
    os.rename(tmp_path / "b", os.path.join(os.fsencode(tmp_path), name))
    refused(tmp_path, "the name of .* class folder .*: rename it")


@pytest.mark.parametrize("name", ["a ", " a", "a\u00a0"])
def test_class_names_that_become_one(name: str, tmp_path: Path) -> None:
    write_classes(tmp_path, 2, ["a", "b", name])
    refused(tmp_path, "class folders '.*' and '.*' in .* look the same: put")


def test_class_names_that_differ_by_case_alone(tmp_path: Path) -> None:
    write_classes(tmp_path / "one", 2, ["Cat", "cat", "dog"])
    refused(tmp_path / "one", "class folders 'Cat' and 'cat' in .* differ by case alone: put them")
    (tmp_path / "one" / "cat").rename(tmp_path / "one" / "small cat")
    assert read_image_folder(tmp_path / "one").class_names == ("Cat", "dog", "small cat")
    for split, name in (("train", "Cat"), ("test", "cat")):
        write_classes(tmp_path / "two" / split, 2, ["a", name])
    with pytest.raises(InputError, match=r"'cat' in .*/test looks like 'Cat' in .*: rename both"):
        read_image_folder(tmp_path / "two")


ACCENT, TWO, UNSEEN = "caf\u00e9", "cafe\u0301", "caf\u00e9\u200b"


@pytest.mark.parametrize("other", [TWO, UNSEEN])
def test_class_names_that_look_the_same(other: str, tmp_path: Path) -> None:
    write_classes(tmp_path / "one", 2, ["a", ACCENT, other])
    refused(tmp_path / "one", "the class folders '.*' and '.*' in .* look the same: put them tog")
    for split, name in (("train", ACCENT), ("test", other)):
        write_classes(tmp_path / "two" / split, 2, ["a", name])
    shown = re.escape(f"the class {other!a} in {tmp_path}/two/test looks like {ACCENT!a} in ")
    with pytest.raises(InputError, match=shown):
        read_image_folder(tmp_path / "two")
