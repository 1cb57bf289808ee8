"""instahide_jax.prng: ChaCha20 against RFC 8439 and OpenSSL, its use by jax.random, refusals."""

import hashlib
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from jax.sharding import PartitionSpec

from instahide_jax import prng
from instahide_jax.errors import InputError

KEY = bytes(range(100, 132))
BITS, SPLIT, FOLD, SEED = b"bits", b"splt", b"fold", b"seed"


def openssl_block(key: bytes, counter: int, nonce: bytes) -> bytes:
    cipher = Cipher(algorithms.ChaCha20(key, counter.to_bytes(4, "little") + nonce), mode=None)
    return cipher.encryptor().update(bytes(64))


def purpose_block(purpose: bytes, counter: int, high: int = 0, key: bytes = KEY) -> bytes:
    """The block that `purpose` has to use: nonce word 0 spells it (big-endian), word 2 is 0."""
    return openssl_block(key, counter, purpose[::-1] + high.to_bytes(4, "little") + bytes(4))


def to_words(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<u4").copy()


def to_bytes(words: Any) -> bytes:
    return np.asarray(words).astype("<u4").tobytes()


def typed(data: bytes = KEY, impl: Any = prng.chacha20) -> jax.Array:
    """A new array each time, because the key-reuse check consumes arrays."""
    return jax.random.wrap_key_data(to_words(data), impl=impl)


def key_bytes(key: jax.Array) -> bytes:
    return to_bytes(jax.random.key_data(key))


# RFC 8439: section 2.3.2 and the five vectors of appendix A.1.
RFC_BLOCKS = {
    "2.3.2": (
        bytes(range(32)),
        1,
        "000000090000004a00000000",
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e",
    ),
    "A.1 #1": (
        bytes(32),
        0,
        "000000000000000000000000",
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
    ),
    "A.1 #2": (
        bytes(32),
        1,
        "000000000000000000000000",
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f",
    ),
    "A.1 #3": (
        bytes(31) + b"\x01",
        1,
        "000000000000000000000000",
        "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
        "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0",
    ),
    "A.1 #4": (
        b"\x00\xff" + bytes(30),
        2,
        "000000000000000000000000",
        "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
        "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096",
    ),
    "A.1 #5": (
        bytes(32),
        0,
        "000000000000000000000002",
        "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7"
        "8a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d",
    ),
}


@pytest.fixture(scope="module")
def block() -> Callable[[bytes, int, bytes], bytes]:
    """The block function under test, compiled once."""
    compiled = jax.jit(prng.chacha20_block)

    def of_bytes(key: bytes, counter: int, nonce: bytes) -> bytes:
        return to_bytes(compiled(list(to_words(key)), np.uint32(counter), list(to_words(nonce))))

    return of_bytes


@pytest.mark.parametrize("section", RFC_BLOCKS)
def test_block_of_the_rfc(section: str, block: Callable[..., bytes]) -> None:
    key, counter, nonce, expected = RFC_BLOCKS[section]
    assert block(key, counter, bytes.fromhex(nonce)).hex() == expected
    # The vector is typed correctly: OpenSSL agrees with it.
    assert openssl_block(key, counter, bytes.fromhex(nonce)).hex() == expected


def test_block_equals_openssl_on_random_inputs(block: Callable[..., bytes]) -> None:
    rng = np.random.default_rng(0)
    for counter in [0, 1, 2**31, 2**32 - 1, *rng.integers(0, 2**32, 60).tolist()]:
        key, nonce = rng.bytes(32), rng.bytes(12)
        assert block(key, counter, nonce) == openssl_block(key, counter, nonce)


def test_block_broadcasts_its_inputs() -> None:
    counters = np.arange(3, dtype=np.uint32)[:, None]
    low = np.arange(2, dtype=np.uint32)[None, :]
    words = jax.jit(prng.chacha20_block)(list(to_words(KEY)), counters, [low, 0, 0])
    for i, j in itertools.product(range(3), range(2)):
        nonce = bytes([j]) + bytes(11)
        assert to_bytes([w[i, j] for w in words]) == openssl_block(KEY, i, nonce)


def test_key_stream_in_every_width() -> None:
    stream = b"".join(purpose_block(BITS, i) for i in range(3))
    for width, shape in ((8, (5, 14)), (16, (35,)), (32, (37,)), (8, (0,))):
        bits = jax.random.bits(typed(), shape, f"uint{width}")
        expected = np.frombuffer(stream, f"<u{width // 8}")[: bits.size].reshape(shape)
        np.testing.assert_array_equal(bits, expected)
    with jax.enable_x64(True):
        wide = jax.random.bits(typed(), (9,), "uint64")
        np.testing.assert_array_equal(wide, np.frombuffer(stream, "<u8")[:9])


def test_children_of_a_key() -> None:
    children = jax.random.split(typed(), (2, 3))
    assert children.shape == (2, 3)
    split = [purpose_block(SPLIT, i)[:32] for i in range(6)]
    assert key_bytes(children) == b"".join(split)
    for number in (0, 1, 2**31, 2**32 - 1):
        child = jax.random.fold_in(typed(), np.uint32(number))
        assert key_bytes(child) == purpose_block(FOLD, number)[:32]


def test_no_two_uses_of_a_key_share_a_block() -> None:
    count = 64
    numbers = np.arange(count, dtype=np.uint32)
    stream = np.asarray(jax.random.bits(typed(), (count, 16), "uint32"))
    uses = [
        to_words(KEY)[None, :],
        stream[:, :8],
        stream[:, 8:],
        np.asarray(jax.random.key_data(jax.random.split(typed(), count))),
        np.asarray(jax.random.key_data(prng.row_keys(typed(), numbers))),
    ]
    assert len({row.tobytes() for use in uses for row in use}) == 1 + 4 * count


def test_seeds_count_every_bit() -> None:
    seeds = [0, 5, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 2**40, 2**40 + 5, 2**64 + 5, 2**200]
    keys = {seed: key_bytes(prng.insecure_key(seed)) for seed in seeds}
    assert len(set(keys.values())) == len(seeds)
    for seed in (0, 5, 2**31, 2**32 - 1):
        assert keys[seed] == purpose_block(SEED, seed, key=bytes(32))[:32]
    assert keys[2**32 + 5] == purpose_block(FOLD, 1, key=keys[5])[:32]
    with jax.enable_x64(True):
        assert key_bytes(prng.insecure_key(2**32 + 5)) == keys[2**32 + 5]
    # jax.random.key, which this replaces, forgets the upper half.
    assert (
        jax.random.key_data(jax.random.key(2**32 + 5)) == jax.random.key_data(jax.random.key(5))
    ).all()
    with pytest.raises(InputError, match=r"seed -1 .*at least 0"):
        prng.insecure_key(-1)


def test_golden_integers() -> None:
    """Literals, so that neither this code nor a JAX version can change the streams unnoticed."""
    bits = jax.random.bits(prng.insecure_key(7), (3,), "uint32")
    assert bits.tolist() == [1617035502, 749309565, 346052870]
    order = jax.random.permutation(prng.insecure_key(7), 8)
    assert order.tolist() == [6, 4, 3, 0, 7, 2, 5, 1]
    train = prng.stream(prng.insecure_key(7), "train")
    assert jax.random.key_data(train)[:2].tolist() == [1582877705, 1759605293]


# One entry per family of jax.random functions.
SAMPLERS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "bits uint8": lambda key: jax.random.bits(key, (5,), "uint8"),
    "bits uint16": lambda key: jax.random.bits(key, (5,), "uint16"),
    "bits uint32": lambda key: jax.random.bits(key, (5,), "uint32"),
    "uniform": lambda key: jax.random.uniform(key, (4,)),
    "normal": lambda key: jax.random.normal(key, (4,)),
    "bernoulli": lambda key: jax.random.bernoulli(key, 0.5, (40,)),
    "gamma": lambda key: jax.random.gamma(key, 2.0, (3,)),
    "dirichlet": lambda key: jax.random.dirichlet(key, jnp.ones(3)),
    "permutation": lambda key: jax.random.permutation(key, 20),
    "choice": lambda key: jax.random.choice(key, 20, (5,), replace=False),
}


