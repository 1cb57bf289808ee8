"""Whether streamed images keep a device busy, and what they cost the host.

    python benchmarks/input.py [--batch-size 64] [--step-ms 50 100 200] [--seconds 3]
    python benchmarks/input.py --data imagenet2012 --data-dir DIR --split train

Without `--data` it prepares two data sets in a temporary folder: JPEG files of 500 x 375 pixels,
and PNG files of 32 x 32 pixels as in CIFAR. Their pixels are random fields whose amplitudes fall
with the frequency as those of photographs do, which makes the JPEG files about as large as those of
ImageNet (115 kB on average) and decoding, whose cost follows pixels and bytes, about as dear. All
files are read from the page cache: a disk or a network may be slower.

CPU time is of the whole process, all threads. Other programs on the machine change it little, while
rates and waiting times suffer from the cores that they take.
"""

import argparse
import contextlib
import io
import itertools
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import PIL.features
from PIL import Image

from instahide_jax.data.embedded import decode_image
from instahide_jax.data.prepare import prepare
from instahide_jax.data.streaming import READ_THREADS, prefetch_to_device, stream_batches
from instahide_jax.data.tfds_io import Split, open_split, read_example
from instahide_jax.errors import run_main
from instahide_jax.parallel import make_mesh, sharded

THREADS = sorted({1, 2, 4, 8, 16, READ_THREADS})
BATCH_SIZES = (32, 128, 256)
HOST_BATCHES = (256, 512, 1024)
STEPS = 12  # of a waiting time
SEED = 0


class Counted:
    """Records of a split, and which of them were read so far."""

    def __init__(self, source: Any):
        self._source, self.read = source, list[int]()

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)  # in one piece, whichever threads read
        return self._source[index]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)  # what messages about damage name


class Set(NamedTuple):
    """A split with a `Counted` source, what it is called, and the side its images are scaled to."""

    title: str
    split: Split
    resize: int


class Rate(NamedTuple):
    """Images delivered per second, CPU milliseconds per image read, cores in use on average."""

    images: float
    cpu_ms: float
    cores: float


class Parts(NamedTuple):
    """CPU milliseconds per image in one thread."""

    read: float
    decode: float
    resize: float
    whole: float  # `read_example`: the three and its checks


def field(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A colour image, uint8 [height, width, 3], with amplitudes of 1 / frequency."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    noise = np.fft.rfft2(rng.standard_normal((3, height, width))) / frequency
    light, *colours = np.fft.irfft2(noise, (height, width))
    channels = [light / light.std() * 55 + 120] * 3
    for index, colour in zip((0, 2), colours, strict=True):
        channels[index] = channels[index] + colour / colour.std() * 20
    return np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)


def write_set(folder: Path, name: str, count: int, height: int, width: int, kind: str) -> Split:
    """Prepare a data set of `count` such images, as `instahide prepare` does, and open it."""
    rng = np.random.default_rng(SEED)
    for index in range(-2, count):  # two for a test split, without which some would be held out
        part = folder / f"{name}-files" / ("train" if index >= 0 else "test") / f"class{index % 2}"
        part.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(field(rng, height, width))
        image.save(part / f"{index:05d}.{kind}", quality=90)
    with contextlib.redirect_stderr(io.StringIO()):
        prepare(name, folder / f"{name}-files", folder)
    return open_split(name, "train", str(folder))


def counted(title: str, split: Split, resize: int) -> Set:
    return Set(title, replace(split, source=Counted(split.source)), resize)


