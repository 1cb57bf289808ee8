"""instahide_jax.data.split_folders: which folders are splits, and which are classes."""

import re
import shutil
from pathlib import Path

import pytest
from odd_images import FOREIGN, write_classes

from instahide_jax.data.image_folder import arrays_from_folder, read_image_folder
from instahide_jax.data.split_folders import find_splits, split_of
from instahide_jax.errors import InputError


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (
            "train Train TRAIN training Training trainset train_set Training-Set train_images",
            "train",
        ),
        ("train2017 01_train training.data traindata trn", "train"),
        ("TRA\u0130N tra\u0131n", "train"),  # as a Turkish system changes the case of an i
        ("te\u017ft", "test"),
        ("test Test testing TESTING test_set test2015 testset tst", "test"),
        ("val Val valid Valid validation VALIDATION val2017 validation_set dev", "validation"),
        ("trainer tests_x strain testament value valuable invalid retrain device trainee", None),
    ],
)
def test_spellings(names: str, split: str | None) -> None:
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)
    assert split_of("Training Set") == "train"


@pytest.mark.parametrize(
    ("train", "test"), [("Training", "Testing"), ("Train", "Test"), ("training", "testing")]
)
def test_splits_are_found_in_any_spelling(train: str, test: str, tmp_path: Path) -> None:
    """The fault of the issue: the splits became classes, and test images went into training."""
    write_classes(tmp_path / train, 3)
    write_classes(tmp_path / test, 2)
    folder = read_image_folder(tmp_path)
    assert folder.class_names == ("a", "b")
    assert {split: len(files) for split, files in folder.splits.items()} == {"train": 6, "test": 4}
    assert {file.path.parts[-3] for file in folder.splits["train"]} == {train}
    assert {file.path.parts[-3] for file in folder.splits["test"]} == {test}

    arrays, notes = arrays_from_folder(tmp_path)
    assert (arrays.class_names, len(arrays.labels)) == (("a", "b"), 6)
    assert notes == (f"read the split {train}, left out {test}",)
    for name in ("test", test, "test_images", "Test Set"):
        arrays, notes = arrays_from_folder(tmp_path, split=name)
        assert len(arrays.labels) == 4
        assert notes == (f"read the split {test}, left out {train}",)
    for name in ("val", "", "train[:2]", "test ", "train1", "train+test"):  # no slices of folders
        match = rf"no folder of the split {re.escape(repr(name))}; choose from train, test$"
        with pytest.raises(InputError, match=match):
            arrays_from_folder(tmp_path, split=name)


def test_labels_of_another_split_are_those_of_train(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 2, "abc")
    write_classes(tmp_path / "test", 1, "c")
    arrays, _ = arrays_from_folder(tmp_path, split="test")
    assert (arrays.labels.tolist(), arrays.num_classes) == ([2], 3)


def refused(source: Path, message: str) -> None:
    for read in (read_image_folder, arrays_from_folder):
        with pytest.raises(InputError, match=message) as caught:
            read(source)
        assert len(str(caught.value).splitlines()) == 1


def test_two_spellings_of_one_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 2)
    write_classes(tmp_path / "Training", 2)
    refused(tmp_path, "both Training and train, which mean the split train; put them together, or")
    (tmp_path / "Training").rename(tmp_path.parent / "elsewhere")
    read_image_folder(tmp_path)


@pytest.mark.parametrize("others", [["Fold1", "Fold2"], ["A", "B", "C"], ["seg_train", "seg_test"]])
def test_folders_of_the_same_names_are_no_classes(others: list[str], tmp_path: Path) -> None:
    for name in others:
        write_classes(tmp_path / name, 2)
    write_classes(tmp_path / others[0], 2, "c")  # one of them may have a class more
    refused(tmp_path, r"hold folders of the same names \(a, b, c\), as splits do: name the splits")
    read_image_folder(tmp_path / others[0])  # each of the remedies works
    (tmp_path / others[0]).rename(tmp_path / "train")
    (tmp_path / others[1]).rename(tmp_path / "test")
    for name in others[2:]:
        (tmp_path / name).rename(tmp_path / "validation")
    assert read_image_folder(tmp_path).class_names == ("a", "b", "c")


