"""Files that show private data: nobody else reads them, at no moment, and they are whole."""

import os
import stat

import numpy as np
import pytest
from programs import without_modes

from instahide_jax.errors import InputError
from instahide_jax.files import private_file
from instahide_jax.pictures import save_samples


def _mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.parametrize("old_mode", [None, 0o644, 0o666])
def test_only_the_owner_reads_it_at_any_moment(tmp_path, umask, old_mode):
    path = tmp_path / "private"
    if old_mode is not None:
        path.write_bytes(b"old")
        path.chmod(old_mode)
    with private_file(path) as file:
        file.write(b"new")
        file.flush()
        (written,) = (p for p in tmp_path.iterdir() if p.read_bytes() == b"new")
        assert _mode(written) == 0o600
        assert path.exists() == (old_mode is not None)
    assert (path.read_bytes(), _mode(path)) == (b"new", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "private"
    path.write_bytes(b"old")

    with pytest.raises(TypeError, match="str"), private_file(path) as file:
        file.write("no bytes")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_none_is_made_without_modes(tmp_path):
    path = tmp_path / "private"
    path.write_bytes(b"old")
    with (
        without_modes(),
        pytest.raises(
            InputError, match=r"keeps no modes, .* read private \(mode 0777, at most 0600"
        ),
        private_file(path),
    ):
        raise AssertionError("a file that others can read")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_pictures_of_private_images_are_private(tmp_path, umask):
    path = tmp_path / "samples.png"
    path.write_bytes(b"of an earlier run")
    path.chmod(0o644)
    save_samples(path, {"original": np.zeros((1, 4, 4, 1))}, ["class 0"], "for their owner only")
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert _mode(path) == 0o600
