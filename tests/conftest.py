"""Strict settings for every test: 8 virtual devices, and errors where JAX would only shrug."""

import gc
import os

from xla_flags import EIGHT_DEVICES

os.environ["XLA_FLAGS"] = f"{EIGHT_DEVICES} {os.environ.get('XLA_FLAGS', '')}"  # the last one holds
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Free what a module compiled: of all modules together it exceeds Linux's 65,530 mappings."""
    yield
    jax.clear_caches()
    gc.collect()
