"""Speed and memory of `encrypt`, beside a plain NumPy version of the published algorithm.

    python benchmarks/encrypt.py [--devices 1]
    python benchmarks/encrypt.py --command

Without --command, each case runs in a process of its own, in which five things alternate: a pass of
`encrypt` over a set in memory (partners drawn anew for the pass, ChaCha20 keys per row, uint8 in,
float32 out), the same pass without anything random (partners and coefficients given, no signs: what
mixing alone takes), the same amount of work by `published`, first on the whole set at once, as the
published code hides it (`generate_sample` loads the training set as one batch), then in batches
that stay in the cache, and a plain copy of as many bytes as `encrypt` must read and write (k + 4
bytes per value). Each is done twice in a row and the second time counts: the first pays for memory
that the one before has given back. Printed are medians over the repetitions, the median ratios of
neighbouring passes, and the growth of the process's peak memory during each.

With --command it measures the whole of `instahide encrypt`, from file to file: the peak memory of
its process beside the size of the set.

By default there is one CPU device per core, each with the set and its share of the batch, as JAX
uses the devices of any machine; XLA alone spreads only the largest parts of a program over cores.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from instahide_jax import InstaHide, SecretKey, encrypt, secret_key
from instahide_jax.mixing import mix
from instahide_jax.parallel import device_map, make_mesh, replicated

# name: (scheme, side, images in the set, batch of encrypt per device, batch of the NumPy version)
CASES = {
    "inside k=4, 32x32x3": (InstaHide.inside(4, num_classes=10), 32, 50_000, 1_024, 128),
    "cross k=6, 32x32x3": (InstaHide.cross(6, num_classes=10), 32, 50_000, 1_024, 128),
    "inside k=4, 224x224x3": (InstaHide.inside(4, num_classes=10), 224, 1_000, 32, 32),
    "cross k=6, 224x224x3": (InstaHide.cross(6, num_classes=10), 224, 1_000, 32, 32),
}
# name: (shape of an image, dtype, images, options)
SETS: dict[str, tuple[tuple[int, ...], str, int, tuple[str, ...]]] = {
    "a hundred images": ((28, 28, 1), "uint8", 100, ()),
    "grey 28x28, uint8": ((28, 28, 1), "uint8", 52_000, ()),
    "four times as many": ((28, 28, 1), "uint8", 208_000, ()),
    "--passes 4 of the former": ((28, 28, 1), "uint8", 52_000, ("--passes", "4")),
    "grey 28x28, float32": ((28, 28, 1), "float32", 52_000, ()),
    "colour 32x32, uint8": ((32, 32, 3), "uint8", 53_000, ()),
    "colour 224x224, uint8": ((224, 224, 3), "uint8", 1_080, ()),
    "the same, a folder of PNG": ((224, 224, 3), "folder", 1_080, ()),
}
REPETITIONS = 5
SEED = 0


def published(
    rng: np.random.Generator,
    images: np.ndarray,
    labels: np.ndarray,
    public: np.ndarray,
    scheme: InstaHide,
    batch: int,
) -> None:
    """The published algorithm in plain vectorised NumPy, on standardised float32 images.

    Whole-row redraw of coefficients until the bounds hold, one random permutation per slot, one
    random integer of NumPy's default type per sign.
    """
    count = size = len(images)
    coefficients = np.abs(rng.standard_normal((count, scheme.k)))
    coefficients /= coefficients.sum(axis=1, keepdims=True)
    while True:
        mass = coefficients[:, : scheme.private_slots].sum(axis=1)
        wrong = (coefficients.max(axis=1) > scheme.max_coefficient) | (
            mass < scheme.min_private_mass
        )
        if not wrong.any():
            break
        fresh = np.abs(rng.standard_normal((wrong.sum(), scheme.k)))
        coefficients[wrong] = fresh / fresh.sum(axis=1, keepdims=True)
    weights = coefficients.astype(np.float32)
    slots = [np.arange(size)] + [rng.permutation(size) for _ in range(scheme.k - 1)]
    for start in range(0, count, batch):
        rows = slice(start, min(start + batch, count))
        mixed: Any = 0.0
        label: Any = 0.0
        for i, order in enumerate(slots):
            source = images if i < scheme.private_slots else public
            weight = weights[rows, i]
            mixed = mixed + weight[:, None, None, None] * source[order[rows]]
            if i < scheme.private_slots:
                label = label + weight[:, None] * labels[order[rows]]
        mixed *= (rng.integers(0, 2, mixed.shape) * 2 - 1).astype(np.float32)


def hidden_pass(
    scheme: InstaHide, batch: int, images: np.ndarray, labels: np.ndarray, public: np.ndarray
) -> Callable[[SecretKey], None]:
    """One pass of `encrypt` over all images but the last part of a batch, as a set is hidden."""
    mesh = make_mesh()
    pools = jax.device_put((images, labels, public), replicated(mesh))
    draw = jax.jit(
        partial(scheme.pass_partners, num_candidates=len(images)), out_shardings=replicated(mesh)
    )

    def hide_rows(shared: Any, _: None, rows: jax.Array) -> Any:
        key, partners, (images, labels, public) = shared
        return encrypt(
            key,
            {"image": images[rows], "label": labels[rows]},
            public if scheme.num_public else None,
            scheme=scheme,
            rows=rows,
            private_pool={"image": images, "label": labels},
            partners=partners[rows],
        )

    @jax.jit
    def hide(key: SecretKey, start: jax.Array, partners: jax.Array, pools: Any) -> Any:
        return device_map(hide_rows, mesh)((key, partners, pools), None, start + jnp.arange(batch))

    def run(key: SecretKey) -> None:
        partners = draw(key)
        for start in range(0, len(images) // batch * batch, batch):
            jax.block_until_ready(hide(key, np.int32(start), partners, pools))

    return run


def mixing_pass(
    scheme: InstaHide, batch: int, images: np.ndarray, public: np.ndarray
) -> Callable[[], None]:
    """A pass that mixes and standardises and does nothing else: a bound for `hidden_pass`."""
    mesh = make_mesh()
    rng = np.random.default_rng(SEED)
    order = np.stack([rng.permutation(len(images)) for _ in range(scheme.k)], axis=1)
    coefficients = rng.dirichlet(np.ones(scheme.k), len(images)).astype(np.float32)
    given = (images, public, order.astype(np.int32), coefficients)
    on_devices = jax.device_put(given, replicated(mesh))

    def mix_rows(shared: Any, _: None, rows: jax.Array) -> jax.Array:
        images, public, order, coefficients = shared
        chosen = order[rows]
        sources = [images] * scheme.private_slots + [public] * scheme.num_public
        parts = [source[chosen[:, i]] for i, source in enumerate(sources)]
        return (mix(coefficients[rows], parts) - 127.5) * (1 / 127.5)

    @jax.jit
    def mixed(start: jax.Array, given: Any) -> jax.Array:
        return device_map(mix_rows, mesh)(given, None, start + jnp.arange(batch))

    def run() -> None:
        for start in range(0, len(images) // batch * batch, batch):
            jax.block_until_ready(mixed(np.int32(start), on_devices))

    return run


def peak_memory() -> float:
    """Peak resident memory of this process so far, MB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("no VmHWM in /proc/self/status; this benchmark needs Linux")