@pytest.mark.parametrize("middle", ["x", "x/y"])  # as in seg_train/seg_train
def test_folders_of_the_same_names_further_below(middle: str, tmp_path: Path) -> None:
    for name in ("Fold1", "Fold2"):
        write_classes(tmp_path / name / middle, 2)
    refused(tmp_path, r"hold folders of the same names \(a, b\), as splits do: name the splits")
    read_image_folder(tmp_path / "Fold1" / middle)


def test_names_that_speak_of_splits_above_other_folders(tmp_path: Path) -> None:
    write_classes(tmp_path / "seg_train", 2, "abc")
    write_classes(tmp_path / "seg_test", 2, "bcd")
    refused(tmp_path, r"seem to be splits \(seg_test, seg_train\): name them train")


@pytest.mark.parametrize("stray", [1, 2])
@pytest.mark.parametrize("names", [["seg_train", "seg_test"], "AB"])
def test_stray_images_beside_the_classes(names: list[str], stray: int, tmp_path: Path) -> None:
    """The splits became the classes, and test images went into training."""
    for folder in names:
        write_classes(tmp_path / folder, 2)
    write_classes(tmp_path, stray, names[:1])
    refused(tmp_path, r"all folders in .* hold folders of the same names \(a, b\), as splits do")
    with pytest.raises(InputError, match="hold folders of the same names"):
        arrays_from_folder(tmp_path)


def test_a_class_may_hold_more_images_than_folders(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_classes(tmp_path / name, 2)
        write_classes(tmp_path, 3, [name])
    assert read_image_folder(tmp_path).class_names == ("cat", "dog")


def test_stray_images_beside_other_classes(tmp_path: Path) -> None:
    write_classes(tmp_path / "seg_train", 2, "abc")
    write_classes(tmp_path / "seg_test", 2, "bcd")
    write_classes(tmp_path, 1, ["seg_train"])
    refused(tmp_path, r"seem to be splits \(seg_test, seg_train\): name them train")
    write_classes(tmp_path / "lone" / "data", 2)
    write_classes(tmp_path / "lone", 1, ["data"])
    refused(tmp_path / "lone", "holds the folder data alone: move what it holds into")


def test_a_stray_image_makes_no_class_of_a_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "trainval", 2)
    write_classes(tmp_path, 1, ["trainval", "test"])
    refused(tmp_path, r"mixes folders of splits \(test\) with others \(trainval\)")


@pytest.mark.parametrize(("one", "two", "flat"), [("A", "B", "C"), ("seg_train", "x", "seg_test")])
def test_a_folder_of_images_alone_beside_splits(
    one: str, two: str, flat: str, tmp_path: Path
) -> None:
    write_classes(tmp_path / one, 2)
    write_classes(tmp_path / two, 2)
    write_classes(tmp_path, 4, [flat])
    refused(
        tmp_path, rf"most folders in .* \({one}, {two}\) hold folders of the same names \(a, b\)"
    )
    shutil.rmtree(tmp_path / two)
    if one == "A":
        assert read_image_folder(tmp_path).class_names == ("A", "C")
    else:
        refused(tmp_path, r"seem to be splits \(seg_test, seg_train\)")


@pytest.mark.parametrize(
    "names",
    [
        ["seg_train", "seg_test"],
        ["seg_train", "seg_test", "seg_pred"],
        ["Train of Mine", "val of mine"],
        ["fold1_train", "fold1_test", "fold2_train", "fold2_test"],
    ],
)
def test_names_that_differ_by_the_split_alone(names: list[str], tmp_path: Path) -> None:
    write_classes(tmp_path, 2, names)
    alike = ", ".join(sorted(name for name in names if "pred" not in name))
    refused(tmp_path, rf"differ by the split alone \({alike}\): name them train")
    for number, name in enumerate(names):  # as is said where they are classes
        (tmp_path / name).rename(tmp_path / str(number))
    assert len(read_image_folder(tmp_path).class_names) == len(names)


@pytest.mark.parametrize(
    "names", [["train_station", "test_tube"], ["cat", "dog", "seg_train", "seg_test"]]
)
def test_classes_whose_names_hold_the_words_of_splits(names: list[str], tmp_path: Path) -> None:
    write_classes(tmp_path, 2, names)
    assert read_image_folder(tmp_path).class_names == tuple(sorted(names))


