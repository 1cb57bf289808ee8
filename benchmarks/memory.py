"""What a train step of BERT-base and of ViT-B/16 holds on each device, by XLA's own account.

    python benchmarks/memory.py
    python benchmarks/memory.py --platform tpu      # with pip install 'jax[tpu]'; needs no TPU

Programs are compiled from shapes and not run, for 1, 8 and 64 devices: virtual CPU devices, or with
`--platform tpu` chips of a TPU v5e slice, for which libtpu compiles on any machine. The batch grows
with the devices. Variants, each by the configuration that is named:

    whole       parameters and the optimizer's state whole on every device
    sharded     execution.shard_state: cut along the devices
    remat       sharded, and encoder.remat: activations computed again in the backward pass
    accumulate  sharded, and optimizer.accumulate 4: four steps of a quarter of the batch per update

MiB per device: "held" are parameters, optimizer state and data; "between" is what the step needs
beside them at its worst moment. Before it orders the operations, XLA for CPU drops the barriers
that keep what remat computes again apart from the forward pass, and remat saves next to nothing.
Here it is told to keep them; a program that runs on a CPU lacks them.
"""

import argparse
import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import from_shapes
import jax
from jax.sharding import Mesh
from tqdm import tqdm

from instahide_jax import InstaHide, TextHide, image_step
from instahide_jax.compiled import Cost, cost
from instahide_jax.encoders import Bert, ViT
from instahide_jax.encoders.base import EncoderConfig, make_model
from instahide_jax.optimizers import AdamW
from instahide_jax.parallel import make_mesh

LENGTH, SIDE, ACCUMULATE = 128, 224, 4
TEXTS = TextHide.intra(4, num_masks=256, num_classes=2)
IMAGES = InstaHide.inside(4, num_classes=1000)
ENCODERS: dict[str, EncoderConfig] = {
    "BERT-base": Bert(vocab_size=28_996, dtype="bfloat16"),
    "ViT-B/16": replace(ViT.base(), dtype="bfloat16"),
}
VARIANTS = ("whole", "sharded", "remat", "accumulate")
KEEP_BARRIERS = "--xla_disable_hlo_passes=cse_barrier_expander"
SLICES = {1: "v5e:1x1", 8: "v5e:2x4", 64: "v5e:8x8"}


def devices_of(kind: str, count: int) -> Sequence[jax.Device]:
    """Devices to compile for."""
    if kind == "cpu":
        return jax.devices()[:count]
    from jax.experimental.topologies import get_topology_desc

    only = {"chips_per_host_bounds": (1, 1, 1)} if count == 1 else {}
    return get_topology_desc(platform="tpu", topology_name=SLICES[count], **only).devices


def compile_step(name: str, variant: str, mesh: Mesh, per_device: int) -> Any:
    """The train step of an encoder in one of the variants."""
    encoder, optimizer = ENCODERS[name], AdamW()
    if variant == "remat":
        encoder = replace(encoder, remat=True)
    if variant == "accumulate":
        optimizer, per_device = replace(optimizer, accumulate=ACCUMULATE), per_device // ACCUMULATE
    batch, shard = per_device * mesh.size, variant != "whole"
    if isinstance(encoder, Bert):
        return from_shapes.text_step_of(
            TEXTS, encoder, optimizer, LENGTH, 2 * batch, mesh, batch, shard
        )
    # Partners of a device's own rows: what is held does not depend on other devices' images.
    config = from_shapes.images_config(
        IMAGES, batch, encoder, partners="batch", partner_group=per_device
    )
    take = image_step.make_take(config, IMAGES, mesh)
    private = from_shapes.streamed_images(mesh, SIDE, batch)
    model = make_model(encoder, (SIDE, SIDE, 3), 1000)
    return from_shapes.train_step(take, IMAGES, model, optimizer, mesh, private, shard=shard)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--platform", choices=("cpu", "tpu"), default="cpu")
    parser.add_argument("--devices", type=int, nargs="+", choices=tuple(SLICES), default=[1, 8, 64])
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--per-device", type=int, default=32, help="examples of a step and device")
    given = parser.parse_args()
    if given.platform == "cpu":
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {KEEP_BARRIERS}"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(given.devices))
    kind = "virtual CPU devices" if given.platform == "cpu" else "TPU v5e"
    print(
        f"{kind}, jax {jax.__version__} on {platform.machine()}; {given.per_device} examples per "
        f"device and step; AdamW; computed in bfloat16, parameters in float32"
    )
    print("| | devices | variant | held | between | together |")
    print("|---|---|---|---|---|---|")
    cases = [(n, d, v) for n in given.encoders for d in given.devices for v in given.variants]
    for name, count, variant in tqdm(cases, "compile"):
        if count == 1 and variant == "sharded":
            continue  # there is nothing to cut
        mesh = make_mesh(devices=devices_of(given.platform, count))
        found: Cost = cost(compile_step(name, variant, mesh, given.per_device))
        parts = (found.argument_bytes, found.temp_bytes, found.peak_bytes)
        shown = " | ".join(f"{num_bytes / 2**20:,.0f}" for num_bytes in parts)
        tqdm.write(f"| {name} | {count} | {variant} | {shown} |")


if __name__ == "__main__":
    main()
