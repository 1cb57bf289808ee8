"""The mesh of clients and devices, mapping a function over it, and groups of rows.

The mesh has two axes: "client", along which data owners stand side by side, and "data", the devices
of one of them. What is private may be gathered along "data" and never along "client". A batch
[B, ...] lists the rows of client 0 first, then those of client 1, and is cut along both axes.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from instahide_jax.errors import InputError

DeviceMap = Literal["shard_map", "pmap"]
# Compiler options for what runs once: optimising it would take longer than running it.
FAST_COMPILE = {"xla_backend_optimization_level": 0}
Tree = Any


def make_mesh(clients: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A ("client", "data") mesh over the given devices, by default those of all processes.

    Devices are ordered by process, so that the clients of a process are neighbours. A client has
    several devices, of one process or of several; or a device has several clients, one after the
    other, where one process has fewer devices than clients.

    Args:
      clients: data owners, K.
      devices: as many of every process.

    Raises:
      InputError: if clients, processes and devices do not divide one another.
    """
    devices = jax.devices() if devices is None else list(devices)
    devices.sort(key=lambda device: (device.process_index, device.id))
    per_process = Counter(device.process_index for device in devices)
    processes, local = len(per_process), len(devices) // len(per_process)
    if set(per_process.values()) != {local}:
        raise InputError(
            f"the processes have {sorted(per_process.values())} devices; give all of them as many"
        )
    if clients % processes and processes % clients:
        raise InputError(
            f"clients is {clients}, which {processes} processes cannot share evenly; use a "
            f"multiple or a divisor of {processes}"
        )
    of_process = max(1, clients // processes)
    if of_process % local and local % of_process:
        raise InputError(
            f"{of_process} clients of a process cannot share its {local} devices evenly; use a "
            f"multiple or a divisor of {local}"
        )
    places = min(clients, processes * min(of_process, local))
    shape = (places, len(devices) // places)
    # Not jax.make_mesh: for a torus of TPUs it would order the devices as suits the network, and
    # rows would no longer lie with the process that reads them.
    return Mesh(
        np.array(devices).reshape(shape), ("client", "data"), axis_types=(AxisType.Auto,) * 2
    )


def process_clients(mesh: Mesh, clients: int) -> range:
    """The clients whose private data this process holds."""
    per_place = clients // mesh.shape["client"]
    mine = [
        place
        for place, row in enumerate(mesh.devices)
        if any(device.process_index == jax.process_index() for device in row)
    ]
    return range(mine[0] * per_place, (mine[-1] + 1) * per_place)


class Share(NamedTuple):
    """Part `which` of `of` equal ones."""

    which: int
    of: int


WHOLE = Share(0, 1)


def process_share(mesh: Mesh, clients: int) -> Share:
    """This process's share of the rows of each of its clients: all, or those of its devices."""
    row = mesh.devices[process_clients(mesh, clients).start // (clients // mesh.shape["client"])]
    processes = sorted({device.process_index for device in row})
    return Share(processes.index(jax.process_index()), len(processes))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, P())


def of_clients(mesh: Mesh) -> NamedSharding:
    """The sharding of what belongs to clients, [K, ...]: every device holds that of its own."""
    return NamedSharding(mesh, P("client"))


def sharded(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch [B, ...]: rows along clients, then along the devices of each."""
    return NamedSharding(mesh, P(("client", "data")))


def check_batch_size(
    batch_size: int, mesh: Mesh, clients: int = 1, group: int | None = None
) -> None:
    """Refuse batches that do not divide evenly.

    Args:
      batch_size: B, over all clients and devices.
      mesh: of `make_mesh`.
      clients: K.
      group: rows among which partners are drawn; None: all rows of a client.

    Raises:
      InputError: naming the sizes, and the nearest that fit.
    """
    parts = clients * mesh.shape["data"]
    if batch_size % parts:
        lower = batch_size // parts * parts
        owners = "" if clients == 1 else f" of {clients} clients"
        raise InputError(
            f"batch_size is {batch_size}, which {mesh.devices.size} devices{owners} cannot share "
            f"evenly; use {lower or parts} or {lower + parts}"
        )
    own, on_device = batch_size // clients, batch_size // parts
    if group is not None and (own % group or (group % on_device and on_device % group)):
        fitting = [
            size
            for size in range(2, own + 1)
            if own % size == 0 and (size % on_device == 0 or on_device % size == 0)
        ]
        raise InputError(
            f"partner_group is {group}; a client's {own} rows of a step, {on_device} on each "
            f"device, fall into groups of {', '.join(map(str, fitting))}: use one of these"
        )


def device_map(
    function: Callable[[Tree, Tree, Tree], Tree], mesh: Mesh, backend: DeviceMap = "shard_map"
) -> Callable[[Tree, Tree, Tree], Tree]:
    """Map function(common, own, rows) over clients and devices.

    Every device calls it once for each of its clients, with `common` whole, the client's part of
    `own` without the leading axis [K, ...], and its share of the client's rows [B, ...]. Results
    are concatenated along their leading axis. Inside, `jax.lax` collectives over "data" reach the
    devices of the same client and no others. Both backends give the same bits; "pmap" is the older
    of JAX's two interfaces, dispatches more slowly and takes one client in one process. Use the
    result inside `jax.jit`.

    Args:
      function: per client and device; `common`, `own` and `rows` are pytrees, possibly empty.
      mesh: of `make_mesh`.
      backend: "shard_map" or "pmap".
    """

    def on_device(common: Tree, own: Tree, rows: Tree) -> Tree:
        owned = jax.tree.leaves(own)
        clients = owned[0].shape[0] if owned else 1
        if clients == 1:
            return function(common, jax.tree.map(lambda x: x[0], own), rows)
        parts = jax.tree.map(lambda x: x.reshape(clients, -1, *x.shape[1:]), rows)
        made = lax.map(lambda part: function(common, *part), (own, parts))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), made)

    if backend == "shard_map":
        cut = P(("client", "data"))
        # check_vma off: a result may be equal on all devices without being typed as such.
        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(P(), P("client"), cut),
            out_specs=cut,
            check_vma=False,
        )
    devices = mesh.devices.reshape(-1).tolist()
    mapped = jax.pmap(on_device, axis_name="data", in_axes=(None, None, 0), devices=devices)

    def apply(common: Tree, own: Tree, rows: Tree) -> Tree:
        parts = jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), rows)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), mapped(common, own, parts))

    return apply


def check_device_map(backend: DeviceMap, clients: int) -> None:
    """Refuse what `pmap` cannot map over.

    Raises:
      InputError: for several clients or processes.
    """
    if backend == "pmap" and (clients > 1 or jax.process_count() > 1):
        raise InputError(
            f"device_map is 'pmap', which takes one client in one process, not {clients} in "
            f"{jax.process_count()}; use 'shard_map'"
        )


@dataclass(frozen=True)
class Groups:
    """Rows of a client's batch fall into groups of neighbours; a row's partners are of its group.

    What a row is mixed with depends on the size of the groups and not on the number of devices.
    Groups of no more rows than a device has need no communication.

    Attributes:
      size: rows of a group.
      on_device: rows of the client's batch on a device; it divides `size` or is divided by it.
    """

    size: int
    on_device: int

    def map(
        self, function: Callable[["Neighbours", Tree], Tree], position: jax.Array, rows: Tree
    ) -> Tree:
        """function(neighbours, rows) for every group of which the device has rows.

        Args:
          function: of one group's rows that lie on this device.
          position: int32 [r], places of the device's rows in the client's batch.
          rows: pytree of arrays [r, ...].
        """
        if self.size >= self.on_device:
            return function(self._neighbours(position, self._gathered), rows)
        split = jax.tree.map(
            lambda x: x.reshape(self.on_device // self.size, -1, *x.shape[1:]),
            {"at": position, "rows": rows},
        )
        made = jax.vmap(lambda p: function(self._neighbours(p["at"], _as_it_is), p["rows"]))(split)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), made)

    def _neighbours(self, position: jax.Array, gather: Callable[[Tree], Tree]) -> "Neighbours":
        return Neighbours(position, position[0] // self.size * self.size, self.size, gather)

    def _gathered(self, tree: Tree) -> Tree:
        devices = math.ceil(self.size / self.on_device)
        if devices == 1:
            return tree
        return jax.tree.map(
            lambda x: lax.all_gather(x, "data", tiled=True, axis_index_groups=_groups(devices)),
            tree,
        )


def _groups(devices: int) -> list[list[int]] | None:
    """Neighbouring places on the "data" axis, so many each; None is all of it."""
    total = lax.axis_size("data")
    if devices == total:
        return None
    return [list(range(start, start + devices)) for start in range(0, total, devices)]


def _as_it_is(tree: Tree) -> Tree:
    return tree


@dataclass(frozen=True)
class Neighbours:
    """Some rows of one group, and how to get at the rest of it.

    Attributes:
      position: int32 [r], places of the rows in their client's batch.
      first: int32 [], place of the group's first row.
      size: rows of the group.
      gather: from arrays [r, ...] of these rows to arrays [size, ...] of the whole group.
    """

    position: jax.Array
    first: jax.Array
    size: int
    gather: Callable[[Tree], Tree]