def test_folds_of_splits(tmp_path: Path) -> None:
    for fold in ("fold_1", "fold_2"):
        for split in ("train", "val"):
            write_classes(tmp_path / fold / split, 2)
    message = (
        rf"fold_1 holds splits of its own .*such as {tmp_path}/fold_1; if they are the classes"
    )
    refused(tmp_path, message)
    assert set(read_image_folder(tmp_path / "fold_1").splits) == {"train", "validation"}


def test_classes_may_hold_folders(tmp_path: Path) -> None:
    write_classes(tmp_path / "cat", 2, ["2019", "2020"])
    write_classes(tmp_path / "dog", 2, ["2020", "2021"])
    folder = read_image_folder(tmp_path)
    assert folder.class_names == ("cat", "dog")
    note = f"the classes are the folders right in {tmp_path}, not those below them"
    assert note in folder.notes
    assert note in arrays_from_folder(tmp_path).notes
    for name in ("cat", "dog"):  # of a single name in each: the layout of Tiny ImageNet
        shutil.rmtree(tmp_path / name)
        write_classes(tmp_path / name, 2, ["images"])
    assert read_image_folder(tmp_path).class_names == ("cat", "dog")
    write_classes(tmp_path, 1, ["cat"])
    assert note not in read_image_folder(tmp_path).notes


def test_splits_below_the_classes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_classes(tmp_path / name, 2, ["Train", "test"])
    refused(tmp_path, r"a holds the folders of splits Train, test: put the splits above the class")


@pytest.mark.parametrize("above", ["data", "train"])
def test_a_folder_alone_that_holds_the_classes(above: str, tmp_path: Path) -> None:
    write_classes(tmp_path / above / "images", 2)
    (tmp_path / "__MACOSX").mkdir()
    root = tmp_path / above if above == "train" else tmp_path
    (lone,) = (path for path in root.iterdir() if path.name != "__MACOSX")
    refused(tmp_path, f"holds the folder {lone.name} alone: move what it .*, or give {lone}$")
    assert read_image_folder(tmp_path / above / "images").class_names == ("a", "b")


def test_folders_alone_in_the_splits(tmp_path: Path) -> None:
    """To give one of them would lose the other splits."""
    for split in ("train", "test"):
        write_classes(tmp_path / split / "images", 2)
    train = tmp_path / "train"
    refused(tmp_path, f"images alone: move what it holds into {train}, and likewise in test$")
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / split / "images" / name).rename(tmp_path / split / name)
        (tmp_path / split / "images").rmdir()
    assert set(read_image_folder(tmp_path).splits) == {"train", "test"}


def test_a_folder_alone_that_holds_the_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_classes(tmp_path / "data" / split, 2)
    refused(tmp_path, f"holds the folder data alone: move .*, or give {tmp_path}/data$")
    assert set(read_image_folder(tmp_path / "data").splits) == {"train", "test"}


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    write_classes(tmp_path, 2, ["bus", "train", "car"])
    assert read_image_folder(tmp_path).class_names == ("bus", "car", "train")
    write_classes(tmp_path / "train", 2)
    refused(tmp_path, r"mixes folders of splits \(train\) with others \(bus, car\)")


@pytest.mark.parametrize(("others", "flat"), [("trainval", "test"), ("data", "validation")])
def test_a_split_without_classes_is_no_class(others: str, flat: str, tmp_path: Path) -> None:
    """The classes below the other folder were merged into one."""
    write_classes(tmp_path / others, 2)
    write_classes(tmp_path, 2, [flat])
    refused(tmp_path, rf"splits \({flat}\) with others \({others}\): name the splits train, valid")


def test_a_class_folder_may_be_a_link(tmp_path: Path) -> None:
    write_classes(tmp_path / "far", 2)
    source = tmp_path / "source"
    source.mkdir()
    for name in "ab":
        (source / name).symlink_to(tmp_path / "far" / name)
    assert len(arrays_from_folder(source).arrays.labels) == 4
    (source / "c").symlink_to(tmp_path / "far" / "c")
    refused(source, r"source/c is a link that leads nowhere: mend or remove it")


