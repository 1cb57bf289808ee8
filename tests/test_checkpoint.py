"""Checkpoints: which are kept, and what a damaged one leads to."""

import gc
import logging
import re
import shutil

import chex
import jax
import numpy as np
import pytest
from programs import files_up_to

from instahide_jax.checkpoint import Checkpoints
from instahide_jax.errors import InputError

# A read that fails leaves the reads beside it unfinished in Orbax; see `opened`.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ABSTRACT = {
    "params": {"kernel": jax.ShapeDtypeStruct((64, 64), "float32")},
    "step": jax.ShapeDtypeStruct((), "int32"),
}
ONE_DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _state(step):
    kernel = np.random.default_rng(step).normal(size=(64, 64)).astype(np.float32)
    return jax.device_put({"params": {"kernel": kernel}, "step": np.int32(step)})


def _save(folder, accuracies):
    checkpoints = Checkpoints(folder)
    for step, accuracy in accuracies.items():
        checkpoints.save(step, _state(step), accuracy)
    checkpoints.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 1 to 5, of which the second was the best; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    _save(folder, {1: 0.5, 2: 0.9, 3: 0.7, 4: 0.6, 5: 0.65})
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copied")


@pytest.fixture
def opened():
    """Opens folders, closes them at the end, and keeps what Orbax leaves behind to this test."""
    made = []

    def open_(folder):
        made.append(Checkpoints(folder))
        return made[-1]

    yield open_
    for checkpoints in made:
        checkpoints.close()
    gc.collect()


def _remove_all(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def _truncate_data(folder):
    """Cut every file of array data in half."""
    cut = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size > 4096]
    assert cut
    for path in cut:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _remove_manifest(folder):
    """The files that say where the arrays are."""
    for path in folder.rglob("manifest.ocdbt"):
        path.unlink()


def test_the_newest_two_and_the_best_are_kept(saved, opened):
    checkpoints = opened(saved)
    assert checkpoints.steps() == [2, 4, 5]
    assert checkpoints.best_step() == 2


