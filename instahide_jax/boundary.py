"""The boundary between clients, checked on the program that runs.

The train step leaves it to XLA to sum gradients over devices. XLA may choose to move other arrays
too, and has done so: with sharded parameters it gathered the activations of all clients in one
place. The step's source forbids that now; whether it held is read from every compiled step before
it runs.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from instahide_jax.compiled import collectives, crossing
from instahide_jax.errors import InputError

Tree = Any
# Operations that give sums over devices, in which no client's part stands by itself.
_SUMS = ("all-reduce", "reduce-scatter")


def check_boundary(program: Any, mesh: Mesh, state: Tree, length: int | None = None) -> None:
    """Refuse a compiled step that moves more between clients than sums of what is trained.

    Allowed are sums over devices of arrays that have as many numbers as a parameter, a running
    statistic or an entry of the optimizer's state, a shard of one, or its first rows where a text
    of `length` uses no more (positions); and of single numbers (loss, accuracy, norms). Images,
    labels, tokens and features differ from all of these in size, unless by chance. What the sums
    tell is another matter, see docs/threat_model.md.

    Args:
      program: a compiled function (`jax.jit(f).lower(...).compile()`).
      mesh: of `parallel.make_mesh`.
      state: pytree of arrays or `jax.ShapeDtypeStruct`, that of training.
      length: compiled length of the examples, of texts.

    Raises:
      InputError: naming operation and shape.
    """
    leaves = jax.tree.leaves(state)
    whole = {leaf.size for leaf in leaves}
    used = {
        leaf.size // axis * length
        for leaf in leaves
        for axis in leaf.shape
        if length is not None and axis > length
    }
    allowed = {1} | whole | used | {size // mesh.shape["data"] for size in whole | used}
    for collective in crossing(collectives(program), mesh, "client"):
        for dtype, shape in collective.shapes:
            if collective.op not in _SUMS or math.prod(shape) not in allowed:
                raise InputError(
                    f"the compiled step has an {collective.op} of {dtype}{list(shape)} between "
                    "clients, which may show private data; nothing was run: use one device per "
                    "client, or execution.shard_state False"
                )


def within_boundary(step: Any, mesh: Mesh) -> Callable[..., Any]:
    """A train step that is compiled, checked by `check_boundary`, and then run.

    Args:
      step: jitted, of (state, keys, private, public, length) with a static length.
      mesh: of `parallel.make_mesh`.
    """
    programs: dict[int | None, Any] = {}

    def checked(state: Tree, keys: Any, private: Tree, public: Tree, length: int | None) -> Any:
        if length not in programs:
            program = step.lower(state, keys, private, public, length).compile()
            check_boundary(program, mesh, state, length)
            programs[length] = program
        return programs[length](state, keys, private, public)

    return checked
