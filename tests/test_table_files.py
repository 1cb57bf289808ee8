"""Files of tables: long cells, odd bytes, blanks, line ends, and what no parser takes."""

import csv
import threading
from pathlib import Path

import pytest
from test_tables import read, write

from instahide_jax.data.tables import read_rows
from instahide_jax.data.texts import read_table
from instahide_jax.errors import InputError


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_cells_of_any_length(tmp_path: Path, suffix: str) -> None:
    limit = csv.field_size_limit()
    texts = ["a" * 131_073, 'q"' * 300_000, "short"]
    path = write(tmp_path / f"t{suffix}", ["x", "y", "x"], texts)
    assert read(path).first == tuple(texts)
    header = write(tmp_path / f"h{suffix}", ["x"])
    header.write_text(header.read_text().replace("text", "n" * 140_000))
    assert read_table(header, text="n" * 140_000, label="label").first == ("t0",)
    assert csv.field_size_limit() == limit == 131_072


def test_the_csv_limit_of_others_is_left_alone(tmp_path: Path) -> None:
    """While a table is read, before each row, in other threads, and after an error."""
    path = write(tmp_path / "t.csv", ["x"] * 200, ["a" * 140_000] * 200)
    limits: set[int] = set()
    for _ in read_rows(path, ["text"]):
        limits.add(csv.field_size_limit())
    threads = [threading.Thread(target=lambda: list(read_rows(path, ["text"]))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    path.write_text('text,label\n"a,1\n')
    with pytest.raises(InputError, match="line 2: unexpected end of data: correct the line"):
        list(read_rows(path, ["text"]))
    assert limits | {csv.field_size_limit()} == {131_072}


def test_an_error_names_the_line_where_the_row_begins(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('text,label\n"a\nb",1\n"never closed,2\nx,3\ny,4\n')
    with pytest.raises(InputError, match="line 4: unexpected end of data"):
        read(path)
    path.write_text('text,label\n"a\nb",1\n"c\nd",2,3\n')
    with pytest.raises(InputError, match="line 4 has 3 cells, the header 2"):
        read(path)
    path.write_text('text,label\n"a\nb",1\n"c\nd",-\n')
    with pytest.raises(InputError, match="line 4: label is '-'"):
        read(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_marks_line_ends_and_nul(tmp_path: Path, suffix: str) -> None:
    separator = "," if suffix == ".csv" else "\t"
    lines = [separator.join(row) for row in [("text", "label"), ("a\0b", "x"), ("", "y")]]
    path = tmp_path / f"t{suffix}"
    path.write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n\r\n").encode())
    texts = read(path)
    assert (texts.first, texts.class_names) == (("a\0b", ""), ("x", "y"))


def test_blanks_before_quotes_belong_to_no_cell(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('"text", "label"\n"He said, ""no""", "0"\n  "a,\nb" ,"1"\n'.replace(" ,", ","))
    texts = read(path)
    assert (texts.first, texts.class_names) == (('He said, "no"', "a,\nb"), ("0", "1"))
    path.write_text('text,label\n" ""a""", x\n"b, ",y\n')  # within the quotes they belong to it
    assert read(path).first == (' "a"', "b, ")
    path.write_text('text,label\n"a" , "0"\n')
    with pytest.raises(InputError, match=r"line 2: .* expected after .*: correct the line"):
        read(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_what_stands_before_the_header(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"t{suffix}", ["x", "-"])
    path.write_text("\n  \n" + path.read_text())
    assert read(path, class_names=("-", "x")).labels.tolist() == [1, 0]
    with pytest.raises(InputError, match="line 5: label is '-'"):
        read(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_carriage_return_makes_no_row(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_bytes(b"text\r\n\r\na\rb\n")
    with pytest.raises(InputError, match="line 3 has a carriage return within: remove it, or save"):
        read_table(path, text="text", label=None)
    for data in (b"text\ra\rb", b"text\r\r\na\r\r\nb\r", b"text\n\ra\n\rb"):
        path.write_bytes(data)
        assert read_table(path, text="text", label=None).first == ("a", "b")


@pytest.mark.parametrize("quoted", ['"x"', '"x\r\ny"', '"x\ry"'])
def test_a_carriage_return_outside_of_quotes(tmp_path: Path, quoted: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(f"text\n{quoted}\na\rb\n".encode())
    line = 4 if "\n" in quoted else 3
    with pytest.raises(InputError, match=f"line {line} has a carriage return within: remove it"):
        read_table(path, text="text", label=None)
    cell = quoted.strip('"')
    for data in (f"text\n{quoted}\nb\n", f"text\r{quoted}\rb", f"text\r\n{quoted}\r\r\nb\r"):
        path.write_bytes(data.encode())
        assert read_table(path, text="text", label=None).first == (cell, "b")
    path.write_bytes(f'text\n{quoted}\na\n"b\rc'.encode())
    with pytest.raises(InputError, match="unexpected end of data: correct the line"):
        read_table(path, text="text", label=None)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_other_encodings(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = write(tmp_path / f"t{suffix}", ["caf\u00e9", "x"])
    text = path.read_text(encoding="utf-8")
    if suffix == ".jsonl":
        text = text.encode("ascii").decode("unicode_escape")  # JSON was written in ASCII
    path.write_bytes(text.replace("\n", "\r\n").encode(encoding))
    with pytest.raises(InputError, match=r"cannot be decoded .*: save it as UTF-8$"):
        read(path)
    path.write_bytes(text.replace("\n", "\r\n").encode())
    assert read(path).class_names == ("caf\u00e9", "x")


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", "commas"), (".tsv", "tabs")])
def test_cells_separated_otherwise(tmp_path: Path, suffix: str, separator: str) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_text("text;label\na;x\nb;y\n")
    message = f"one column, 'text;label', and no 'text': separate the cells by {separator}, or name"
    with pytest.raises(InputError, match=message):
        read(path)
    assert read_table(path, text="text;label", label=None).first == ("a;x", "b;y")


def test_json_that_no_parser_takes(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    for line in ("[" * 100_000, '{"text": "a", "label": ' + "1" * 5_000 + "}"):
        path.write_text('{"text": "a", "label": 1}\n' + line)
        with pytest.raises(InputError, match=r"line 2 is not JSON: .*; correct the line") as caught:
            read(path)
        assert len(str(caught.value)) < 500
    path.write_text('{"text": "a", "label": 1, "label": 2}')
    with pytest.raises(InputError, match="line 1 has 2 columns 'label': rename one"):
        read(path)
