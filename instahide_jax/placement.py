"""Where arrays lie: from the memory of processes to the mesh and back, whole or in shards."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from instahide_jax.parallel import of_clients, replicated

Tree = Any

# Parameters of fewer numbers than this stay whole on every device: a shard would save nothing.
_SHARDED_FROM = 1024


def put_whole(tree: Tree, mesh: Mesh) -> Tree:
    """Arrays or typed keys, alike in all processes, on every device."""
    return jax.tree.map(lambda x: _put(x, replicated(mesh), np.shape(x)), tree)


def put_like(tree: Tree, sharding: Tree) -> Tree:
    """Arrays, alike in all processes, each with its own of a pytree of shardings."""

    def put(value: Any, where: NamedSharding) -> jax.Array:
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, where, lambda index: value[index])

    return jax.tree.map(put, tree, sharding)


def put_own(trees: Sequence[Tree], mesh: Mesh, clients: int) -> Tree:
    """What clients own, as arrays [K, ...], each part on the devices of its client alone.

    Args:
      trees: of this process's clients (`parallel.process_clients`), in their order: alike in
        structure and shapes. Leaves are arrays or typed keys. Nothing leaves the process.
      mesh: of `make_mesh`.
      clients: K.
    """

    def put(*parts: Any) -> jax.Array:
        joined = _stacked(parts)
        return _put(joined, of_clients(mesh), (clients, *joined.shape[1:]))

    return jax.tree.map(put, *trees)


def _stacked(parts: Sequence[Any]) -> Any:
    if _is_key(parts[0]):
        return jax.numpy.stack(parts)
    arrays = [np.asarray(part) for part in parts]
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)  # a view of a large set


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)


def _put(value: Any, sharding: NamedSharding, shape: tuple[int, ...]) -> jax.Array:
    """A global array of this process's part of it."""
    if not _is_key(value):
        return jax.make_array_from_process_local_data(sharding, np.asarray(value), shape)
    # A typed key cannot be put where other processes are; its words can.
    words = np.asarray(jax.random.key_data(value))
    whole = jax.make_array_from_process_local_data(sharding, words, (*shape, words.shape[-1]))
    wrap = partial(jax.random.wrap_key_data, impl=jax.random.key_impl(value))
    return jax.jit(wrap, out_shardings=sharding)(whole)


def state_sharding(abstract: Tree, mesh: Mesh, shard: bool) -> Tree:
    """The sharding of every array of a training state.

    Args:
      abstract: pytree of `jax.ShapeDtypeStruct`.
      mesh: of `make_mesh`.
      shard: cut every large array into equal parts along "data" (fully sharded data parallelism,
        as ZeRO: Rajbhandari et al., SC 2020), by its longest axis that can be cut; the others, and
        all of them if False, lie whole on every device.
    """
    devices = mesh.shape["data"]

    def of(array: Any) -> Sharding:
        axes = [axis for axis, length in enumerate(array.shape) if length % devices == 0]
        if not shard or devices == 1 or array.size < _SHARDED_FROM or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: array.shape[axis])
        return NamedSharding(mesh, P(*[None] * longest, "data"))

    return jax.tree.map(of, abstract)


def local_mesh() -> Mesh:
    """A mesh of this process's devices, for what it does by itself: one client, axis "data"."""
    devices = np.array(jax.local_devices())
    return Mesh(devices.reshape(1, -1), ("client", "data"))


def _same(tree: Tree) -> Tree:
    return tree


def to_local(tree: Tree, mesh: Mesh) -> Tree:
    """Arrays of the global mesh as whole arrays on every device of `local_mesh`.

    All processes call it; afterwards each may compute with the result by itself.
    """
    whole = tree
    if not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)):
        whole = jax.jit(_same, out_shardings=replicated(mesh))(tree)
    if jax.process_count() == 1:
        return whole
    sharding = NamedSharding(local_mesh(), P())

    def local(x: jax.Array) -> jax.Array:
        parts = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, parts)

    return jax.tree.map(local, whole)
