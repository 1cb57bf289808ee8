"""The `instahide` command, as users type it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photos import textured

from instahide_jax import cli
from instahide_jax.errors import InputError, run_main


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no command given; choose from .*prepare.*; see instahide --help"),
        (["prpare", "mnist"], r"unknown command prpare; did you mean prepare\?"),
        (["xyzzy"], "unknown command xyzzy; see instahide --help"),
        (["prepare"], "missing NAME; see instahide prepare --help"),
        (["prepare", "--source", "x"], "missing NAME"),
        (["prepare", "mnist", "--sorce", "x"], r"unknown option --sorce; did you mean --source\?"),
        (
            ["prepare", "mnist", "extra"],
            "unexpected argument 'extra'; see instahide prepare --help",
        ),
        (
            ["prepare", "public-pool"],
            "missing --source PATH, --out PATH; see instahide prepare pub",
        ),
        (["prepare", "--source", "x", "public-pool"], "put public-pool first"),
        (
            ["prepare", "public-pool", "--source", "x", "--out", "p.npy", "--size", "big"],
            r"--size: invalid literal for int\(\) with base 10: 'big'",
        ),
        (
            ["prepare", "public-pool", "--source", "nowhere", "--out", "p.npy"],
            "nowhere is no folder",
        ),
        (["prepare", "mnist", "--source", "nowhere"], "--source nowhere does not exist"),
    ],
)
def test_bad_usage_is_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(InputError, match=f"^(--source )?{message}") as caught:
        cli.run(argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["", " ", "~nobody-here/x", "gs://b/x", "file:///tmp/x"])
@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ("prepare own --source PATH", "--source"),
        ("prepare own --data-dir PATH", "--data-dir"),
        ("prepare public-pool --source PATH --out p.npy", "--source"),
        ("prepare public-pool --source x --out PATH", "--out"),
        ("encrypt PATH --out o.npz --secret-file s", "SOURCE"),
        ("encrypt x --out PATH --secret-file s", "--out"),
        ("encrypt x --out o.npz --secret-file PATH", "--secret-file"),
        ("encrypt x --out o.npz --secret-file s --order-file PATH", "--order-file"),
        ("encrypt x --out o.npz --secret-file s --public-pool PATH", "--public-pool"),
        ("encrypt x --out o.npz --secret-file s --data-dir PATH", "--data-dir"),
    ],
)
def test_what_names_no_place_is_refused_with_its_option(
    arguments: str, option: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [path if word == "PATH" else word for word in arguments.split()]
    with pytest.raises(InputError) as caught:
        cli.run(argv)
    assert str(caught.value).startswith(f"{option}: it is {path.strip() or 'empty'}")
    assert "; name a" in str(caught.value) or "; write the whole path" in str(caught.value)
    assert "no type matching" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["--help"], "instahide prepare public-pool --source FOLDER --out POOL.npy"),
        (["prepare", "--help"], "--data-dir PATH"),
        (["prepare", "public-pool", "-h"], "--min-keypoints INT"),
    ],
)
def test_help(argv: list[str], shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.run(argv)
    assert stop.value.code == 0
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        "prepare own --source LONG",
        "prepare own --source LONG/x",
        "prepare mnist --source LONG",
        "prepare glue/rte --source LONG",
        "prepare public-pool --source LONG --out p.npy",
        "encrypt LONG --out o.npz --secret-file s",
        "encrypt LONG.npz --out o.npz --secret-file s",
        "encrypt d.npz --out LONG.npz --secret-file s",
        "encrypt d.npz --out o.npz --secret-file LONG",
        "encrypt d.npz --out o.npz --secret-file s --order-file LONG.npy",
        "encrypt cifar10 --out o.npz --secret-file s --data-dir LONG",
    ],
)
def test_a_name_that_the_file_system_does_not_take(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("d.npz", image=np.zeros((4, 4, 4, 1), np.uint8), label=np.arange(4) % 2)
    argv = arguments.replace("LONG", 300 * "x").split()
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: cli.run(argv))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cannot write or read ")
    assert line.endswith(": File name too long; choose a shorter one")
    assert [path.name for path in tmp_path.iterdir()] == ["d.npz"]


def test_the_installed_program(tmp_path: Path) -> None:
    """The real thing, twice: exit codes, stdout and stderr."""
    (tmp_path / "in").mkdir()
    textured(0).save(tmp_path / "in" / "a.png")
    command = [sys.executable, "-W", "error", "-m", "instahide_jax.cli", "prepare", "public-pool"]
    options = ["--source", "in", "--out", "pool.npy", "--count=9", "--size=8", "--test-size=64"]
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wrote pool.npy 9x8x8x3 uint8: 9 of ")
    assert done.stdout.count("\n") == 1
    assert np.load(tmp_path / "pool.npy").shape == (9, 8, 8, 3)

    wrong = subprocess.run(
        [*command, *options, "--seeed", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 2
    assert (wrong.stdout, wrong.stderr) == (
        "",
        "error: unknown option --seeed; did you mean --seed?\n",
    )
