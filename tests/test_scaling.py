"""Hiding divides its work among devices, by the compiler's own count; a plain jit may not."""

import sys

import pytest
from programs import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import scaling


@pytest.mark.parametrize("name", scaling.HIDE)
def test_hiding_is_divided_among_devices(name):
    # Of a small batch, what every device does anyhow (the norm of the gradients) is a large part.
    ratio = scaling.to_perfect(scaling.HIDE[name], 8, 256)
    assert 1 / scaling.LIMIT < ratio < scaling.LIMIT


@pytest.mark.parametrize(
    ("words", "parts"),
    [([], ["hide", "steps", "partners"]), (["all"], ["hide", "steps", "partners"])]
    + [([part], [part]) for part in scaling.PARTS],
)
def test_parts_that_are_named_or_all(words, parts):
    assert scaling.parse(words) == parts


def test_the_measure_shows_work_that_every_device_repeats():
    assert scaling.to_perfect(scaling.NAIVE["plain jit, whole"], 8, 64) > 6


def test_device_memory_of_a_sharded_state_is_an_eighth():
    """As benchmarks/memory.py measures it, on a network that compiles fast."""
    import from_shapes

    from instahide_jax import InstaHide
    from instahide_jax.compiled import cost
    from instahide_jax.encoders import ConvNet

    scheme = InstaHide.inside(4, num_classes=10)
    config = from_shapes.images_config(scheme, 32, ConvNet(widths=(256, 256), strides=(2, 2)))
    mesh = from_shapes.mesh_of(8)
    held = [
        cost(from_shapes.image_step_of(config, 8, 64, mesh, shard)).argument_bytes
        for shard in (False, True)
    ]
    assert held[1] < held[0] / 4
