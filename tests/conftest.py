"""Strict settings for every test: 8 virtual devices, and errors where JAX would only shrug."""

import gc
import os

from xla_flags import EIGHT_DEVICES, QUICK

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', QUICK)} {EIGHT_DEVICES}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Free what a module compiled: of all modules together it exceeds Linux's 65,530 mappings."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Keep what a module compiles in a folder, for modules that compile much that is alike."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}

    def update(values):
        for name, value in values.items():
            jax.config.update(name, value)
        reset_cache()  # else JAX keeps to the folder, or to none, that it had first

    update(settings)
    yield
    update(before)
