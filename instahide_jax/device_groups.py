"""Which devices exchange data: groups of devices as XLA spells them in the text of a program.

Groups are of positions in the device assignment of a program: of r replicas with P partitions each,
partition p of replica r is at position r * P + p. `jax.jit` makes one replica.
"""

import math
import re

import numpy as np

Groups = tuple[tuple[int, ...], ...]

_MESH = re.compile(r"mesh\[([^\]]*)\](?:, *device_ids=\(((?:[^()]|\([^()]*\))*)\))? *\{([^}]*)\}")
_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH_AXES = re.compile(r"(?:'[^']*'=\d+,? *)+")
_MESH_PARTS = re.compile(r"(?:'[^']*'(?::\(\d+\)\d+)?,? *)+")
_LISTED = re.compile(r"\{(?:\{[\d, ]*\},? *)*\}")


def groups_of(op: str, attributes: str, devices: tuple[int, int]) -> Groups:
    """The groups of a collective.

    Args:
      op: the operation, without the end of an asynchronous form.
      attributes: what follows its operands in the text.
      devices: numbers of replicas and of partitions of the program.

    Raises:
      ValueError: there are none, in a spelling that is not known, or of devices that are not there.
    """
    replicas, partitions = devices
    name = "source_target_pairs" if op == "collective-permute" else "replica_groups"
    match = re.search(rf"\b{name}=", attributes)
    if match is None:
        raise ValueError(f"no {name}")
    groups = _spelled(attributes[match.end() :])
    if op == "collective-permute":
        if not groups:
            return ()  # without pairs nothing moves
        groups = _connected(groups)
    # What the numbers count depends on other attributes: see CollectiveOpGroupMode in XLA.
    has_channel = bool(re.search(r"\bchannel_id=", attributes))
    if "use_global_device_ids=true" in attributes:
        made = groups or [list(range(replicas * partitions))]
    elif has_channel and op in ("all-gather", "all-reduce", "reduce-scatter"):
        groups = groups or [list(range(replicas))]  # with all their partitions
        made = [[r * partitions + p for r in group for p in range(partitions)] for group in groups]
    elif has_channel:
        made = _of_partitions(groups or [list(range(partitions))], devices)
    else:
        groups = groups or [list(range(replicas))]
        made = [[r * partitions + p for r in group] for p in range(partitions) for group in groups]
    return _checked(made, devices)


def groups_of_pairs(text: str, devices: tuple[int, int]) -> Groups:
    """The groups that pairs of partitions connect; arguments and errors as in `groups_of`."""
    return _checked(_of_partitions(_connected(_spelled(text)), devices), devices)


def _of_partitions(groups: list[list[int]], devices: tuple[int, int]) -> list[list[int]]:
    replicas, partitions = devices
    return [[r * partitions + p for p in group] for r in range(replicas) for group in groups]


def _checked(groups: list[list[int]], devices: tuple[int, int]) -> Groups:
    count = math.prod(devices)
    if any(device >= count for group in groups for device in group):
        raise ValueError(f"a device beyond the {count} of the program")
    return tuple(tuple(sorted(group)) for group in groups)


def _spelled(text: str) -> list[list[int]]:
    """Groups in any of XLA's spellings at the beginning of a text; none for `{}`, which is all."""
    if match := _LISTED.match(text):
        return _listed(match[0])
    if match := _IOTA.match(text):
        count, size = _integers(match[1])
        return _iota(match[2], match[3]).reshape(count, size).tolist()
    if match := _MESH.match(text):
        return _of_mesh(*match.groups())
    raise ValueError("unknown spelling of replica_groups")


def _integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _listed(text: str) -> list[list[int]]:
    """{{0,1},{2,3}}"""
    return [_integers(group) for group in re.findall(r"\{([\d, ]*)\}", text[1:-1])]


def _iota(reshape: str, transpose: str | None) -> np.ndarray:
    """The numbers from 0 on in the given shape, its axes then in the given order."""
    lengths = _integers(reshape)
    numbers = np.arange(math.prod(lengths)).reshape(lengths)
    return numbers.transpose(_integers(transpose)) if transpose else numbers


def _of_mesh(axes: str, device_ids: str | None, grouped: str) -> list[list[int]]:
    """mesh['a'=2,'b'=8], device_ids=([8,2]T(1,0)) {'a','b':(2)4}

    Axes from the slowest to the fastest. 'b':(2)4 is a part of axis b seen as 2 x 4 x 1: its
    members have the same first and the same last coordinate.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", axes)}
    parts = re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", grouped)
    is_known = _MESH_AXES.fullmatch(axes) and _MESH_PARTS.fullmatch(grouped)
    if not is_known or not {name for name, *_ in parts} <= set(sizes):
        raise ValueError("unknown spelling of a mesh")
    total = math.prod(sizes.values())
    if device_ids is None:
        numbers = np.arange(total)
    elif iota := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", device_ids):
        numbers = _iota(iota[1], iota[2])
    else:
        numbers = np.array(_integers(device_ids))
    if sorted(numbers.reshape(-1)) != list(range(total)):
        raise ValueError("unknown spelling of the device_ids of a mesh")
    # Devices of one group agree in whatever of their coordinates is not grouped.
    kept = np.indices(list(sizes.values())).reshape(len(sizes), total)
    for axis, (name, size) in enumerate(sizes.items()):
        place = kept[axis].copy()
        for _, before, length in (part for part in parts if part[0] == name):
            length = int(length or size)
            step = size // (int(before or 1) * length)
            kept[axis] -= place // step % length * step
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, key in zip(numbers.reshape(-1).tolist(), kept.T.tolist(), strict=True):
        groups.setdefault(tuple(key), []).append(number)
    return list(groups.values())


def _connected(pairs: list[list[int]]) -> list[list[int]]:
    """The numbers that pairs connect, directly or through others."""
    groups: list[set[int]] = []
    for pair in pairs:
        joined = set(pair).union(*(group for group in groups if group & set(pair)))
        groups = [group for group in groups if not group & joined] + [joined]
    return [list(group) for group in groups]
