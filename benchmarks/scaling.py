"""What one device computes and exchanges per step, on 1 to 8 devices, by XLA's own count.

    python benchmarks/scaling.py [hide|steps|partners ...]

Programs are compiled for virtual CPU devices and not run; nothing printed depends on the load of
the machine. "strong" divides one batch among the devices, "weak" gives every device the same. Per
device and step:

    MFLOP, MB touched   operations, and bytes that they read and write. The body of a loop counts
                        once, and taking rows from a set counts as reading the whole set
    to perfect          of both, the ratio to what it would be if it were divided evenly
    kB in gathers ...   exchanged with other devices: bytes of operands or results of these
                        operations, whichever are larger

hide: images of 32x32x3 with partners from the batch (streamed) or from the set in memory; features
of 384 numbers, forward and backward. For comparison `encrypt` under a plain `jit`, without the
project's own division of work: with a batch that lies in parts on the devices, and with one that
lies whole on all of them. steps: whole train steps, ResNet-18 and a BERT of MiniLM's size.
partners: images of 224x224x3, with partners drawn among the rows of one device, of several, or of
all.

Ends with an error if hiding does more than 1.2 times its share of operations on any number of
devices.
"""

import argparse
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import from_shapes
import jax
import numpy as np
from jax.sharding import Mesh

from instahide_jax import InstaHide, TextHide, encrypt, secret_key
from instahide_jax.compiled import collectives, cost
from instahide_jax.encoders import Bert
from instahide_jax.optimizers import AdamW
from instahide_jax.parallel import replicated, sharded

DEVICES = (1, 2, 4, 8)
BATCH, PER_DEVICE = 1_024, 128
STEP_BATCH, STEP_PER_DEVICE = 256, 32
IMAGES = InstaHide.inside(4, num_classes=10)
TEXTS = TextHide.intra(4, num_masks=16, num_classes=2)
MINILM = Bert(hidden=384, layers=6, heads=12, intermediate=1536, output="mean")
SET = 10_000  # images in memory
SIDE, SCOPE_BATCHES = 224, (1_024, 4_096)
LIMIT = 1.2

PARTS = ("hide", "steps", "partners")
KINDS = ("all-gather", "all-reduce", "reduce-scatter")
Program = Callable[[Mesh, int], Any]


class Measured(NamedTuple):
    """What one device does in a step.

    Attributes:
      flops: operations.
      accessed: bytes read and written.
      exchanged: bytes, by the kind of the collective.
    """

    flops: float
    accessed: float
    exchanged: dict[str, int]


def measure(program: Any) -> Measured:
    counts = cost(program)
    exchanged: dict[str, int] = {}
    for each in collectives(program):
        exchanged[each.op] = exchanged.get(each.op, 0) + each.num_bytes
    return Measured(counts.flops, counts.bytes_accessed, exchanged)


def from_batch(mesh: Mesh, batch: int) -> Any:
    config = from_shapes.images_config(IMAGES, batch, partners="batch")
    return from_shapes.hidden_images(config, mesh, from_shapes.streamed_images(mesh, 32, batch))


def from_dataset(mesh: Mesh, batch: int) -> Any:
    private = from_shapes.images_in_memory(mesh, 32, SET, batch, IMAGES.num_partners)
    return from_shapes.hidden_images(from_shapes.images_config(IMAGES, batch), mesh, private)


def features(mesh: Mesh, batch: int) -> Any:
    return from_shapes.hidden_features(TEXTS, MINILM.hidden, mesh, batch)


def plain_jit(mesh: Mesh, batch: int, whole: bool = False) -> Any:
    """`encrypt` as anyone would jit it; what XLA makes of it is up to XLA."""
    where = replicated(mesh) if whole else sharded(mesh)
    images = from_shapes.abstract((batch, 32, 32, 3), np.uint8, where)
    labels = from_shapes.abstract((batch,), np.int32, where)
    key = jax.device_put(secret_key(), replicated(mesh))
    hide = jax.jit(partial(encrypt, scheme=IMAGES))
    return from_shapes.compiled(hide, key, {"image": images, "label": labels})


def resnet(mesh: Mesh, batch: int) -> Any:
    config = from_shapes.images_config(IMAGES, batch)
    return from_shapes.image_step_of(config, 32, SET, mesh)


def minilm(mesh: Mesh, batch: int) -> Any:
    return from_shapes.text_step_of(TEXTS, MINILM, AdamW(), 64, 1_000, mesh, batch)


HIDE: dict[str, Program] = {
    "images, batch": from_batch,
    "images, data set": from_dataset,
    "features, batch": features,
}
NAIVE: dict[str, Program] = {
    "plain jit, parts": plain_jit,
    "plain jit, whole": partial(plain_jit, whole=True),
}
STEPS: dict[str, Program] = {"ResNet-18": resnet, "BERT, MiniLM size": minilm}


