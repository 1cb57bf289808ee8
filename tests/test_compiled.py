"""What compiled programs exchange, compute and hold: real ones, and all spellings of their text."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from instahide_jax.compiled import Collective, collectives, cost, crossing
from instahide_jax.errors import InputError

BOTH = ("client", "data")
ALL = (tuple(range(8)),)
ROWS = ((0, 1, 2, 3), (4, 5, 6, 7))  # the devices of one client
COLUMNS = ((0, 4), (1, 5), (2, 6), (3, 7))
HEADER = "HloModule m, is_scheduled=true, num_partitions=8\n"


def mesh() -> Mesh:
    return jax.make_mesh((2, 4), BOTH, (AxisType.Auto,) * 2)


def compiled(function: Callable[..., Any], *shape: int) -> Any:
    """A function of each device's part of an array whose first axis is spread over all."""
    mapped = jax.shard_map(
        function, mesh=mesh(), in_specs=P(BOTH), out_specs=P(BOTH), check_vma=False
    )
    return jax.jit(mapped).lower(jnp.ones(shape)).compile()


def summed(axis: Any) -> Callable[..., Any]:
    return lambda x: jax.lax.psum(x, axis)


PROGRAMS = {
    "psum of a client": (summed("data"), "all-reduce", ROWS, 64, False),
    "psum of clients": (summed("client"), "all-reduce", COLUMNS, 64, True),
    "psum of all": (summed(BOTH), "all-reduce", ALL, 64, True),
    "pmax in a branch": (
        lambda x: jax.lax.cond(x[0, 0] > 0, lambda y: jax.lax.pmax(y, "client"), jnp.sin, x),
        *("all-reduce", COLUMNS, 64, True),
    ),
    "psum in a loop": (
        lambda x: jax.lax.fori_loop(0, 5, lambda _, y: jax.lax.psum(y, "data") / 4, x),
        *("all-reduce", ROWS, 64, False),
    ),
    "all_gather of a client": (
        lambda x: jax.lax.all_gather(x, "data"),
        *("all-gather", ROWS, 4 * 64, False),
    ),
    "all_gather of clients": (
        lambda x: jax.lax.all_gather(x, "client"),
        *("all-gather", COLUMNS, 2 * 64, True),
    ),
    "all_gather of halves": (
        lambda x: jax.lax.all_gather(x, "data", axis_index_groups=[[0, 1], [2, 3]]),
        *("all-gather", ((0, 1), (2, 3), (4, 5), (6, 7)), 2 * 64, False),
    ),
    "psum_scatter": (
        lambda x: jax.lax.psum_scatter(x[0], "data", tiled=True),
        *("reduce-scatter", ROWS, 64, False),
    ),
    "all_to_all of a client": (
        lambda x: jax.lax.all_to_all(x[0], "data", 0, 0, tiled=True),
        *("all-to-all", ROWS, 64, False),
    ),
    "all_to_all of clients": (
        lambda x: jax.lax.all_to_all(x[0], "client", 0, 0, tiled=True),
        *("all-to-all", COLUMNS, 64, True),
    ),
    "ppermute of a client": (
        lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 3)]),
        *("collective-permute", ((0, 1, 3), (4, 5, 7)), 64, False),
    ),
    "ppermute of clients": (
        lambda x: jax.lax.ppermute(x, "client", [(0, 1), (1, 0)]),
        *("collective-permute", COLUMNS, 64, True),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_one_collective_of_a_program(name: str) -> None:
    function, op, groups, num_bytes, crosses = PROGRAMS[name]
    (found,) = collectives(compiled(function, 8, 16))
    assert found.op == op
    assert tuple(sorted(found.groups)) == groups
    assert found.num_bytes == num_bytes
    assert {dtype for dtype, _ in found.shapes} == {"f32"}
    elements = [math.prod(shape) for _, shape in found.shapes]
    assert max(sum(elements[: len(elements) // 2]), sum(elements[len(elements) // 2 :])) * 4 == (
        num_bytes
    )
    assert crossing([found], mesh(), "client") == [found] * crosses
    crosses_data = any(len({device % 4 for device in group}) > 1 for group in groups)
    assert crossing([found], mesh(), "data") == [found] * crosses_data


def test_collectives_come_in_the_order_of_the_program() -> None:
    def function(x: jax.Array) -> jax.Array:
        once = jax.lax.psum(x, "data")
        return jax.lax.all_gather(jnp.sin(once), "client")

    found = collectives(compiled(function, 8, 16))
    assert [c.op for c in found] == ["all-reduce", "all-gather"]
    assert crossing(found, mesh(), "client") == found[1:]
    assert not collectives(compiled(jnp.sin, 8, 16))


def test_a_sum_of_a_tree_holds_all_its_leaves() -> None:
    def function(x: jax.Array) -> Any:
        return jax.lax.psum({"x": x, "half": x[0, :4].astype(jnp.bfloat16)}, BOTH)

    found = collectives(compiled(function, 8, 16))
    shapes = {shape for c in found for shape in c.shapes}
    assert {math.prod(shape) for _, shape in shapes} == {16, 4}
    assert sum(c.num_bytes for c in found) in (16 * 4 + 4 * 2, 16 * 4 + 4 * 4)  # CPU may widen


@pytest.mark.parametrize(
    ("spec", "groups"),
    [
        (P(BOTH), ALL),
        (P("client"), COLUMNS),
        (P("data"), ROWS),
        (P(("data", "client")), ALL),
        (P(None, "data"), ROWS),
        (P("data", "client"), ALL),
    ],
)
@pytest.mark.parametrize("order", [range(8), [3, 1, 0, 2, 7, 6, 5, 4]])
def test_what_jit_inserts_for_sharded_arrays(spec: P, groups: Any, order: Any) -> None:
    """These programs spell their groups by meshes; positions are those of the mesh in use."""
    devices = np.array(jax.devices())[list(order)].reshape(2, 4)
    sharding = NamedSharding(Mesh(devices, BOTH), spec)
    total = jax.jit(jnp.sum, in_shardings=sharding).lower(jnp.ones((8, 16))).compile()
    found = collectives(total)
    assert found
    joined = {frozenset(group) for c in found for group in c.groups}
    if len(found) == 1:
        assert joined == {frozenset(group) for group in groups}
    crosses = any("client" in (part or ()) or part == "client" for part in spec)
    assert bool(crossing(found, sharding.mesh, "client")) == crosses


def test_resharding_is_seen() -> None:
    by_data, by_client = (NamedSharding(mesh(), P(axis)) for axis in ("data", "client"))
    move = jax.jit(lambda x: x * 2, in_shardings=by_data, out_shardings=by_client)
    found = collectives(move.lower(jnp.ones((8, 16))).compile())
    assert {c.op for c in found} == {"collective-permute", "all-gather"}
    assert crossing(found, mesh(), "client")


# Spellings.


def one(attributes: str, op: str = "all-reduce", header: str = HEADER) -> Collective:
    lines = f"""ENTRY %main (p: f32[4]) -> f32[4] {{
  %p = f32[4]{{0}} parameter(0)
  ROOT %x = f32[4]{{0}} {op}(%p), {attributes}, to_apply=%add, metadata={{op_name="psum"}}
}}"""
    (found,) = collectives(header + lines)
    return found


IDS = "use_global_device_ids=true"
SPELLINGS = {
    "{{0,1,2,3},{4,5,6,7}}": ROWS,
    "{{3,1},{7,5}}": ((1, 3), (5, 7)),
    "{}": ALL,
    "[2,4]<=[8]": ROWS,
    "[1,8]<=[8]": ALL,
    "[4,2]<=[2,4]T(1,0)": COLUMNS,
    "[4,2]<=[2,2,2]T(0,2,1)": ((0, 2), (1, 3), (4, 6), (5, 7)),
    "mesh['axis_0'=8,'axis_1'=1] {'axis_0'}": ALL,
    "mesh['axis_0'=8] {'axis_0'}": ALL,
    "mesh['client'=2,'data'=4] {'client'}": COLUMNS,
    "mesh['client'=2,'data'=4] {'data'}": ROWS,
    "mesh['client'=2,'data'=4] {'data','client'}": ALL,
    "mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}": ROWS,
    "mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}": COLUMNS,
    "mesh['a'=2,'b'=4], device_ids=(0,4,1,5,2,6,3,7) {'a'}": ((0, 2), (1, 3), (4, 6), (5, 7)),
    "mesh['a'=2,'b'=4] {'a','b':(1)2}": ((0, 2, 4, 6), (1, 3, 5, 7)),
    "mesh['a'=2,'b'=4] {'b':(2)2}": ((0, 1), (2, 3), (4, 5), (6, 7)),
    "mesh['a'=8] {'a':(1)2}": COLUMNS,
    "mesh['a'=8] {'a':(1)2,'a':(4)2}": ((0, 1, 4, 5), (2, 3, 6, 7)),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_groups(spelling: str) -> None:
    found = one(f"channel_id=1, replica_groups={spelling}, {IDS}")
    assert tuple(sorted(found.groups)) == SPELLINGS[spelling]
    assert found[:2] == ("all-reduce", (("f32", (4,)), ("f32", (4,))))
    assert found.num_bytes == 16


def test_what_the_numbers_of_groups_count() -> None:
    """Replicas or partitions, by the attributes beside them; positions count both."""
    two = "HloModule m, replica_count=2, num_partitions=4\n"
    replicas = "HloModule m, replica_count=8\n"
    assert one("replica_groups={{0,4},{1,5}}", header=replicas).groups == ((0, 4), (1, 5))
    assert one("replica_groups={}", header=replicas).groups == ALL
    assert one("replica_groups={{0,1}}", header=two).groups == COLUMNS
    assert one("channel_id=1, replica_groups={{0},{1}}", header=two).groups == ROWS
    assert one("channel_id=1, replica_groups={}", header=two).groups == ALL
    swapped = one("channel_id=1, replica_groups={{0,1},{2,3}}", "all-to-all", two)
    assert swapped.groups == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert one("channel_id=1, replica_groups={}", "all-to-all", two).groups == ROWS
    moved = one("channel_id=1, source_target_pairs={{0,1},{1,2}}", "collective-permute", two)
    assert moved.groups == ((0, 1, 2), (4, 5, 6))
    moved = one("source_target_pairs={{2,0}, {1,2}, {5,5}}", "collective-permute", replicas)
    assert moved.groups == ((0, 1, 2), (5,))
    assert one("source_target_pairs={}", "collective-permute", replicas).groups == ()


GROUPS = f"channel_id=1, replica_groups={{{{0,1,2,3}},{{4,5,6,7}}}}, {IDS}"
LINES = {
    # Asynchronous ones count where they start, by what they deliver.
    "  %a = (f32[4]{0}, f32[16]{0}) all-gather-start(%p), " + GROUPS: ("all-gather", [16, 4], 64),
    "  %a = (f32[4], f32[4], u32[], u32[]) collective-permute-start(%p), channel_id=1, "
    "source_target_pairs={{0,1}}": ("collective-permute", [4, 4], 16),
    "  %a = ((f32[4]{0}), f32[1]{0}) reduce-scatter-start(%p), " + GROUPS: (
        "reduce-scatter",
        [1, 4],
        16,
    ),
    "  %a = (f32[4]{0}, bf16[3,3]{1,0}) all-reduce-start(%p, bf16[3,3]{1,0} %q), " + GROUPS: (
        "all-reduce",
        [4, 9, 4, 9],
        34,
    ),
    # Layouts of TPUs, numbered elements, one byte a truth value, half a byte a number of 4 bits.
    "  %a = (f32[4]{0:T(8,128)S(1)}, /*index=1*/s4[5]{0:T(8)}, pred[2,0,3], pred[6]) "
    "ragged-all-to-all(%p, /*index=1*/%p), " + GROUPS: (
        "ragged-all-to-all",
        [4, 5, 0, 6, 4, 4],
        32,
    ),
    "  a = f8e4m3fn[<=70] collective-broadcast(p), " + GROUPS: (
        "collective-broadcast",
        [70, 4],
        70,
    ),
    "  %a = (f32[4], u32[], token[]) send(%p, %t), channel_id=1, frontend_attributes={"
    '_xla_send_recv_source_target_pairs="{{0,1}}"}': ("send", [4, 4], 16),
    '  %a = c64[2] all-reduce(%p), metadata={op_name="all-gather(x) \\" = send("}, ' + GROUPS: (
        "all-reduce",
        [2, 4],
        16,
    ),
}


@pytest.mark.parametrize("line", LINES)
def test_spellings_of_operations(line: str) -> None:
    op, elements, num_bytes = LINES[line]
    (found,) = collectives(
        f"{HEADER}{{\n  %p = f32[4] parameter(0)\n  %t = token[] after-all()\n{line}"
    )
    assert found.op == op
    assert [math.prod(shape) for _, shape in found.shapes] == elements
    assert found.num_bytes == num_bytes
    assert set(found.groups) <= {(0, 1), *ROWS}


@pytest.mark.parametrize(
    "line",
    [
        "  %a = f32[16] all-gather-done(%p)",
        "  %a = f32[1] reduce-scatter-done(%p)",
        "  %t = token[] after-all(%p)",
        "  %a = f32[4] call(%all-reduce.1), to_apply=%all-reduce",
        '  %a = f32[4] custom-call(%p), custom_call_target="all-reduce(", backend_config="send("',
        "  %a = (f32[4], token[]) recv(%t), frontend_attributes="
        "{_xla_send_recv_source_target_pairs={{0,1}}}",
        "  %a = (f32[4], u32[], token[]) send(%p, %t), channel_id=1, is_host_transfer=true",
        "%all-reduce-computation (x: f32[]) -> f32[] {",
        "  %a = f32[4] scatter(%p), to_apply=%all-gather",
    ],
)
def test_what_is_no_collective(line: str) -> None:
    assert collectives(f"{HEADER}  %p = f32[4] parameter(0)\n{line}") == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"  %a = f32[4] all-shuffle(%p), {GROUPS}", "unknown operation all-shuffle"),
        (f"  %a = f32[4] sparse-all-reduce(%p), {GROUPS}", "unknown operation sparse-all-reduce"),
        (f"  %a = f32[4] all-reduce-scatter(%p), {GROUPS}", "unknown operation"),
        ("  %a = f32[4] collective-permute(%p), channel_id=1", "no source_target_pairs"),
        ("  %a = f32[4] all-reduce(%p), channel_id=1", "no replica_groups"),
        ("  %a = f32[4] all-reduce(%p), replica_groups=@mesh.0", "unknown spelling"),
        ("  %a = f32[4] all-reduce(%p), replica_groups=[8]<=[8]", "cannot be parsed"),
        ("  %a = f32[4] all-reduce(%p), replica_groups=[3,3]<=[8]", "cannot be parsed"),
        ("  %a = f32[4] all-reduce(%p), replica_groups=mesh['a'=8] {'b'}", "spelling of a mesh"),
        ("  %a = f32[4] all-reduce(%p), replica_groups=mesh['a'=8] {'a',b}", "spelling of a mesh"),
        ("  %a = f32[4] all-reduce(%p), replica_groups=mesh['a'=8,4] {'a'}", "spelling of a mesh"),
        (
            "  %a = f32[4] all-reduce(%p), replica_groups=mesh['a'=2], device_ids=(0,8) {'a'}",
            "device_ids",
        ),
        (f"  %a = f32[4] all-reduce(%p), replica_groups={{{{0,8}}}}, {IDS}", "device beyond the 8"),
        (f"  %a = f32[4] all-reduce(%q), {GROUPS}", "no operand '%q'"),
        (f"  %a = f32[?] all-reduce(%p), {GROUPS}", "cannot be parsed"),
        (f"  %a = wide[4] all-reduce(%p), {GROUPS}", "unknown dtype wide"),
        (f"  %a = (f32[4] all-reduce(%p), {GROUPS}", "cannot be parsed"),
        (f"  %a = f32[4] all-reduce(%p, {GROUPS}", "open parenthesis"),
        (f"  all-reduce(%p), {GROUPS}", "expected NAME = TYPE"),
        (f"  %a = f32[4] 3 all-reduce(%p), {GROUPS}", "more than a type"),
        ("  %a = (f32[4], u32[], token[]) send(%p, %p), channel_id=1", "a send without"),
        (f"  %a = ((f32[4])) all-gather-start(%p), {GROUPS}", "without results"),
    ],
)
def test_what_cannot_be_parsed_is_refused(line: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        collectives(f"{HEADER}  %p = f32[4] parameter(0)\n{line}")


def test_operands_are_those_of_the_same_computation() -> None:
    text = "%f (p: f32[4]) -> f32[4] {\n  %p = f32[4] parameter(0)\n}\n%g (q: f32[1]) -> f32[1] {\n"
    with pytest.raises(InputError, match="no operand '%p'"):
        collectives(f"{HEADER}{text}  %a = f32[4] all-reduce(%p), {GROUPS}")
    with pytest.raises(InputError, match="no HloModule"):
        collectives(f"  %p = f32[4] parameter(0)\n  %a = f32[4] all-reduce(%p), {GROUPS}")


def test_crossing_checks_the_mesh() -> None:
    found = collectives(compiled(summed(BOTH), 8, 16))
    with pytest.raises(InputError, match="axis is 'clients': must be one of client, data"):
        crossing(found, mesh(), "clients")
    half = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), BOTH)
    with pytest.raises(InputError, match="all-reduce names device 7, the mesh has 4 devices"):
        crossing(found, half, "client")


