"""What a compiled program moves between devices, computes and holds, as XLA itself reports it.

A promise such as "private images never leave their owner's devices" is checked here on the program
that runs, not on the source that it was made from:

    program = jax.jit(step).lower(*arguments).compile()
    assert not crossing(collectives(program), mesh, "client")
"""

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from instahide_jax.device_groups import Groups, groups_of, groups_of_pairs
from instahide_jax.errors import InputError

Shape = tuple[str, tuple[int, ...]]  # a dtype as XLA spells it, and the lengths of the axes
# XLA's grammar of types: an array, or a tuple of types.
Type = Shape | list["Type"]

# Operations that wait for other devices, except for `send` and `recv`, which may go to the host.
_COLLECTIVES = {
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
}
# Wider than the list above, so that an operation of a later XLA is refused and not overlooked.
_LOOKS_LIKE_ONE = re.compile(
    r"(?<![\w%.-])((?:[a-z]+-)*(?:all|collective|reduce-scatter)[a-z-]*|send|recv)\("
)
_NO_COLLECTIVE = {"after-all"}
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_NAME = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([^\]]*)\](?:\{[^}]*\})?")


class Collective(NamedTuple):
    """An operation through which devices exchange data.

    Attributes:
      op: XLA's name, such as "all-reduce"; asynchronous forms go by the same names.
      shapes: (dtype, shape) of its results followed by those of its operands, per device; dtypes as
        XLA spells them ("f32", "bf16", "u8", "pred").
      groups: of the devices that exchange data with one another, as positions in the program's
        device assignment: for a jitted function positions in `mesh.devices.flat`. Each is sorted.
        For "collective-permute" and "send" the devices that its pairs connect.
      num_bytes: per device, of all operands or of all results, whichever are larger.
    """

    op: str
    shapes: tuple[Shape, ...]
    groups: Groups
    num_bytes: int


class Cost(NamedTuple):
    """What XLA expects one device to compute and to hold; the body of a loop counts once.

    Attributes:
      flops: floating point operations.
      bytes_accessed: bytes read and written by all operations.
      argument_bytes: held by the arguments.
      output_bytes: held by the results.
      temp_bytes: held by everything in between, at the worst moment.
      alias_bytes: of the results that take the place of donated arguments.
    """

    flops: float
    bytes_accessed: float
    argument_bytes: int
    output_bytes: int
    temp_bytes: int
    alias_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Bytes held at the worst moment: arguments, results and temporaries, aliases once."""
        return self.argument_bytes + self.output_bytes + self.temp_bytes - self.alias_bytes


def collectives(compiled: Any) -> list[Collective]:
    """All collectives of a compiled program, in the order of its text.

    What stands in the body of a loop, in a branch or in a called function counts once, however
    often it runs. An asynchronous operation counts where it starts; a `send` stands for itself and
    its `recv`; transfers to and from the host are left out. What the devices exchange within a
    custom call, such as a kernel with remote copies, is not visible to XLA, nor here.

    Args:
      compiled: of `jax.jit(f).lower(...).compile()`, or the text of an optimised HLO module.

    Raises:
      InputError: the program has no text, or a line looks like a collective and cannot be parsed.
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    if text is None:
        raise InputError("the compiled program has no text: use a backend that prints its HLO")
    found = []
    replicas = partitions = 0  # no header seen
    results: dict[str, str] = {}  # of the computation that is read: name -> what it is
    for line in text.splitlines():
        if line.startswith("HloModule"):
            replicas, partitions = _count(line, "replica_count"), _count(line, "num_partitions")
        if line.rstrip().endswith("{") and " = " not in line:
            results.clear()  # a name holds within its computation
        plain = re.sub(r"/\*.*?\*/", "", line)
        bare = _QUOTED.sub('""', plain)  # names of source operations may look like anything
        name = _NAME.match(bare)
        if name:
            results[name[1]] = bare[name.end() :]
        looks = [
            match for match in _LOOKS_LIKE_ONE.finditer(bare) if match[1] not in _NO_COLLECTIVE
        ]
        if not looks:
            continue
        try:
            if not replicas:
                raise ValueError("no HloModule before it, which tells the number of devices")
            if not name or len(looks) > 1:
                raise ValueError("expected NAME = TYPE OPERATION(OPERANDS), ATTRIBUTES")
            collective = _parse(bare, plain, name.end(), looks[0], results, (replicas, partitions))
        except ValueError as error:
            raise InputError(f"a collective that cannot be parsed ({error}): {line}") from error
        if collective is not None:
            found.append(collective)
    return found


