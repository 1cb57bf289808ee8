"""instahide_jax.arguments: overriding nested dataclasses, and one line for every bad usage."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import pytest

from instahide_jax.arguments import parse_args
from instahide_jax.errors import InputError, run_main


class Hiding(Protocol):
    def hide(self) -> None: ...


@dataclass(frozen=True)
class NoHiding:
    def hide(self) -> None: ...


@dataclass(frozen=True)
class Mixing(NoHiding):
    k: int = 4
    """Images in a mixture."""
    mask: Literal["sign", "none"] = "sign"

    def __post_init__(self) -> None:
        if self.k < 2:
            raise InputError(f"k must be at least 2, got {self.k}; " + "a long remedy " * 20)


@dataclass(frozen=True)
class Schedule:
    rate: float = 0.1
    boundaries: tuple[int, ...] = (10, 20)


@dataclass(frozen=True)
class Experiment:
    scheme: NoHiding = NoHiding()
    schedule: Schedule = Schedule()
    by_protocol: Hiding = NoHiding()
    by_union: Hiding | None = None
    either: Mixing | Schedule = Schedule()
    seed: int = 0
    num_steps: int = 100
    resume: bool = True
    pool: Path | None = None
    size: int | None = 3
    mean: tuple[float, ...] | None = None
    kind: Literal["a", "b"] | None = None

    def __post_init__(self) -> None:
        if self.num_steps <= 0:
            raise InputError(f"num_steps must be positive, got {self.num_steps}")


DEFAULT = Experiment(scheme=Mixing(k=6), by_protocol=Mixing(k=7), by_union=Mixing(k=8))


def parse(*argv: str) -> Experiment:
    return parse_args(Experiment, argv, default=DEFAULT, prog="train.py")


def refusal(*argv: str) -> str:
    with pytest.raises(InputError) as caught:
        parse(*argv)
    return str(caught.value)


def test_without_arguments_the_default_comes_back() -> None:
    assert parse() == DEFAULT


def test_nested_fields_are_overridden_and_the_rest_kept() -> None:
    result = parse(
        "--scheme.k", "2", "--schedule.rate=0.5", "--schedule.boundaries", "1", "2", "3",
        "--num-steps", "5", "--no-resume", "--pool", "a b/c.npy",
    )  # fmt: skip
    assert result == Experiment(
        scheme=Mixing(k=2),
        schedule=Schedule(0.5, (1, 2, 3)),
        by_protocol=Mixing(k=7),
        by_union=Mixing(k=8),
        num_steps=5,
        resume=False,
        pool=Path("a b/c.npy"),
    )
    assert parse("--num_steps", "5").num_steps == 5  # either spelling
    assert isinstance(DEFAULT.scheme, Mixing)
    assert DEFAULT.scheme.k == 6  # the default itself stays


@pytest.mark.parametrize("name", ["scheme", "by_protocol", "by_union"])
def test_a_field_offers_the_options_of_the_instance_it_holds(name: str) -> None:
    option = name.replace("_", "-")
    assert getattr(parse(f"--{option}.k", "3"), name) == Mixing(k=3)


def test_a_union_of_dataclasses_is_no_subcommand() -> None:
    assert parse("--either.rate", "2").either == Schedule(rate=2.0)


def test_what_may_be_none() -> None:
    given = parse("--size", "4", "--mean", "0.5", "1", "--kind", "b", "--pool", "~/x")
    assert (given.size, given.mean, given.kind) == (4, (0.5, 1), "b")
    assert given.pool == Path.home() / "x"
    none = parse("--size", "None", "--mean", "None", "--kind", "None", "--pool", "None")
    assert (none.size, none.mean, none.kind, none.pool) == (None, None, None, None)


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    refusal("--sed", "1")
    import os

    assert os.environ["COLUMNS"] == "40"
    monkeypatch.delenv("COLUMNS")
    refusal("--sed", "1")
    assert "COLUMNS" not in os.environ


@pytest.mark.parametrize("columns", ["20", "80", "200"])
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--scheme.kk", "2"], "unknown option --scheme.kk; did you mean --scheme.k?"),
        (["--scheme.kk=2"], "unknown option --scheme.kk; did you mean --scheme.k?"),
        (["--num_stepz", "2"], "unknown option --num_stepz; did you mean --num-steps?"),
        (["--resum"], "unknown option --resum; did you mean --resume?"),
        (["--scheme.kk"], "unknown option --scheme.kk; did you mean --scheme.k?"),
        (["--xyzzy", "1"], "unknown option --xyzzy; see train.py --help"),
        (["--scheme.k", "2", "stray"], "unexpected argument 'stray'; see train.py --help"),
        (["--seed"], "Missing value for argument '--seed'"),
        (["--scheme.k", "two"], "--scheme.k: invalid literal for int() with base 10: 'two'"),
        (["--scheme.mask", "bit"], "invalid choice 'bit' for argument '--scheme.mask'"),
        (["--size", "two"], "--size: invalid literal for int() with base 10: 'two'; see train.py"),
        (["--kind", "c"], "invalid choice 'c' for argument '--kind'"),
        (["--pool", ""], "--pool: it is empty; name a file or folder; see train.py --help"),
        (["--pool", " "], "--pool: it is empty; name a file or folder; see train.py --help"),
        (["--pool=~no-one/x"], "--pool: it is ~no-one/x, but that user has no home folder; write"),
        (["--pool", "gs://b/x"], "--pool: it is gs://b/x, an address; name a local path"),
    ],
)
def test_bad_usage_is_one_line(
    argv: list[str], message: str, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = refusal(*argv)
    assert text.startswith(message)
    assert "\n" not in text
    assert not set("╭╮╰╯│─") & set(text)
    assert "---" not in text


def test_validation_errors_come_out_word_for_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(InputError) as expected:
        Mixing(k=1)
    assert refusal("--scheme.k", "1") == str(expected.value)
    assert refusal("--num-steps", "0") == "num_steps must be positive, got 0"


@dataclass(frozen=True)
class Required:
    name: str
    source: Path
    tags: list[str] = field(default_factory=list)


def test_missing_options_are_named() -> None:
    with pytest.raises(InputError, match=r"^missing --name STR, --source PATH; see tool --help$"):
        parse_args(Required, [], prog="tool")
    # A misspelt option explains the missing one, so it is what the line is about.
    with pytest.raises(InputError, match=r"^unknown option --sorce; did you mean --source\?$"):
        parse_args(Required, ["--name", "a", "--sorce", "b"], prog="tool")


def test_functions_are_called_with_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    def tool(size: int, *, kind: str = "a") -> str:
        """Do something."""
        print("working", file=sys.stderr)
        if size < 0:
            raise InputError("size must not be negative")
        return kind * size

    assert parse_args(tool, ["--size", "3"], prog="tool") == "aaa"
    assert capsys.readouterr().err == "working\n"  # not held back
    with pytest.raises(InputError, match=r"^size must not be negative$"):
        parse_args(tool, ["--size", "-1"], prog="tool")
    with pytest.raises(InputError, match=r"^unknown option --siz; did you mean --size\?$"):
        parse_args(tool, ["--siz", "1"], prog="tool")


def test_help_is_tyros(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: train.py")
    assert "Images in a mixture." in shown
    assert "--by-protocol.k INT" in shown


def test_a_program_ends_with_code_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: print(parse("--scheme.kk", "2")))
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: unknown option --scheme.kk; did you mean --scheme.k?\n"
