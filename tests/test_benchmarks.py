"""Hiding is divided among the devices: what `benchmarks/scaling.py` watches, in small."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def scaling(monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scaling

    return scaling


@pytest.mark.parametrize("name", ["images, batch", "features, batch"])
def test_a_device_does_its_share_of_hiding(scaling, name):
    ratio = scaling.to_perfect(scaling.HIDE[name], 8, scaling.BATCH)
    assert 1 / scaling.LIMIT < ratio < scaling.LIMIT


def test_the_limit_catches_what_every_device_does_whole(scaling):
    ratio = scaling.to_perfect(scaling.NAIVE["plain jit, whole"], 8, scaling.BATCH)
    assert ratio == pytest.approx(8, rel=0.01)
    assert ratio > scaling.LIMIT