def test_restored_state_has_the_same_bits_and_the_sharding_asked_for(saved, opened):
    mesh = jax.make_mesh((8,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    checkpoints = opened(saved)
    chex.assert_trees_all_equal(
        *jax.device_get((checkpoints.restore(ABSTRACT, 2, sharding), _state(2)))
    )
    newest = checkpoints.restore_newest(ABSTRACT, sharding)
    chex.assert_trees_all_equal(*jax.device_get((newest, _state(5))))
    assert {x.sharding for x in jax.tree.leaves(newest)} == {sharding}


def test_an_empty_folder_has_nothing_to_restore(tmp_path, opened):
    checkpoints = opened(tmp_path / "new")
    assert checkpoints.restore_newest(ABSTRACT, ONE_DEVICE) is None
    with pytest.raises(InputError, match=r"no checkpoint in .*new; train first"):
        checkpoints.best_step()


@pytest.mark.parametrize("damage", [_truncate_data, _remove_manifest, _remove_all])
def test_a_damaged_newest_falls_back_with_a_warning(copied, opened, caplog, damage):
    damage(copied / "5")
    checkpoints = opened(copied)
    with caplog.at_level(logging.WARNING, "instahide_jax"):
        state = checkpoints.restore_newest(ABSTRACT, ONE_DEVICE)
    chex.assert_trees_all_equal(*jax.device_get((state, _state(4))))
    (record,) = [r for r in caplog.records if r.name == "instahide_jax.checkpoint"]
    assert record.levelname == "WARNING"
    assert re.match(r"checkpoint 5 in .* cannot be read: .*; trying the one", record.getMessage())
    # Training comes past the same step again, and goes on.
    checkpoints.save(5, _state(5), 0.65)
    checkpoints.save(6, _state(6), 0.66)
    checkpoints.close()
    again = opened(copied)
    assert again.steps() == [2, 5, 6]
    chex.assert_trees_all_equal(
        *jax.device_get((again.restore(ABSTRACT, 5, ONE_DEVICE), _state(5)))
    )


def test_nothing_is_removed_where_no_checkpoint_can_be_read(copied, opened):
    """The reason may be this machine or this version rather than the files."""
    for step in (2, 4, 5):
        _truncate_data(copied / str(step))
    before = sorted(str(path) for path in copied.rglob("*"))
    checkpoints = opened(copied)
    with pytest.raises(InputError, match=r"none of the checkpoints \[2, 4, 5\].*start anew"):
        checkpoints.restore_newest(ABSTRACT, ONE_DEVICE)
    assert sorted(str(path) for path in copied.rglob("*")) == before


def test_another_model_is_no_reason_to_remove_checkpoints(copied, opened):
    other = {**ABSTRACT, "params": {"bias": jax.ShapeDtypeStruct((64,), "float32")}}
    with pytest.raises(InputError):
        opened(copied).restore_newest(other, ONE_DEVICE)
    assert Checkpoints(copied, read_only=True).steps() == [2, 4, 5]


def _interrupt(folder):
    """What a kill leaves while step 7 is being saved."""
    leftover = folder / "7.orbax-checkpoint-tmp"
    shutil.copytree(folder / "5", leftover)
    for path in leftover.rglob("commit_success.txt"):
        path.unlink()
    return leftover


def test_leftovers_of_interrupted_saves_are_removed(copied, opened):
    leftover = _interrupt(copied)
    checkpoints = opened(copied)
    assert checkpoints.steps() == [2, 4, 5]
    checkpoints.save(6, _state(6), 0.1)
    checkpoints.close()
    assert not leftover.exists()
    assert opened(copied).steps() == [2, 5, 6]


def test_reading_only_leaves_a_save_in_progress_alone(copied):
    leftover = _interrupt(copied)
    checkpoints = Checkpoints(copied, read_only=True)
    assert checkpoints.steps() == [2, 4, 5]
    checkpoints.restore(ABSTRACT, 4, ONE_DEVICE)
    checkpoints.close()
    assert leftover.exists()


def test_a_damaged_one_is_named_where_it_is_asked_for(copied, opened):
    _truncate_data(copied / "4")
    with pytest.raises(InputError, match=r"checkpoint 4 in .*copied cannot be read: "):
        opened(copied).restore(ABSTRACT, 4, ONE_DEVICE)


def test_a_save_that_fails_is_one_line_and_costs_no_other(tmp_path, opened):
    folder = tmp_path / "checkpoints"
    _save(folder, {1: 0.5})
    checkpoints = Checkpoints(folder)
    large = {"params": {"kernel": jax.random.normal(jax.random.key(0), (512, 512))}, "step": 2}
    with files_up_to(1 << 16):
        checkpoints.save(2, large, 0.6)
        message = f"{folder} cannot be written: File too large; what was saved before is kept"
        with pytest.raises(InputError, match=message):
            checkpoints.close()
    del checkpoints
    gc.collect()
    assert opened(folder).steps() == [1]  # and the folder is no longer locked


def test_one_process_at_a_time_saves(saved, tmp_path, opened):
    folder = shutil.copytree(saved, tmp_path / "run" / "checkpoints")
    first = opened(folder)
    with pytest.raises(InputError, match=r"another process trains in .*run; wait for it, or"):
        Checkpoints(folder)
    Checkpoints(folder, read_only=True).close()
    first.close()
    Checkpoints(folder).close()


def test_one_without_a_score_is_kept_as_the_newest_and_never_the_best(copied, opened):
    checkpoints = opened(copied)
    checkpoints.save(6, _state(6), None)
    checkpoints.close()
    again = opened(copied)
    assert (again.steps(), again.best_step()) == ([2, 5, 6], 2)
    again.save(7, _state(7), 0.1)
    again.save(8, _state(8), 0.2)
    again.close()
    assert Checkpoints(copied, read_only=True).steps() == [2, 7, 8]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"foo": 1}', b'{"accuracy": "x"}'])
@pytest.mark.parametrize("step", [2, 5])
def test_a_score_that_cannot_be_read_costs_no_checkpoint(copied, opened, caplog, step, content):
    (copied / str(step) / "metrics" / "metrics").write_bytes(content)
    with pytest.raises(InputError, match=rf"{step}/metrics/metrics cannot be read; start"):
        Checkpoints(copied, read_only=True)
    with caplog.at_level(logging.WARNING, "instahide_jax"):
        checkpoints = opened(copied)
    assert "is not taken for the best" in caplog.text
    assert checkpoints.steps() == [2, 4, 5]
    assert checkpoints.best_step() == (5 if step == 2 else 2)
    state = checkpoints.restore_newest(ABSTRACT, ONE_DEVICE)
    chex.assert_trees_all_equal(*jax.device_get((state, _state(5))))


def test_the_score_of_a_save_in_progress_is_not_looked_at(copied):
    (_interrupt(copied) / "metrics" / "metrics").write_bytes(b"{")
    checkpoints = Checkpoints(copied, read_only=True)
    assert checkpoints.steps() == [2, 4, 5]
    checkpoints.close()


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(InputError, match="checkpoints is no folder; move it away"):
        Checkpoints(tmp_path / "checkpoints")
