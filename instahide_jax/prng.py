"""ChaCha20 as a `jax.random` generator with 256-bit keys, and keys derived by name and number.

The generators that JAX ships are statistical ones with keys of at most 128 bits, and
`jax.random.key(seed)` keeps 32 bits of its seed. The one published break of InstaHide's
pseudo-random numbers searched exactly such a 32-bit seed. Everything secret in this package is
therefore drawn from the ChaCha20 block function (RFC 8439) under a key from the operating system's
entropy.

A key is used in four ways, and word 0 of the nonce tells them apart, so that no two uses ever share
a block input: `bits` (key stream), `split` and `fold` (child keys) and `seed`. A child key is the
first half of its block; the parent cannot be computed from it.

Two generators share this code and differ in name only: `chacha20` for secrets, which cannot be
seeded with an integer, and `chacha20_insecure` for experiments, which can (`insecure_key`). The
name is part of a key's dtype and survives `fold_in` and `split`, so a run on insecure keys stays
recognisable.

The code is not audited for constant time and does not erase keys from memory.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import define_prng_impl

from instahide_jax.errors import InputError

_U32 = np.uint32
_CONSTANTS = np.frombuffer(b"expand 32-byte k", "<u4")
_BLOCK_WORDS = 16
_KEY_WORDS = 8
# Rows of the 4x4 state that one double round mixes: its columns, then its diagonals.
_QUARTERS = (
    *((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)),
    *((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)),
)


class _Purpose(IntEnum):
    """Word 0 of the nonce: what a block is used for."""

    BITS = 0x62697473
    SPLIT = 0x73706C74
    FOLD = 0x666F6C64
    SEED = 0x73656564


def _rotate_left(x: jax.Array, count: int) -> jax.Array:
    return (x << _U32(count)) | (x >> _U32(32 - count))


def _quarter_round(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, ...]:
    a = a + b
    d = _rotate_left(d ^ a, 16)
    c = c + d
    b = _rotate_left(b ^ c, 12)
    a = a + b
    d = _rotate_left(d ^ a, 8)
    c = c + d
    b = _rotate_left(b ^ c, 7)
    return a, b, c, d


def _double_round(_: int, state: list[jax.Array]) -> list[jax.Array]:
    state = list(state)
    for quarter in _QUARTERS:
        words = _quarter_round(*(state[i] for i in quarter))
        for i, word in zip(quarter, words, strict=True):
            state[i] = word
    return state


def chacha20_block(key: Sequence[Any], counter: Any, nonce: Sequence[Any]) -> list[jax.Array]:
    """The ChaCha20 block function, RFC 8439 section 2.3, over arrays of inputs.

    Args:
      key: 8 uint32 words, each a scalar or an array.
      counter: uint32, scalar or array.
      nonce: 3 uint32 words, each a scalar or an array.

    Returns:
      The 16 uint32 words of the block, each of the shape that the inputs broadcast to.
    """
    inputs = [jnp.asarray(w, jnp.uint32) for w in (*_CONSTANTS, *key, counter, *nonce)]
    shape = jnp.broadcast_shapes(*(w.shape for w in inputs))
    state = [jnp.broadcast_to(w, shape) for w in inputs]
    # Inside shard_map the words of a loop's carry must all vary over the same mesh axes. OR-ing
    # each with a zero made from all of them gives them one type on every JAX version; XLA folds it
    # away.
    zero = functools.reduce(lax.bitwise_or, state) & _U32(0)
    state = [w | zero for w in state]
    mixed = lax.fori_loop(0, 10, _double_round, state)
    return [a + b for a, b in zip(mixed, state, strict=True)]


def _words_of(key: jax.Array) -> list[jax.Array]:
    return [key[..., i] for i in range(_KEY_WORDS)]


def _child(key: jax.Array, counter: Any, purpose: _Purpose, high: Any = 0) -> jax.Array:
    nonce = (_U32(purpose), high, _U32(0))
    return jnp.stack(chacha20_block(_words_of(key), counter, nonce)[:_KEY_WORDS], axis=-1)


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    counter = lax.iota(jnp.uint32, math.prod(shape))
    return _child(key, counter, _Purpose.SPLIT).reshape(*shape, _KEY_WORDS)


def _fold_in(key: jax.Array, data: Any) -> jax.Array:
    return _child(key, jnp.asarray(data, jnp.uint32), _Purpose.FOLD)


def _random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    size = math.prod(shape)
    num_words = -(-size * bit_width // 32)
    num_blocks = blocks_of(num_words)
    if num_blocks >= 2**32:
        raise InputError(f"{size} values of {bit_width} bits exceed the 256 GiB of one key stream")
    counter = lax.iota(jnp.uint32, num_blocks)
    block = chacha20_block(_words_of(key), counter, (_U32(_Purpose.BITS), _U32(0), _U32(0)))
    words = jnp.stack(block, axis=-1).reshape(-1)[:num_words]
    if bit_width == 32:
        return words.reshape(shape)
    if bit_width == 64:
        low, high = words.reshape(-1, 2).astype(jnp.uint64).T
        return (low | (high << np.uint64(32))).reshape(shape)
    shifts = _U32(bit_width) * lax.iota(jnp.uint32, 32 // bit_width)
    parts = (words[:, None] >> shifts[None, :]) & _U32(2**bit_width - 1)
    return parts.reshape(-1)[:size].reshape(shape).astype(f"uint{bit_width}")


def _seed_refused(seed: jax.Array) -> jax.Array:
    raise InputError(
        "an integer seed is not a secret (jax.random.key keeps 32 bits of it); make the key with "
        "secret_key(), or with insecure_key(seed) for an experiment that protects nothing"
    )


def _seed_insecure(seed: jax.Array) -> jax.Array:
    seed = jnp.asarray(seed)
    high = (seed >> 32).astype(jnp.uint32) if seed.dtype.itemsize == 8 else jnp.uint32(0)
    zeros = jnp.zeros((_KEY_WORDS,), jnp.uint32)
    return _child(zeros, seed.astype(jnp.uint32), _Purpose.SEED, high)


def _define(name: str, tag: str, seed: Callable[[jax.Array], jax.Array]) -> Any:
    return define_prng_impl(
        key_shape=(_KEY_WORDS,),
        seed=seed,
        split=_split,
        random_bits=_random_bits,
        fold_in=_fold_in,
        name=name,
        tag=tag,
    )


chacha20 = _define("chacha20", "cc20", _seed_refused)
chacha20_insecure = _define("chacha20_insecure", "cc20!", _seed_insecure)


def insecure_key(seed: int) -> jax.Array:
    """A ChaCha20 key from an integer, for experiments: it protects nothing.

    Every bit of the seed counts, whatever its size, but an attacker can try seeds.

    Args:
      seed: any integer >= 0.

    Returns:
      A typed key, shape [], of the generator `chacha20_insecure`. `encrypt` takes it, and the dtype
      keeps the mark through `fold_in` and `split`.
    """
    if seed < 0:
        raise InputError(f"seed {seed} is negative; give an integer of at least 0")
    key = jax.random.key(seed & 0xFFFFFFFF, impl=chacha20_insecure)
    while seed := seed >> 32:
        key = jax.random.fold_in(key, seed & 0xFFFFFFFF)
    return key


def is_insecure(key: jax.Array) -> bool:
    """Whether a key stems from `insecure_key` and so from a guessable seed."""
    return jax.random.key_impl(key) == chacha20_insecure


def is_key(value: Any) -> bool:
    """Whether a value is a typed key, or an array of them, of any generator."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def check_secret_key(key: Any) -> None:
    """Refuse what is not a 256-bit ChaCha20 key.

    Raises:
      InputError: for an integer seed, raw key words, or a key of JAX's own 32- to 128-bit
        generators, where a secret is expected.
    """
    remedy = "use secret_key(), or insecure_key(seed) for an experiment that protects nothing"
    if not is_key(key):
        raise InputError(f"a secret key is expected, not a {type(key).__name__}; {remedy}")
    if key.shape != ():
        raise InputError(f"one secret key is expected, not an array of shape {key.shape}")
    if jax.random.key_impl(key) not in (chacha20, chacha20_insecure):
        raise InputError(
            f"a 256-bit ChaCha20 key is expected, not one of JAX's statistical generator "
            f"{jax.random.key_impl(key)}; {remedy}"
        )