def to_perfect(program: Program, devices: int, batch: int) -> float:
    """Operations of one device of several, to its share of what one alone would do."""
    flops = [measure(program(from_shapes.mesh_of(n), batch)).flops for n in (devices, 1)]
    return flops[0] * devices / flops[1]


def print_scaling(programs: dict[str, Program], batch: int, per_device: int) -> dict[str, float]:
    """A line per program, way of scaling and number of devices; the worst ratio of each program."""
    print(
        f"{'':18} {'':6} {'devices':>7} {'batch':>6} {'MFLOP':>11} {'to perfect':>10} "
        f"{'MB touched':>10} {'to perfect':>10}",
        *(f"{f'kB in {kind}s':>22}" for kind in KINDS),
        f"{'others':>7}",
    )
    worst = dict[str, float]()
    for name, program in programs.items():
        seen: dict[tuple[int, int], Measured] = {}
        for way in ("strong", "weak"):
            for devices in DEVICES:
                size = batch if way == "strong" else per_device * devices
                if (devices, size) not in seen:
                    seen[devices, size] = measure(program(from_shapes.mesh_of(devices), size))
                one = seen[1, batch if way == "strong" else per_device]
                share = devices if way == "strong" else 1
                here = seen[devices, size]
                ratios = here.flops * share / one.flops, here.accessed * share / one.accessed
                worst[name] = max(worst.get(name, 0.0), ratios[0])
                by_kind = [here.exchanged.get(kind, 0) for kind in KINDS]
                others = sum(here.exchanged.values()) - sum(by_kind)
                print(
                    f"{name:18} {way:6} {devices:>7} {size:>6,} {here.flops / 1e6:>11,.2f} "
                    f"{ratios[0]:>10.3f} {here.accessed / 1e6:>10,.1f} {ratios[1]:>10.3f}",
                    *(f"{num_bytes / 1e3:>22,.1f}" for num_bytes in by_kind),
                    f"{others / 1e3:>7,.1f}",
                    flush=True,
                )
    return worst


def print_scopes(devices: int) -> None:
    """What drawing partners among more rows costs."""
    print(
        f"{'partners among':20} {'batch':>6} {'images':>7} {'MB gathered':>12} "
        f"{'of it received':>14} {'MB of temporaries':>18}"
    )
    mesh = from_shapes.mesh_of(devices)
    for batch in SCOPE_BATCHES:
        private = from_shapes.streamed_images(mesh, SIDE, batch)
        for span in DEVICES:
            rows = batch // devices * span
            config = from_shapes.images_config(
                IMAGES, batch, partners="batch", partner_group=None if span == devices else rows
            )
            program = from_shapes.hidden_images(config, mesh, private)
            gathered = received = 0.0
            for each in collectives(program):
                gathered += each.num_bytes
                received += each.num_bytes * (1 - 1 / max(map(len, each.groups)))
            name = "all rows" if span == devices else f"rows of {span} device{'s' * (span > 1)}"
            print(
                f"{name:20} {batch:>6,} {rows:>7,} {gathered / 1e6:>12,.1f} "
                f"{received / 1e6:>14,.1f} {cost(program).temp_bytes / 1e6:>18,.1f}",
                flush=True,
            )


def parse(argv: Sequence[str]) -> list[str]:
    """The parts to print; all where none is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # Of no words at all argparse takes the default for one of the choices.
    parser.add_argument("parts", nargs="*", choices=("all", *PARTS), default="all", metavar="PART")
    given = parser.parse_args(argv).parts
    return list(PARTS) if "all" in given else given


def main() -> None:
    parts = parse(sys.argv[1:])
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    print(f"{platform.machine()}, {max(DEVICES)} virtual CPU devices, jax {jax.__version__}")
    too_much = {}
    if "hide" in parts:
        print(f"\nHiding alone: {IMAGES.k} images or features mixed")
        worst = print_scaling(HIDE, BATCH, PER_DEVICE)
        print(f"\nFor comparison, without the project's own division of work; {LIMIT} is no limit")
        print_scaling(NAIVE, BATCH, PER_DEVICE)
        too_much = {name: ratio for name, ratio in worst.items() if ratio > LIMIT}
    if "steps" in parts:
        print("\nWhole train steps, parameters whole on every device")
        print_scaling(STEPS, STEP_BATCH, STEP_PER_DEVICE)
    if "partners" in parts:
        print(f"\nHiding {SIDE}x{SIDE}x3 on {max(DEVICES)} devices, per device and step")
        print_scopes(max(DEVICES))
    for name, ratio in too_much.items():
        print(f"error: hiding {name} does {ratio:.2f} times its share, more than {LIMIT}")
    sys.exit(bool(too_much))


if __name__ == "__main__":
    main()