def assert_each_key_is_used(sampler: Callable[[jax.Array], jax.Array], keys: jax.Array) -> None:
    """vmap over keys gives what a loop over them gives, and the samples differ."""
    single = jax.jit(sampler)
    expected = np.stack([single(key) for key in keys])
    assert len({row.tobytes() for row in expected}) == len(keys)
    np.testing.assert_allclose(jax.jit(jax.vmap(sampler))(keys), expected, rtol=1e-6)


# By value: the others are made of these (bernoulli of uniform, dirichlet of gamma, ...).
@pytest.mark.parametrize(
    "name", ["bits uint8", "bits uint16", "uniform", "normal", "gamma", "permutation"]
)
def test_jax_random_under_jit_and_vmap(name: str) -> None:
    assert_each_key_is_used(SAMPLERS[name], jax.random.split(typed(), 5))


def test_vmap_check_rejects_a_generator_that_uses_the_first_key_only() -> None:
    with pytest.raises(AssertionError):
        assert_each_key_is_used(
            SAMPLERS["bits uint32"], jax.random.split(jax.random.key(0, impl="rbg"), 5)
        )


def on_eight_devices(sampler: Callable[[jax.Array], Any]) -> tuple[Any, Any]:
    """The sampler with one key per device, under shard_map and under pmap."""

    def per_device(keys: jax.Array) -> Any:
        return jax.tree.map(lambda x: x[None], sampler(keys[0]))

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")
    sharded = jax.shard_map(per_device, mesh=mesh, in_specs=spec, out_specs=spec)
    return jax.jit(sharded), jax.pmap(sampler, axis_name="data")