# Cost.


def test_cost_of_a_product_per_device() -> None:
    x, y = jnp.ones((64, 32)), jnp.ones((32, 16))
    one_device = cost(jax.jit(jnp.matmul).lower(x, y).compile())
    assert one_device.flops == 2 * 64 * 32 * 16
    assert one_device.argument_bytes == x.nbytes + y.nbytes
    assert one_device.output_bytes == 64 * 16 * 4
    assert one_device.bytes_accessed == one_device.argument_bytes + one_device.output_bytes
    assert one_device.alias_bytes == 0
    spread = NamedSharding(mesh(), P(BOTH))
    whole = NamedSharding(mesh(), P())
    eight = jax.jit(jnp.matmul, in_shardings=(spread, whole), out_shardings=spread)
    per_device = cost(eight.lower(x, y).compile())
    assert per_device.flops == one_device.flops / 8
    assert per_device.argument_bytes == x.nbytes // 8 + y.nbytes


def test_cost_counts_loops_once_and_copies_as_nothing() -> None:
    x = jnp.ones((64, 64))
    looped = jax.jit(lambda x: jax.lax.fori_loop(0, 100, lambda _, y: y @ x, x))
    assert 1 <= cost(looped.lower(x).compile()).flops / (2 * 64**3) < 1.01
    flipped = cost(jax.jit(jnp.flip).lower(x).compile())
    assert flipped.flops == 0
    assert flipped.bytes_accessed == 2 * x.nbytes


def test_memory_of_temporaries_and_donated_arguments() -> None:
    x = jnp.ones((64, 64))
    donated = cost(jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile())
    assert donated.alias_bytes == donated.peak_bytes == x.nbytes
    products = cost(jax.jit(lambda x: (x @ x) @ (x @ x.T)).lower(x).compile())
    assert products.temp_bytes >= 2 * x.nbytes
    assert products.peak_bytes == 2 * x.nbytes + products.temp_bytes


def test_a_backend_without_reports_is_refused() -> None:
    class Silent:
        def as_text(self) -> None: ...
        def cost_analysis(self) -> None: ...
        def memory_analysis(self) -> None: ...

    with pytest.raises(InputError, match="no text"):
        collectives(Silent())
    with pytest.raises(InputError, match="neither cost nor memory"):
        cost(Silent())
