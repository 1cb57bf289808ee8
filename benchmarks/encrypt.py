"""Speed and memory of `encrypt`, beside a plain NumPy version of the published algorithm.

    python benchmarks/encrypt.py

Each case runs in a process of its own, in which three things alternate: a pass of `encrypt` over a
set in memory (partners drawn anew for the pass, ChaCha20 keys per row, uint8 in, float32 out), the
same amount of work by `published`, and a plain copy of as many bytes as `encrypt` must read and
write (k + 4 bytes per value). Printed are medians over the repetitions, and the growth of the
process's peak memory during each.
"""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instahide_jax import InstaHide, SecretKey, encrypt, secret_key

# name: (scheme, side, images in the set, batch of encrypt, batch of the NumPy version)
CASES = {
    "inside k=4, 32x32x3": (InstaHide.inside(4, num_classes=10), 32, 50_000, 1_024, 128),
    "cross k=6, 32x32x3": (InstaHide.cross(6, num_classes=10), 32, 50_000, 1_024, 128),
    "inside k=4, 224x224x3": (InstaHide.inside(4, num_classes=10), 224, 1_000, 32, 32),
    "cross k=6, 224x224x3": (InstaHide.cross(6, num_classes=10), 224, 1_000, 32, 32),
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
        mass = coefficients[:, : scheme.num_private].sum(axis=1)
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
            source = images if i < scheme.num_private else public
            weight = weights[rows, i]
            mixed = mixed + weight[:, None, None, None] * source[order[rows]]
            if i < scheme.num_private:
                label = label + weight[:, None] * labels[order[rows]]
        mixed *= (rng.integers(0, 2, mixed.shape) * 2 - 1).astype(np.float32)


def hidden_pass(
    scheme: InstaHide, batch: int, images: jax.Array, labels: jax.Array, public: jax.Array
) -> Callable[[SecretKey], None]:
    """One pass of `encrypt` over all images but the last part of a batch, as a set is hidden."""
    size = len(images) // batch * batch
    draw = jax.jit(partial(scheme.pass_partners, num_candidates=len(images)))

    @jax.jit
    def hide(key: SecretKey, start: jax.Array, partners: jax.Array, pools: Any) -> Any:
        images, labels, public = pools
        rows = start + jnp.arange(batch)
        return encrypt(
            key,
            {"image": images[rows], "label": labels[rows]},
            public if scheme.num_public else None,
            scheme=scheme,
            rows=rows,
            private_pool={"image": images, "label": labels},
            partners=partners[rows],
        )

    def run(key: SecretKey) -> None:
        partners = draw(key)
        for start in range(0, size, batch):
            jax.block_until_ready(hide(key, np.int32(start), partners, (images, labels, public)))

    return run


def peak_memory() -> float:
    """Peak resident memory of this process so far, MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("no VmHWM in /proc/self/status; this benchmark needs Linux")


def forget_peak() -> None:
    """Let the peak start again from the present use."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(name: str) -> dict[str, Any]:
    """All three for one case."""
    scheme, side, size, batch, numpy_batch = CASES[name]
    rng = np.random.default_rng(SEED)
    images = rng.integers(0, 256, (size, side, side, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, size)
    values = images[0].size
    chunk = np.zeros((scheme.k + 4) * values * batch // 2, np.uint8)
    target = np.ones_like(chunk)
    on_device = (jnp.asarray(images), jnp.asarray(labels), jnp.asarray(images[::-1]))
    run = hidden_pass(scheme, batch, *on_device)
    run(secret_key())  # compiles

    def timed(work: Callable[[], Any], images_done: int) -> tuple[float, float]:
        forget_peak()
        before, start = peak_memory(), time.perf_counter()
        work()
        return images_done / (time.perf_counter() - start), peak_memory() - before

    def naive() -> None:
        # Standardised float32 copies of the pools, as the published code keeps them.
        pool = (images.astype(np.float32) / 255 - 0.5) / 0.5
        one_hot = np.eye(10, dtype=np.float32)[labels]
        start = time.perf_counter()
        published(rng, pool, one_hot, pool[::-1], scheme, numpy_batch)
        naive_times.append(size / (time.perf_counter() - start))

    naive_times: list[float] = []
    hidden, naives, copies = [], [], []
    for _ in range(REPETITIONS):
        hidden.append(timed(partial(run, secret_key()), size // batch * batch))
        naives.append(timed(naive, size))
        copies.append(timed(partial(np.copyto, target, chunk), batch))
    median = {
        "encrypt": float(np.median([h[0] for h in hidden])),
        "numpy": float(np.median(naive_times)),
        "copy": float(np.median([c[0] for c in copies])),
    }
    return median | {
        "data_mb": images.nbytes / 2**20,
        "encrypt_mb": max(h[1] for h in hidden),
        "numpy_mb": max(n[1] for n in naives),
        "ratio": float(np.median([h[0] / n for h, n in zip(hidden, naive_times, strict=True)])),
    }


def main() -> None:
    if len(sys.argv) == 2:
        print(json.dumps(measure(sys.argv[1])))
        return
    device = jax.devices()[0]
    print(f"{platform.machine()}, {device.device_kind}, jax {jax.__version__}, seed {SEED}")
    print(
        f"{'':22} {'encrypt':>10} {'NumPy':>9} {'ratio':>6} {'copy':>10} {'of copy':>8}"
        f" {'set':>7} {'encrypt +':>10} {'NumPy +':>9}"
    )
    units = ("images/s", "images/s", "", "images/s", "", "MB", "MB", "MB")
    widths = (10, 9, 6, 10, 8, 7, 10, 9)
    print(" " * 22, *(f"{u:>{w}}" for u, w in zip(units, widths, strict=True)))
    for name in CASES:
        output = subprocess.run(
            [sys.executable, __file__, name], check=True, capture_output=True, text=True
        ).stdout
        m = json.loads(output.splitlines()[-1])
        print(
            f"{name:22} {m['encrypt']:>10,.0f} {m['numpy']:>9,.0f} {m['ratio']:>6.1f}"
            f" {m['copy']:>10,.0f} {m['encrypt'] / m['copy']:>8.0%} {m['data_mb']:>7.0f}"
            f" {m['encrypt_mb']:>10.0f} {m['numpy_mb']:>9.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
