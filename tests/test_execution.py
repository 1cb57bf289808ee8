"""How a run is carried out: kept programs, sharded state; none of it is part of what it is."""

import re

import chex
import pytest
from programs import Place, final_state, last_step
from xla_flags import EIGHT_DEVICES, QUICK


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("execution"))


def _entries(folder):
    """Kept programs; beside each, JAX notes when it was last used."""
    return {path.name: path for path in folder.iterdir() if not path.name.endswith("-atime")}


def test_programs_are_kept_for_the_next_start_and_hold_no_secret(place):
    """A program with a key in it would be another one under another secret, and be kept anew."""
    settings = (place.config, "--epochs", 1, "--execution.compilation-cache", "kept")
    for name in ("a", "b"):
        code, out, err = place.run("train.py", *settings, "--workdir", name)
        assert code == 0, err
        assert re.search(r"First step done \d+\.\d s after the start", out)
        entries = _entries(place.folder / "kept")
        if name == "a":
            first = set(entries)
            assert any("train_step" in entry for entry in first)
        assert set(entries) == first
    secrets = [(place.folder / f"{name}.secret").read_text().strip() for name in "ab"]
    assert secrets[0] != secrets[1]
    for path in entries.values():
        content = path.read_bytes()
        for secret in secrets:
            assert bytes.fromhex(secret) not in content
            assert secret.encode() not in content


def test_how_a_run_is_carried_out_may_change_between_its_starts(place):
    settings = (place.config, "--insecure-seed", 3)
    eight = {"XLA_FLAGS": f"{QUICK} {EIGHT_DEVICES}"}
    assert place.run("train.py", *settings, "--workdir", "plain", "--epochs", 4)[0] == 0
    process = place.start("train.py", *settings, "--workdir", "changed", "--epochs", 4, **eight)
    while process.poll() is None and last_step(place.folder / "changed") < 9:
        pass
    process.terminate()
    process.communicate(timeout=300)
    assert process.returncode == 75
    sharded = ("--execution.shard-state",)
    code, out, err = place.run(
        "train.py", *settings, "--workdir", "changed", "--epochs", 4, *sharded, **eight
    )
    assert code == 0, err
    assert "Resuming at step" in out
    one, other = (final_state(place.folder / name) for name in ("plain", "changed"))
    chex.assert_trees_all_close(one.params, other.params, atol=1e-5)