def forget_peak() -> None:
    """Let the peak start again from the present use."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def measure(name: str, devices: int) -> dict[str, Any]:
    """All five for one case."""
    jax.config.update("jax_num_cpu_devices", devices)
    scheme, side, size, batch_per_device, numpy_batch = CASES[name]
    batch = batch_per_device * devices
    rng = np.random.default_rng(SEED)
    images = rng.integers(0, 256, (size, side, side, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, size)
    chunk = np.zeros((scheme.k + 4) * images[0].size * batch // 2, np.uint8)
    target = np.ones_like(chunk)
    hide = hidden_pass(scheme, batch, images, labels, images[::-1])
    mix_only = mixing_pass(scheme, batch, images, images[::-1])
    hide(secret_key())  # compiles
    mix_only()
    # Standardised float32 pools, as the published code keeps them.
    pool = (images.astype(np.float32) / 255 - 0.5) / 0.5
    one_hot = np.eye(10, dtype=np.float32)[labels]
    naive = partial(published, rng, pool, one_hot, pool[::-1], scheme)
    works: dict[str, tuple[Callable[[], Any], int]] = {
        "encrypt": (lambda: hide(secret_key()), size // batch * batch),
        "mixing": (mix_only, size // batch * batch),
        "at once": (partial(naive, size), size),
        "in batches": (partial(naive, numpy_batch), size),
        "copy": (partial(np.copyto, target, chunk), batch),
    }
    rates: dict[str, list[float]] = {work: [] for work in works}
    growths: dict[str, list[float]] = {work: [] for work in works}
    for _ in range(REPETITIONS):
        for work, (function, images_done) in works.items():
            forget_peak()
            before = peak_memory()
            function()
            start = time.perf_counter()
            function()
            rates[work].append(images_done / (time.perf_counter() - start))
            growths[work].append(peak_memory() - before)
    return {
        "rate": {work: float(np.median(rates[work])) for work in works},
        "ratio": {
            work: float(np.median(np.divide(rates["encrypt"], rates[work]))) for work in works
        },
        "mixing_to_numpy": float(np.median(np.divide(rates["mixing"], rates["at once"]))),
        "set_mb": images.nbytes / 2**20,
        "encrypt_mb": max(growths["encrypt"]),
        "numpy_mb": max(growths["at once"]) + pool.nbytes / 2**20,
    }


def write_set(folder: Path, shape: tuple[int, ...], dtype: str, count: int) -> Path:
    """A .npz file, or a folder of class folders, of random images of ten classes."""
    rng = np.random.default_rng(SEED)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    labels = np.arange(count) % 10
    if dtype != "folder":
        pixels = images if dtype == "uint8" else (images / np.float32(255)).astype(dtype)
        np.savez(folder / "set.npz", image=pixels, label=labels)
        return folder / "set.npz"
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / "set" / str(label)
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / f"{number}.png", compress_level=0)
    return folder / "set"


def measure_command(name: str) -> tuple[float, float, float]:
    """MB that the set takes in memory, peak memory of `instahide encrypt`, seconds that it took."""
    shape, dtype, count, options = SETS[name]
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import encrypt\n"
    code += "from instahide_jax import cli; cli.run(sys.argv[1:]); print(encrypt.peak_memory())"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = write_set(folder, shape, dtype, count)
        arguments = [str(source), "--out", str(folder / "out.npz"), *options]
        arguments += ["--secret-file", str(folder / "secret")]
        start = time.perf_counter()
        output = subprocess.run(
            [sys.executable, "-c", code, "encrypt", *arguments],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        seconds = time.perf_counter() - start
    width = 4 if dtype == "float32" else 1
    return math.prod(shape) * count * width / 2**20, float(output.splitlines()[-1]), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--command", action="store_true", help="measure `instahide encrypt`")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case, arguments.devices)))
        return
    if arguments.command:
        print(f"{platform.machine()}, jax {jax.__version__}; MB")
        print(f"{'instahide encrypt':26} {'set':>6} {'peak':>6} {'peak - set':>10} {'seconds':>8}")
        for name in SETS:
            size, peak, seconds = measure_command(name)
            print(f"{name:26} {size:>6.0f} {peak:>6.0f} {peak - size:>10.0f} {seconds:>8.1f}")
        return
    print(
        f"{platform.machine()}, {arguments.devices} CPU device(s), jax {jax.__version__}, "
        f"seed {SEED}; images/s, in brackets the ratio of encrypt to it; MB"
    )
    print("in the column of mixing, the ratio of mixing alone to NumPy at once")
    columns = ("encrypt", "mixing alone", "NumPy at once", "NumPy, batches", "copy")
    print(f"{'':21}", *(f"{c:>15}" for c in columns), f"{'set':>5} {'encrypt +':>9} {'NumPy +':>8}")
    for name in CASES:
        command = [sys.executable, __file__, "--case", name, "--devices", str(arguments.devices)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        m = json.loads(output.splitlines()[-1])
        cells = [f"{m['rate']['encrypt']:>15,.0f}"]
        bound = f"({m['mixing_to_numpy']:.1f})"
        cells.append(f"{m['rate']['mixing']:>8,.0f} {bound:>6}")
        for work in ("at once", "in batches", "copy"):
            ratio = f"({m['ratio'][work]:.2g})" if work == "copy" else f"({m['ratio'][work]:.1f})"
            cells.append(f"{m['rate'][work]:>8,.0f} {ratio:>6}")
        memory = f"{m['set_mb']:>5.0f} {m['encrypt_mb']:>9.0f} {m['numpy_mb']:>8.0f}"
        print(f"{name:21}", *cells, memory, flush=True)


if __name__ == "__main__":
    main()