def test_a_folder_is_one_class_and_one_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 2)
    link = tmp_path / "test"
    link.symlink_to("train")
    refused(tmp_path, "test and .*train are the same folder through a link: remove the link, by w")
    link.unlink()
    for place, message in (
        ("a", "train/a and .*/c are the same folder"),
        ("a/x", "train/a and .*/c lie one in the"),
    ):
        write_classes(tmp_path / "train" / place, 1, ["."])
        link = tmp_path / "train" / "c"
        link.symlink_to(place)
        refused(tmp_path, message)
        refused(tmp_path / "train", message)
        link.unlink()
    write_classes(tmp_path / "test", 1, "a")
    (tmp_path / "test" / "b").symlink_to(tmp_path / "train" / "b")
    with pytest.raises(InputError, match=r"test/b and .*train/b are the same folder"):
        read_image_folder(tmp_path)
    with pytest.raises(InputError, match=r"test/b and .*train/b are the same folder"):
        arrays_from_folder(tmp_path, split="test")
    (tmp_path / "test" / "b").unlink()
    assert read_image_folder(tmp_path).class_names == ("a", "b")


@pytest.mark.parametrize(
    ("link", "to", "message"),
    [
        (
            "train/a/more",
            "../b",
            "a/more/00.png and .*b/00.png are one file through a link: remove",
        ),
        ("train/b/z.png", "../a/01.png", "a/01.png and .*b/z.png are one file through a link"),
    ],
)
def test_an_image_of_two_classes(link: str, to: str, message: str, tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 2)
    (tmp_path / link).symlink_to(to)
    refused(tmp_path, message)
    (tmp_path / link).unlink()
    (tmp_path / "train/a/LICENSE").write_text("free")
    (tmp_path / "train/b/LICENSE").symlink_to("../a/LICENSE")  # no image
    (tmp_path / "train/b/copy.png").hardlink_to(tmp_path / "train/a/00.png")  # a copy
    assert len(arrays_from_folder(tmp_path, skip_unreadable=True).arrays.labels) == 5


def test_an_image_of_two_classes_that_has_a_hard_link_elsewhere(tmp_path: Path) -> None:
    write_classes(tmp_path / "source", 2)
    image = tmp_path / "source/a/00.png"
    (tmp_path / "elsewhere.png").hardlink_to(image)
    (tmp_path / "source/b/zz.png").symlink_to(image)
    refused(tmp_path / "source", "a/00.png and .*b/zz.png are one file through a link: remove")


def test_an_image_and_its_link_that_are_held_out_apart(tmp_path: Path) -> None:
    write_classes(tmp_path, 9)
    link = tmp_path / "a/10.png"  # the 10th of its class
    link.symlink_to("00.png")
    with pytest.raises(InputError, match=r"a/00.png and .*a/10.png are one file through a link"):
        read_image_folder(tmp_path)
    link.rename(tmp_path / "a/01 link.png")
    assert len(read_image_folder(tmp_path).splits["train"]) == 17


def test_an_image_of_two_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_classes(tmp_path / split, 2)
    (tmp_path / "test/a/more").symlink_to("../../train/a")
    with pytest.raises(InputError, match=r"train/a/00.png and .*more/00.png are one file through"):
        read_image_folder(tmp_path)


@pytest.mark.parametrize("name", ["x", "x.jfif", "x.PNG"])
@pytest.mark.parametrize("data", [b"\xff\xd8\xff\xe0", FOREIGN["HEIC"]], ids=["JPEG", "HEIC"])
def test_images_beside_the_class_folders(name: str, data: bytes, tmp_path: Path) -> None:
    write_classes(tmp_path, 2)
    for other in ("README", "labels.csv", ".DS_Store"):
        (tmp_path / other).write_text("x")
    read_image_folder(tmp_path)
    (tmp_path / name).write_bytes(data)
    refused(tmp_path, rf"{name} lies outside the class folders: move it into one, or elsewhere$")


def test_train_is_needed(tmp_path: Path) -> None:
    write_classes(tmp_path / "Testing", 2)
    refused(tmp_path, "has Testing but no train folder: name one train, or give one of them, such")
    assert find_splits(tmp_path / "Testing") == {"train": tmp_path / "Testing"}