def fold_words(key: jax.Array, words: Sequence[int]) -> jax.Array:
    """Fold a sequence of 32-bit words into a key, one after the other."""
    for word in words:
        key = jax.random.fold_in(key, np.uint32(word))
    return key


def stream(key: jax.Array, name: str) -> jax.Array:
    """The child key for a named purpose, such as "train" or "evaluate".

    The name enters through 128 bits of its SHA-256, so distinct names give independent keys.
    """
    return fold_words(
        key, np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], "<u4").tolist()
    )


def row_keys(key: jax.Array, rows: jax.Array) -> jax.Array:
    """One key per row, typed keys of shape [B]: `fold_in(key, row)` for rows [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def blocks_of(num_words: int) -> int:
    """Blocks of a key stream that hold `num_words` words."""
    return -(-num_words // _BLOCK_WORDS)


def row_bits(keys: jax.Array, num_words: int, first_block: int | jax.Array = 0) -> jax.Array:
    """Key streams of many keys at once, uint32 [B, num_words].

    From block 0 on, row r equals `jax.random.bits(keys[r], (num_words,), "uint32")`. A `vmap` of
    that would compute arrays of shape [B, blocks], whose short last axis leaves most of a
    processor's vector unused; here all blocks of all rows lie on one axis.

    Args:
      keys: typed ChaCha20 keys, shape [B].
      num_words: words per key, a static integer.
      first_block: where in the key streams to start, in blocks of 16 words; one for all, or one
        each, [B].
    """
    num_keys, num_blocks = keys.size, blocks_of(num_words)
    data = jnp.repeat(jax.random.key_data(keys), num_blocks, axis=0)  # [B * blocks, 8]
    start = jnp.broadcast_to(jnp.asarray(first_block, jnp.uint32), (num_keys,))
    counter = (start[:, None] + lax.iota(jnp.uint32, num_blocks)[None, :]).reshape(-1)
    nonce = (_U32(_Purpose.BITS), _U32(0), _U32(0))
    block = chacha20_block(_words_of(data), counter, nonce)
    return jnp.stack(block, axis=-1).reshape(num_keys, -1)[:, :num_words]
