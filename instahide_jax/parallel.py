"""The mesh, and mapping a per-device function over it.

The mesh has two axes: "client", one entry per data owner, and "data", the devices of one owner.
Private images may be gathered along "data" and never along "client".
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from instahide_jax.errors import InputError

DeviceMap = Literal["shard_map", "pmap"]
# Compiler options for what runs once: optimising it would take longer than running it.
FAST_COMPILE = {"xla_backend_optimization_level": 0}
Tree = Any


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A ("client", "data") mesh of one client over the given devices, by default all local ones."""
    devices = jax.local_devices() if devices is None else devices
    return jax.make_mesh(
        (1, len(devices)), ("client", "data"), (AxisType.Auto,) * 2, devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, P())


def sharded(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: leading axis along "data"."""
    return NamedSharding(mesh, P("data"))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Refuse batches that do not divide evenly.

    Raises:
      InputError: naming batch size, number of devices and the nearest sizes that fit.
    """
    devices = mesh.shape["data"]
    if batch_size % devices:
        lower = batch_size // devices * devices
        raise InputError(
            f"batch_size is {batch_size}, which {devices} devices cannot share evenly; "
            f"use {lower or devices} or {lower + devices}"
        )


def device_map(
    function: Callable[[Tree, Tree], Tree], mesh: Mesh, backend: DeviceMap = "shard_map"
) -> Callable[[Tree, Tree], Tree]:
    """Map function(shared, split) over the devices of the "data" axis.

    Every device sees `shared` whole and its part of the leading axis of every leaf of `split`;
    results are concatenated along their leading axis. Inside, `jax.lax` collectives over "data"
    work. Both backends give the same bits; "pmap" is the older of JAX's two interfaces and
    dispatches more slowly. Use the result inside `jax.jit`.

    Args:
      function: per-device function.
      mesh: of `make_mesh`.
      backend: "shard_map" or "pmap".
    """
    if backend == "shard_map":
        # check_vma off: a result may be equal on all devices without being typed as such.
        return jax.shard_map(
            function, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"), check_vma=False
        )
    devices = mesh.devices.reshape(-1).tolist()
    mapped = jax.pmap(function, axis_name="data", in_axes=(None, 0), devices=devices)

    def apply(shared: Tree, split: Tree) -> Tree:
        parts = jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), split)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), mapped(shared, parts))

    return apply
