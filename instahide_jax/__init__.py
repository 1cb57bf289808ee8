"""Train networks on hidden data: InstaHide and TextHide in JAX and Flax."""

from instahide_jax.dataset_encryption import encrypt_dataset, encryption_order
from instahide_jax.errors import InputError
from instahide_jax.hiding import NoHiding
from instahide_jax.instahide import InstaHide, encrypt
from instahide_jax.mixing import draw_partners
from instahide_jax.prng import insecure_key
from instahide_jax.secret import (
    SecretKey,
    insecure_secret,
    read_secret,
    secret_key,
    write_secret,
)
from instahide_jax.texthide import TextHide, hide

__all__ = [
    "InputError",
    "InstaHide",
    "NoHiding",
    "SecretKey",
    "TextHide",
    "draw_partners",
    "encrypt",
    "encrypt_dataset",
    "encryption_order",
    "hide",
    "insecure_key",
    "insecure_secret",
    "read_secret",
    "secret_key",
    "write_secret",
]
