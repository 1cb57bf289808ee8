"""Cases of `remedies`: tables, GLUE's files, film reviews, sources of texts."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tiny_text
from remedies import case, refused, warned
from test_movie_reviews import archive, sdist
from tiny_glue import MSR, TINY, write

from instahide_jax.data.glue import GLUE, glue_task
from instahide_jax.data.glue_files import read_glue
from instahide_jax.data.movie_reviews import choose_test, read_movie_reviews
from instahide_jax.data.prepare_text import prepare_glue, prepare_movie_reviews
from instahide_jax.data.text_sources import TableText, TextData, TfdsText
from instahide_jax.data.texts import make_texts, read_table
from instahide_jax.folders import local_folder

HEADER = "text,label\n"


def corrected(read: Callable[..., Any], *rows: tuple[str, str, str]) -> None:
    """Of every row: content of a file, a part of the message, and the content that it asks for."""
    for bad, message, good in rows:
        Path("t.csv").write_text(bad)
        with refused(message):
            read("t.csv")
        Path("t.csv").write_text(good)
        read("t.csv")


def table(path: str, **options: Any) -> Any:
    return read_table(path, **{"text": "text", "label": "label"} | options)


@case
def tables(place: Path) -> None:
    good = HEADER + "a,x\nb,y\n"
    corrected(
        table,
        (HEADER + '"a,x\n', "line 2: unexpected end of data: correct the line", good),
        (HEADER + "a,x,y\n", "line 2 has 3 cells, the header 2: correct the line", good),
        ("text,labels\na,x\n", "did you mean 'labels'?", good),
        ("text;label\na;x\n", "separate the cells by commas", good),
        ("text,label,text\na,x,b\n", "has 2 columns 'text': rename one", "text,label,more\na,x,b"),
        (HEADER, "holds no row: give at least one", good),
        (good + HEADER + "c,x\n", "line 4 is the header again", good + "c,x\n"),
        ("\n", "is empty: it needs a line with the names of columns, and rows", good),
        (HEADER + "a\rb,x\nb,y\n", "line 2 has a carriage return within: remove it", good),
        (HEADER + '"a",x\rb,y\nc,z\n', "line 2 has a carriage return within: remove it", good),
        (HEADER + "a\rb,x\nb,y\n", "or save the file with line ends of one kind", good),
        (HEADER + "a,01\nb,1\n", "write it in one way", HEADER + "a,1\nb,1\n"),
        (HEADER + "a,\u00e9\nb,e\u0301\nc,x\n", "which occurs before: write it in one way", good),
        (HEADER + "a,yes\nb,Yes\nc,x\n", "which occurs before: write it in one way", good),
        (HEADER + 'a,1\nb,"""1"""\nc,x\n', "write it in one way", HEADER + "a,1\nb,1\n"),
        (HEADER + "a,inf\nb,1\n", "no finite number: correct it, or list", HEADER + "a,1\nb,1\n"),
        (HEADER + "a,-\nb,x\n", "fill it in", good),
    )
    Path("t.txt").write_text(good)
    with refused("must end in .tsv, .csv, .jsonl: rename or convert it"):
        table("t.txt")
    Path("t.txt").rename("u.csv")
    table("u.csv")
    with refused("cannot read t.tsv", "check its path"):
        table("t.tsv")
    for line, message in (
        (
            "{",
            "is not JSON",
        ),
        ("[1]", "expected an object; correct the line"),
        ('{"text": 3, "label": 1}', "expected a string; correct the line"),
        ('{"text": "a", "label": true}', "expected a number or a class name; write one"),
    ):
        Path("t.jsonl").write_text(line)
        with refused(message):
            table("t.jsonl")
    Path("t.jsonl").write_text('{"text": "a", "label": 1}')
    table("t.jsonl")

    Path("t.csv").write_text(HEADER + "a,-\nb,x\nc,y\n")
    with refused("set drop_unlabelled=True to leave out rows", "list it in class_names"):
        table("t.csv")
    with warned("left out 1 of 3 rows, which have no label"):
        assert table("t.csv", drop_unlabelled=True).first == ("b", "c")
    assert table("t.csv", class_names=("-", "x", "y")).labels.tolist() == [0, 1, 2]
    with refused("no class; choose from u, v"):
        table("t.csv", class_names=("u", "v"), drop_unlabelled=True)
    Path("t.csv").write_text(HEADER + "a,01\nb,1\n")
    with refused("or name the class_names"):
        table("t.csv")
    table("t.csv", class_names=("01", "1"))
    Path("t.csv").write_text(HEADER + "a,a\nb,A\n")
    with refused("or name the class_names"):
        table("t.csv")
    table("t.csv", class_names=("a", "A"))
    Path("t.csv").write_text(HEADER + "a,\u00e9\nb,x\n")
    with refused("looks like the class 'e\\u0301', but is", "write both in one way"):
        table("t.csv", class_names=("e\u0301", "x"))
    table("t.csv", class_names=("\u00e9", "x"))
    Path("t.csv").write_text(HEADER + "a,inf\nb,1\n")
    with refused("or list it in class_names where it is a class"):
        table("t.csv")
    table("t.csv", class_names=("inf", "1"))
    with refused("give a list of names, in order"):
        table("t.csv", class_names="inf")
    with refused("neither a text nor an integer: write it in quotes"):
        table("t.csv", class_names=("inf", 1.0))
    table("t.csv", class_names=("inf", "1.0"))
    Path("t.csv").write_text(HEADER + "a,0.5\nb,1\n")
    with refused("set regression=True to learn numbers, or name the class_names"):
        table("t.csv")
    table("t.csv", regression=True)
    table("t.csv", class_names=("0.5", "1"))
    with refused("but labels are numbers: leave out class_names or regression"):
        table("t.csv", class_names=("0.5", "1"), regression=True)
    Path("t.csv").write_text(HEADER + "a,x\n")
    with refused("is no finite number: correct it"):
        table("t.csv", regression=True)
    Path("t.csv").write_text(HEADER + "a,?\n")
    with refused("label the rows, or set label=None"):
        table("t.csv", drop_unlabelled=True)
    table("t.csv", label=None)


@case
def texts_in_memory(place: Path) -> None:
    names = ("no", "yes")
    good: dict[str, Any] = {"first": ["a", "b"], "second": None, "labels": np.array([0, 1])}
    good["class_names"] = names
    hidden, numbers = np.array([0, -1]), {"class_names": ()}
    for bad, message, fixed in (
        ({"class_names": ("x", "x")}, "name every class once", {}),
        ({"labels": np.array([0])}, "need one label per text", {}),
        ({"first": [], "labels": hidden[:0]}, "give at least one", {}),
        ({"first": "ab"}, "give a list of strings", {}),
        ({"first": ["a", 3]}, "convert it", {"first": ["a", "3"]}),
        ({"first": ["a", "\ud800"]}, "no Unicode character: remove it", {"first": ["a", ""]}),
        ({"labels": np.array([0.0, 1.0])}, "convert to integers", {}),
        ({"labels": np.array([0, 2])}, "must be in [0, 2)", {}),
        ({"labels": hidden}, "pass unlabelled=True", {"labels": hidden, "unlabelled": True}),
        ({"labels": ["0", "1"], **numbers}, "convert to numbers", {"labels": [0.0, 1], **numbers}),
        ({"labels": ["0", "1"], **numbers}, "or name classes", {"labels": np.array([0, 1])}),
        ({"labels": [0, np.inf], **numbers}, "correct or remove it", {}),
        (
            {"labels": [-1.0, -1.0], **numbers},
            "pass unlabelled=True",
            {"labels": [-1.0, -1.0], "unlabelled": True, **numbers},
        ),
    ):
        with refused(message):
            make_texts(**good | bad)
        make_texts(**good | fixed)


@case
def sources_of_texts(place: Path) -> None:
    encoder = tiny_text.EXPERIMENT.encoder
    for name, labels in (("xy", "xy"), ("xyz", "xyz"), ("x", "x"), ("none", "--")):
        rows = "".join(f"a {i},{labels[i % len(labels)]},b\n" for i in range(12))
        Path(f"{name}.csv").write_text("text,label,more\n" + rows)
    good = TextData(TableText("xy.csv"), TableText("xy.csv"), validation=4, length=8, buckets=())
    public = TableText("none.csv", label=None)
    three = TableText("xyz.csv", class_names=("x", "y", "z"))
    for bad, message, fixed in (
        ({"train": TableText("x.csv")}, "of the class 'x'; give two classes", {}),
        (
            {"train": three},
            "the same in the same order: set the class_names of tables",
            {"train": three, "test": TableText("xy.csv", class_names=three.class_names)},
        ),
        (
            {"train": TableText("xy.csv", second="more")},
            "name the second column for both or for neither",
            {name: TableText("xy.csv", second="more") for name in ("train", "test")},
        ),
        ({"train": public}, "12 of 12 training texts have no label", {}),
        ({"validation": 12}, "hold out at most 11", {"validation": 6}),
    ):
        with refused(message):
            replace(good, **bad).load(encoder)
        replace(good, **fixed).load(encoder, public)
    with refused("write package:NAME/FOLDER"):
        local_folder("package:")
    with refused("pip install --no-deps no-such-thing"):
        local_folder("package:no_such_thing/model")
    assert local_folder("package:tokenizers/models").is_dir()  # of a package that is installed


@case
def prepared_texts(place: Path) -> None:
    sst2 = write(place / "sst2", TINY["sst2"])
    prepare_glue("glue/sst2", sst2, place / "d")
    source = TfdsText("glue/sst2", data_dir="d")
    for bad, message, fixed in (
        ({"text": "sentense"}, "did you mean 'sentence'?", {}),
        ({"text": "idx"}, "expected Text", {"text": "sentence"}),
        ({"second": "sentence"}, "are both 'sentence': name another feature as second, or le", {}),
        ({"label": "sentence"}, "name another feature as label", {"label": "label"}),
        ({"text": "label"}, "name another feature as label, or as text", {"text": "sentence"}),
        ({"label": "idx"}, "expected a ClassLabel or a float", {"label": "label"}),
        ({"split": "tset"}, "available are train, validation, test", {"split": "validation"}),
        ({"split": "test"}, "choose a split with labels", {"split": "train"}),
        ({"split": "test"}, "or unlabelled=True", {"split": "test", "unlabelled": True}),
        ({"name": "glue/rte"}, "name one of glue/sst2 or run `instahide prepare glue/rte", {}),
        ({"name": "glue/sst2:1.0.0"}, "available are 2.0.0", {"name": "glue/sst2:2.0.0"}),
    ):
        with refused(message):
            replace(source, **bad).read()
        replace(source, **fixed).read()
    with refused("GLUE has no task 'sst-2'; did you mean 'sst2'?"):
        glue_task("sst-2")
    with refused("name one of cola", "glue/sst2"):
        prepare_glue("glue", sst2, place / "d")
    with refused("glue/rte needs --source FOLDER_OR_ZIP"):
        prepare_glue("glue/rte", None, place / "d")
    prepare_glue("glue/rte", write(place / "rte", TINY["rte"]), place / "d")


@case
def files_of_glue(place: Path) -> None:
    tiny = TINY["sst2"]
    for name, bad, message, good in (
        ("sst2", {"train.tsv": "sentence\tlabel\n"}, "has no example; restore it", tiny),
        ("sst2", {}, "give the folder or zip file of GLUE's SST-2", tiny),
        ("sst2", {"train.tsv": "sentense\tx\na\tb\n"}, "did you mean 'sentense'?", tiny),
        ("sst2", {"train.tsv": "sentence\tlabels\na\t1\n"}, "did you mean 'labels'?", tiny),
        ("sst2", {"train.tsv": "a\t0\nb\t2\n"}, "choose from negative, positive", tiny),
        ("cola", {"train.tsv": "x\n"}, "restore the file", TINY["cola"]),
        (
            "stsb",
            {"train.tsv": "sentence1\tsentence2\tscore\na\tb\tx\n"},
            "restore the file",
            TINY["stsb"],
        ),
        ("mrpc", {n: MSR[n] for n in MSR if "ids" not in n}, "add it, or give GLUE's", MSR),
        ("mrpc", {n: MSR[n] for n in MSR if "ids" not in n}, "train.tsv and dev.tsv", TINY["mrpc"]),
    ):
        shutil.rmtree("g", ignore_errors=True)
        with refused(message):
            read_glue(GLUE[name], write(Path("g"), bad))
        read_glue(GLUE[name], write(Path("g"), good))
    with refused("give GLUE's folder or zip file"):
        read_glue(GLUE["sst2"], Path("nowhere"))
    Path("g.zip").write_bytes(b"no zip")
    with refused("give GLUE's folder or zip file"):
        read_glue(GLUE["sst2"], Path("g.zip"))


@case
def film_reviews(place: Path) -> None:
    with refused("needs --source data/vaderSentiment-3.3.2.tar.gz; get it by `pip download"):
        prepare_movie_reviews(None, place)
    path, sha256 = sdist(place / "v.tar.gz")
    with refused("but the published file has", "download it again"):
        read_movie_reviews(path)
    for data in (b"no archive", archive({"other": b""})):
        path.write_bytes(data)
        with refused("get the file anew"):
            read_movie_reviews(path, sha256=hashlib.sha256(data).hexdigest())
    path, damaged = sdist(path, tweets=b"no number\tx\ty")
    with refused("get the file anew"):
        read_movie_reviews(path, sha256=damaged, test_size=5)
    path, sha256 = sdist(path)
    read_movie_reviews(path, sha256=sha256, test_size=5)
    with refused("must be in [1, 2]"):
        choose_test(["a", "b", "c"], 3)
    choose_test(["a", "b", "c"], 2)
    with refused("allow a test size of 2 but not of 3"):
        choose_test(["a", "a", "b", "b"], 3)
    choose_test(["a", "a", "b", "b"], 2)