def crossing(found: Iterable[Collective], mesh: Mesh, axis: str) -> list[Collective]:
    """The collectives through which devices of different places on a mesh axis exchange data.

    Args:
      found: of `collectives`, of a program over all devices of the mesh in the mesh's order.
      mesh: that the program was compiled for.
      axis: of the mesh, such as "client".

    Raises:
      InputError: the mesh has no such axis, or fewer devices than a collective names.
    """
    if axis not in mesh.axis_names:
        raise InputError(f"axis is {axis!r}: must be one of {', '.join(mesh.axis_names)}")
    places = np.indices(mesh.devices.shape)[mesh.axis_names.index(axis)].reshape(-1)
    crossed = []
    for collective in found:
        last = max((max(group, default=0) for group in collective.groups), default=0)
        if last >= places.size:
            raise InputError(
                f"{collective.op} names device {last}, the mesh has {places.size} devices: "
                "give the mesh that the program was compiled for"
            )
        if any(len({places[device] for device in group}) > 1 for group in collective.groups):
            crossed.append(collective)
    return crossed


def cost(compiled: Any) -> Cost:
    """What one device computes and holds, by XLA's own count, of a compiled program.

    Raises:
      InputError: the backend does not report it.
    """
    counts, memory = compiled.cost_analysis(), compiled.memory_analysis()
    if not counts or "bytes accessed" not in counts or memory is None:
        raise InputError("the backend reports neither cost nor memory of a compiled program")
    return Cost(
        flops=counts.get("flops", 0.0),  # XLA leaves it out where there are none
        bytes_accessed=counts["bytes accessed"],
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
    )


def _count(header: str, name: str) -> int:
    match = re.search(rf"\b{name}=(\d+)", header)
    return int(match[1]) if match else 1


def _parse(
    bare: str,
    plain: str,
    start: int,
    looks: re.Match[str],
    results: dict[str, str],
    devices: tuple[int, int],
) -> Collective | None:
    """The collective of a line whose type begins at `start`; None for the end of one."""
    result, end = _type(bare, start)
    if bare[end : looks.start()].strip() or looks.start() == end:
        raise ValueError("more than a type before the operation")
    op = looks[1]
    close = _closing(bare, looks.end() - 1)
    attributes = bare[close + 1 :]
    if op in ("send", "recv"):
        # Pairs may be quoted, so they are looked for where quotations still stand.
        pairs = re.search(r"_xla_send_recv_source_target_pairs=\"?(\{[\d{}, ]*\})", plain)
        if op == "recv" or "is_host_transfer=true" in attributes:
            return None
        if pairs is None:
            raise ValueError("a send without _xla_send_recv_source_target_pairs")
        groups = groups_of_pairs(pairs[1], devices)
        if isinstance(result, list):
            result = result[0] if result else []  # the rest is context
    else:
        op, part = _base(op)
        if part in ("done", "update"):
            return None
        if part == "start" and op != "all-reduce" and isinstance(result, list):
            if len(result) < 2:
                raise ValueError("the start of an operation without results")
            result = result[1]  # of (operands, results, context...)
        groups = groups_of(op, attributes, devices)
    operands = [_operand(text, results) for text in _split(bare[looks.end() : close])]
    outputs, inputs = _leaves(result), [leaf for tree in operands for leaf in _leaves(tree)]
    num_bytes = max(sum(map(_bytes, outputs)), sum(map(_bytes, inputs)))
    return Collective(op, (*outputs, *inputs), groups, num_bytes)


def _base(op: str) -> tuple[str, str]:
    """The collective that an operation is a part of, and which part: "" for all of it."""
    base, _, part = op.rpartition("-")
    if part not in ("start", "update", "done"):
        base, part = op, ""
    if base not in _COLLECTIVES:
        raise ValueError(f"unknown operation {op}")
    return base, part


# Types.


def _type(text: str, start: int) -> tuple[Type, int]:
    """The type that begins at `start`, and where it ends."""
    if text[start : start + 1] != "(":
        match = _ARRAY.match(text, start)
        if match is None:
            raise ValueError(f"no type at {text[start : start + 20]!r}")
        lengths = [int(n.strip().removeprefix("<=")) for n in match[2].split(",") if n.strip()]
        return (match[1], tuple(lengths)), match.end()
    parts: list[Type] = []
    start += 1
    while text[start : start + 1] != ")":
        part, start = _type(text, start)
        parts.append(part)
        start = re.compile(r",? *").match(text, start).end()  # type: ignore[union-attr]
    return parts, start + 1


def _operand(text: str, results: dict[str, str]) -> Type:
    """The type of an operand, which is given with it or where it is made."""
    if re.match(r"\(|[a-z]\w*\[", text):
        return _type(text, 0)[0]
    made = results.get(text.removeprefix("%"))
    if made is None:
        raise ValueError(f"no operand {text!r} above it")
    return _type(made, 0)[0]


def _leaves(tree: Type) -> list[Shape]:
    if isinstance(tree, list):
        return [leaf for part in tree for leaf in _leaves(part)]
    return [] if tree[0] == "token" else [tree]


def _bytes(shape: Shape) -> int:
    dtype, lengths = shape
    bits = re.match(r"[a-z]+(\d+)", "pred8" if dtype == "pred" else dtype)
    if bits is None:
        raise ValueError(f"unknown dtype {dtype}")
    return -(-math.prod(lengths) * int(bits[1]) // 8)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if not depth:
            return i
    raise ValueError("an open parenthesis")


def _split(text: str) -> list[str]:
    """The parts between commas that no bracket encloses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]