@pytest.mark.parametrize("name", SAMPLERS)
def test_jax_random_is_accepted_by_shard_map_and_pmap(name: str) -> None:
    """Types within loops must agree there; tracing shows it, and costs less than compiling."""
    for mapped in on_eight_devices(SAMPLERS[name]):
        mapped.lower(jax.random.split(typed(), 8))


def test_jax_random_under_shard_map_and_pmap() -> None:
    sampler = SAMPLERS["normal"]
    expected = jax.jit(jax.vmap(sampler))(jax.random.split(typed(), 8))
    for mapped in on_eight_devices(sampler):
        np.testing.assert_allclose(mapped(jax.random.split(typed(), 8)), expected, rtol=1e-6)


def test_gradients_flow_around_the_generator() -> None:
    def mean(location: jax.Array, scale: jax.Array) -> jax.Array:
        return (location + scale * jax.random.normal(typed(), (100,))).mean()

    by_location, by_scale = jax.jit(jax.grad(mean, argnums=(0, 1)))(1.0, 2.0)
    assert by_location == pytest.approx(1.0)
    assert by_scale == pytest.approx(float(jax.random.normal(typed(), (100,)).mean()), abs=1e-6)


def test_streams_and_row_keys() -> None:
    def chain(words: list[int]) -> bytes:
        data = KEY
        for word in words:
            data = purpose_block(FOLD, word, key=data)[:32]
        return data

    train = hashlib.sha256(b"train").digest()
    assert key_bytes(prng.stream(typed(), "train")) == chain(to_words(train)[:4].tolist())
    assert key_bytes(prng.fold_words(typed(), [3, 2**32 - 1])) == chain([3, 2**32 - 1])
    names = ["train", "evaluate", "", "trai", "train ", "Train", "é"]
    keys = [key_bytes(prng.stream(typed(), name)) for name in names]
    assert len({KEY, *keys}) == len(names) + 1

    rows = np.array([0, 7, 2**32 - 1], np.uint32)
    assert key_bytes(prng.row_keys(typed(), rows)) == b"".join(chain([r]) for r in rows.tolist())


def test_row_bits_are_the_key_streams_of_the_rows() -> None:
    row_bits = jax.jit(prng.row_bits, static_argnums=1)
    keys = [purpose_block(SPLIT, i)[:32] for i in range(4)]
    for first_block in (0, 3, 2**32 - 3):
        bits = row_bits(jax.random.split(typed(), 4), 37, np.uint32(first_block))
        assert bits.shape == (4, 37)
        for row, key in zip(np.asarray(bits), keys, strict=True):
            blocks = [purpose_block(BITS, first_block + i, key=key) for i in range(3)]
            assert to_bytes(row) == b"".join(blocks)[: 4 * 37]
    one_by_one = jax.vmap(lambda key: jax.random.bits(key, (37,), "uint32"))
    rows = row_bits(jax.random.split(typed(), 4), 37, np.uint32(0))
    np.testing.assert_array_equal(rows, one_by_one(jax.random.split(typed(), 4)))


def test_a_key_stream_ends_before_its_counter_repeats() -> None:
    with pytest.raises(InputError, match="256 GiB"):
        jax.jit(lambda key: jax.random.bits(key, (2**31, 32), "uint32")).lower(typed())


def test_the_insecure_mark_is_inherited() -> None:
    for key, insecure in ((typed(), False), (prng.insecure_key(3), True)):
        first, second = jax.random.split(jax.random.fold_in(key, 1))
        assert prng.is_insecure(key) is insecure
        assert prng.is_insecure(second) is insecure
        assert prng.is_insecure(prng.stream(first, "train")) is insecure
        prng.check_secret_key(second)
    # The generators differ in name only.
    np.testing.assert_array_equal(
        jax.random.bits(typed(), (5,)), jax.random.bits(typed(impl=prng.chacha20_insecure), (5,))
    )


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0, "not a int"),
        (2**200, "not a int"),
        (None, "not a NoneType"),
        (np.int64(3), "secret key is expected"),
        (KEY, "not a bytes"),
        (to_words(KEY), "secret key is expected"),
        (jax.random.PRNGKey(0), "secret key is expected"),
        (jax.random.key(0), "threefry2x32|fry"),
        (jax.random.key(0, impl="threefry4x32"), "threefry4x32|fry"),
        (jax.random.key(0, impl="rbg"), "rbg"),
        (jax.random.key(0, impl="philox4x32"), "philox"),
        (jax.random.split(typed(), 3), r"not an array of shape \(3,\)"),
    ],
)
def test_what_is_no_secret_key_is_refused(key: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        prng.check_secret_key(key)
    if "array of shape" not in message:
        assert "secret_key()" in str(error.value)


def test_a_secret_generator_takes_no_seed() -> None:
    with pytest.raises(InputError, match=r"not a secret.*secret_key\(\)"):
        jax.random.key(0, impl=prng.chacha20)