def cpu_ms(work: Callable[[int], Any], count: int, seconds: float) -> float:
    """CPU milliseconds of work(i), over all i and again until the time is up."""
    work(0)
    done, start, end = 0, time.process_time(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        work(done % count)
        done += 1
    return (time.process_time() - start) / done * 1e3


def parts(data: Set, seconds: float) -> Parts:
    """What reading, decoding and scaling an image cost in one thread."""
    split, channels = data.split, data.split.image_shape[2] or 3
    count = min(split.num_examples, 256)
    encoded = [split.source[i]["image"] for i in range(count)]
    decode = cpu_ms(lambda i: decode_image(encoded[i], channels, None), count, seconds)
    scaled = cpu_ms(lambda i: decode_image(encoded[i], channels, data.resize), count, seconds)
    return Parts(
        read=cpu_ms(lambda i: split.source[i], count, seconds),
        decode=decode,
        resize=scaled - decode,
        whole=cpu_ms(lambda i: read_example(split, i, data.resize), count, seconds),
    )


def rate(data: Set, batches: Iterator[Any], size: int, seconds: float) -> Rate:
    """Of the batches that arrive until the time is up, at least four; not of the first one.

    CPU time goes by images read: a few batches may be in work at either end.
    """
    next(batches)
    read, done, wall, cpu = data.split.source.read, 0, time.perf_counter(), time.process_time()
    before = len(read)
    while time.perf_counter() < wall + seconds or done < 4 * size:
        jax.block_until_ready(next(batches))
        done += size
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Rate(done / wall, cpu / (len(read) - before) * 1e3, cpu / wall)


def plain_loop(data: Set, size: int) -> Iterator[Any]:
    """Batches as a loop without threads makes them."""
    rng = np.random.default_rng(SEED)
    while True:
        rows = rng.permutation(data.split.num_examples)[:size]
        examples = [read_example(data.split, int(i), data.resize) for i in rows]
        images, labels = zip(*examples, strict=True)
        yield {"image": np.stack(images), "label": np.array(labels, np.int32)}


def stream(data: Set, size: int, threads: int = READ_THREADS) -> Iterator[Any]:
    return stream_batches(
        data.split, batch_size=size, seed=SEED, resize=data.resize, read_threads=threads
    )


def sleeping_step(milliseconds: float) -> Callable[[Any], None]:
    """A step that waits for its batch and then takes its time, but no core."""

    def step(batch: Any) -> None:
        jax.block_until_ready(batch)
        time.sleep(milliseconds / 1e3)

    return step


def computing_step(milliseconds: float, batch: Any) -> Callable[[Any], None]:
    """A jitted computation on the batch, as many matrix products as take so long."""

    @jax.jit
    def products(images: jax.Array, count: jax.Array) -> jax.Array:
        matrix = jnp.full((2048, 2048), 1e-4, jnp.bfloat16) + images.mean().astype(jnp.bfloat16)
        return jax.lax.fori_loop(0, count, lambda _, x: jnp.tanh(x @ matrix), matrix).sum()

    def took(count: int) -> float:
        start = time.perf_counter()
        products(batch["image"], np.int32(count)).block_until_ready()
        return time.perf_counter() - start

    took(1)  # compiles
    few, count = min(took(1) for _ in range(3)), 2
    while (many := min(took(count) for _ in range(3))) < max(milliseconds / 2e3, 2 * few):
        count *= 2
    count = max(1, round(count * milliseconds / 1e3 / many))
    return lambda batch: products(batch["image"], np.int32(count)).block_until_ready()


def waiting(step: Callable[[Any], None], batches: Iterator[Any]) -> tuple[float, float]:
    """Mean milliseconds of a step on a batch that is there, and of waiting for the next one."""
    batch = next(batches)
    alone = []
    for _ in range(5):
        start = time.perf_counter()
        step(batch)
        alone.append(time.perf_counter() - start)
    for batch in itertools.islice(batches, 4):  # what was read ahead meanwhile is used up
        step(batch)
    start = time.perf_counter()
    for batch in itertools.islice(batches, STEPS):
        step(batch)
    each, step_s = (time.perf_counter() - start) / STEPS, float(np.median(alone))
    return step_s * 1e3, max(each - step_s, 0.0) * 1e3


def commit() -> str:
    """The commit of this program's repository, with a mark if files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    done = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if done.returncode:
        return "no commit"
    changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    return f"commit {done.stdout.strip()}{' with changes' if changes.stdout else ''}"


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table; its rows as they come."""
    print(f"\n{title}")
    for first, *cells in itertools.chain([columns], rows):
        print(f"{first:22}", *(f"{cell:>13}" for cell in cells), flush=True)


def show_costs(data: Set, size: int, seconds: float) -> Rate:
    """Tables of one set: cost by parts, and rates by threads; the rate of the default number."""
    split, number = data.split, data.split.num_examples
    files = [split.source[i]["image"] for i in range(min(number, 256))]
    mean = np.mean([getattr(file, "nbytes", len(file)) for file in files]) / 1e3
    cost = parts(data, seconds / 2)
    print(f"\n== {data.title}: {number:,} files of {mean:.0f} kB, scaled to {data.resize} ==")
    rows = [["read_example", *(f"{value:.2f}" for value in cost)]]
    table("CPU ms per image, one thread", ["", "read", "decode", "resize", "together"], rows)
    rates: dict[str, Rate] = {}

    def measured() -> Iterator[list[str]]:
        makes: dict[str, Callable[[], Iterator[Any]]] = {
            "plain loop": lambda: plain_loop(data, size),
            **{f"stream, {n} threads": partial(stream, data, size, n) for n in THREADS},
        }
        for name, make in makes.items():
            r = rates[name] = rate(data, make(), size, seconds)
            times = r.images / rates["plain loop"].images
            yield [name, f"{r.images:,.0f}", f"{times:.2f}", f"{r.cpu_ms:.2f}", f"{r.cores:.2f}"]

    columns = ["", "images/s", "to the loop", "CPU ms/image", "cores in use"]
    table(f"Batches of {size} on the host", columns, measured())
    return rates[f"stream, {READ_THREADS} threads"]


def show_delivery(data: Set, sharding: Any, seconds: float) -> None:
    """Table of what reaches the device, and of the way there."""

    def measured() -> Iterator[list[str]]:
        for size in (size for size in BATCH_SIZES if size <= data.split.num_examples):
            r = rate(data, prefetch_to_device(stream(data, size), sharding), size, seconds)
            batch = copied(next(stream(data, size)))
            calls, readies = [], []
            for _ in range(10):
                start = time.perf_counter()
                on_device = next(prefetch_to_device([batch], sharding, depth=1))
                calls.append(time.perf_counter() - start)
                jax.block_until_ready(on_device)
                readies.append(time.perf_counter() - start)
            transfer = [f"{np.median(times) * 1e3:.2f}" for times in (calls, readies)]
            cells = f"{r.images:,.0f}", f"{r.cpu_ms:.2f}", f"{batch['image'].nbytes / 1e6:.1f}"
            yield [str(size), *cells, *transfer]

    columns = ["batch", "images/s", "CPU ms/image", "MB", "call ms", "arrived ms"]
    title = f"Batches on the device ({READ_THREADS} threads, depth 2), and the transfer of one"
    table(title, columns, measured())


def copied(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch where a CPU device must copy it, as any other device must.

    XLA takes arrays of the host that start at a multiple of 64 bytes for its own.
    """
    images = batch["image"]
    memory = np.empty(images.nbytes + 128, np.uint8)
    start = 1 - memory.ctypes.data % 64 + 64
    moved = memory[start : start + images.nbytes].reshape(images.shape)
    moved[:] = images
    return {**batch, "image": moved}


def show_waiting(data: Set, sharding: Any, size: int, steps: list[float], kind: str) -> None:
    """Tables of a loop that waits for every step before it asks for the next batch."""
    resident = next(prefetch_to_device(stream(data, size), sharding))

    def line(milliseconds: float, depth: int, batches: Iterable[Any], size: int) -> list[str]:
        sleeps = kind == "sleep"
        step = sleeping_step(milliseconds) if sleeps else computing_step(milliseconds, resident)
        alone, waited = waiting(step, prefetch_to_device(batches, sharding, depth))
        part = waited / (alone + waited)
        return [f"{alone:.1f}", f"{size / alone * 1e3:,.0f}", f"{waited:.2f}", f"{part:.1%}"]

    columns = ["", "step ms", "needs img/s", "waits ms", "of the time"]
    does = "sleeps, which leaves the cores idle," if kind == "sleep" else "multiplies matrices"
    title = f"Waiting for streamed batches of {size}; a step {does} and ends before the next is fed"

    def streamed() -> Iterator[list[str]]:
        for milliseconds in steps:
            yield ["plain loop, depth 1", *line(milliseconds, 1, plain_loop(data, size), size)]
            for depth in (1, 2):
                cells = line(milliseconds, depth, stream(data, size), size)
                yield [f"stream, depth {depth}", *cells]

    table(title, columns, streamed())
    large = min(BATCH_SIZES[-1], data.split.num_examples)
    batch = copied(next(stream(data, large)))
    rows = ([f"depth {d}", *line(steps[-1], d, itertools.repeat(batch), large)] for d in (1, 2))
    table(f"The same for a batch of {large} that is read already", columns, rows)


def show_cores(measured: dict[str, Rate], steps: list[float]) -> None:
    """Table of the cores that a host needs, from the CPU time per image."""
    for name, r in measured.items():
        rows = [
            [f"host batch {batch}"]
            + [f"{batch * r.cpu_ms / milliseconds:.1f}" for milliseconds in steps]
            for batch in HOST_BATCHES
        ]
        title = f"Cores that {name} keep busy, from {r.cpu_ms:.2f} CPU ms per image"
        table(title, ["", *(f"{milliseconds:g} ms a step" for milliseconds in steps)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="name of a prepared TFDS set to measure instead")
    parser.add_argument("--data-dir")
    parser.add_argument("--split", default="train")
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--step-ms", type=float, nargs="+", default=[50, 100, 200])
    parser.add_argument("--step", choices=("sleep", "compute"), help="default: sleep on a CPU")
    parser.add_argument("--seconds", type=float, default=3, help="of every measurement")
    arguments = parser.parse_args()
    device = jax.devices()[0]
    kind = arguments.step or ("sleep" if device.platform == "cpu" else "compute")
    print(
        f"{' '.join(['benchmarks/input.py', *sys.argv[1:]])}, {commit()}, seed {SEED}\n"
        f"{processor()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}; "
        f"{len(jax.devices())} x {device.device_kind}; jax {jax.__version__}, "
        f"grain {grain.__version__}, Pillow {PIL.__version__}, "
        f"libjpeg-turbo {PIL.features.version('libjpeg_turbo')}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.data:
            split = open_split(arguments.data, arguments.split, arguments.data_dir)
            sets = {arguments.data: counted(arguments.data, split, arguments.resize)}
        else:
            photographs = write_set(folder, "photographs", 256, 375, 500, "jpeg")
            small = write_set(folder, "small", 2_048, 32, 32, "png")
            sets = {
                "photographs": counted("JPEG, 500x375", photographs, arguments.resize),
                "small images": counted("PNG, 32x32", small, 32),
            }
        sharding = sharded(make_mesh())
        measured = {}
        for index, (name, data) in enumerate(sets.items()):
            measured[name] = show_costs(data, arguments.batch_size, arguments.seconds)
            show_delivery(data, sharding, arguments.seconds)
            if not index:
                show_waiting(data, sharding, arguments.batch_size, arguments.step_ms, kind)
        show_cores(measured, arguments.step_ms)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    run_main(main)
