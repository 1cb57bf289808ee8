"""The script that carries this project to a GPU machine, with a stand-in for pip and small data."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "published_gpu.sh"
PYTHON = f"""#!/bin/bash
case "$*" in
*"pip wheel"*)
    for code in "$@"; do :; done
    [ -f "${{code%[[]*}}/benchmarks/results.py" ] || exit 3
    cd "$7" || exit 3
    touch jax-1.0-py3.whl instahide_jax-0.1.0-py3.whl Array_Record-2.0-py3.whl tyro-3-py3.whl ;;
*"pip install"*) mkdir "$9" ;;
*) exec {sys.executable} "$@" ;;
esac
"""
RESULTS = """import os, sys
from pathlib import Path
here = Path(__file__).resolve().parent.parent
assert os.environ["PYTHONPATH"].split(":")[1] == str(here) == os.getcwd()
assert Path(os.environ["TFDS_DATA_DIR"], "cifar10", "records").read_text() == "images"
assert (here / "data" / "photos32.npy").read_text() == "patches"
print("$Format:%h$", *sys.argv[1:])
"""


@pytest.fixture
def here(tmp_path):
    """A checkout with small data, and a function that runs the script in a copy of it."""
    checkout = tmp_path / "checkout"
    for name in ("scripts", "benchmarks", "data", "tfds/cifar10", "bin"):
        (checkout / name).mkdir(parents=True)
    shutil.copy(SCRIPT, checkout / "scripts")
    for name, text in {
        "benchmarks/results.py": RESULTS,
        "bin/python3": PYTHON,
        "bin/nvidia-smi": "#!/bin/bash\necho A card, 580.1\n",
        ".gitattributes": "benchmarks/results.py export-subst\n",
        ".gitignore": "data\ntfds\nbin\n",
        "data/photos32.npy": "patches",
        "tfds/cifar10/records": "images",
        "bin/installed.txt": "jax==1.0\nodd @ file:///odd\narray-record==2.0\n",
    }.items():
        (checkout / name).write_text(text)
    for name in ("python3", "nvidia-smi"):
        (checkout / "bin" / name).chmod(0o700)

    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", *who, *arguments], cwd=checkout, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "all")

    def run(*arguments, cwd=checkout):
        done = subprocess.run(
            ["bash", cwd / "scripts" / "published_gpu.sh", *arguments],
            cwd=cwd,
            env=os.environ
            | {"PATH": f"{checkout / 'bin'}:{os.environ['PATH']}"}
            | {"TFDS_DATA_DIR": str(checkout / "tfds")},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return checkout, run, git("rev-parse", "--short", "HEAD")


def test_what_is_packed_here_runs_there(here, tmp_path):
    checkout, run, commit = here
    code, out, err = run("pack", "pack", "bin/installed.txt")
    assert code == 0, err
    assert "in 1 parts, with 1 packages" in out
    there = tmp_path / "there"
    (there / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPT, there / "scripts")
    shutil.move(checkout / "pack", there / "pack")
    for times in (1, 2):  # the second time nothing is unpacked
        code, out, err = run("run", "pack", "runs", *["--epochs", "1"][: 2 * times - 2], cwd=there)
        assert code == 0, err
        given = "--epochs 1" if times == 2 else "--encoder.dtype=bfloat16"
        common = f"--at-once 2 --workdir {there}/runs -- {given}"
        expected = [
            "A card, 580.1",
            f"{commit} configs/cifar10.py inside vanilla {common}",
            f"{commit} configs/cifar10.py cross mixup {common}",
        ]
        assert out.splitlines() == expected
        assert (there / "runs" / "results.md").read_text() == out
        wheels = list((there / "pack" / "unpacked" / "wheels").iterdir())
        assert [wheel.name for wheel in wheels] == ["tyro-3-py3.whl"]
        assert (there / "pack" / "unpacked" / "site").is_dir()


def test_it_says_what_is_missing(here):
    checkout, run, _ = here

    def refused(*arguments):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert not (checkout / "pack").exists()
        (line,) = err.splitlines()
        return line

    assert refused("pack", "pack", "nothing").startswith("error: nothing is no file: give what")
    shutil.move(checkout / "data" / "photos32.npy", checkout / "elsewhere")
    assert "data/photos32.npy is missing: prepare it" in refused(
        "pack", "pack", "bin/installed.txt"
    )
    shutil.move(checkout / "elsewhere", checkout / "data" / "photos32.npy")
    (checkout / "benchmarks" / "results.py").write_text("changed")
    assert "commit them first" in refused("pack", "pack", "bin/installed.txt")
    assert "part.aa is missing" in refused("run", "pack", "runs")


def test_another_python_is_refused(here):
    checkout, run, _ = here
    (checkout / "bin" / "installed.txt").write_text("")
    real = (checkout / "bin" / "python3").read_text()
    older = real.replace("*) exec", "--version) echo Python 3.7.1 ;;\n*) exec")
    (checkout / "bin" / "python3").write_text(older)
    assert run("pack", "pack", "bin/installed.txt")[0] == 0
    (checkout / "bin" / "python3").write_text(real)
    code, _, err = run("run", "pack", "runs")
    assert code == 2
    assert "the packages are for Python 3.7.1 and this is Python 3." in err


@pytest.mark.parametrize(("arguments", "code"), [((), 2), (("pack",), 2), (("--help",), 0)])
def test_help(arguments, code, here):
    got, _, err = here[1](*arguments)
    assert got == code
    assert "published_gpu.sh pack gpu-pack installed.txt" in err
