"""train.py, which at the end also writes what lies in the memory of its process, as digests.

Started like train.py, with the environment variable SPY naming a folder. Written are digests of the
clients' keys that this process was given, and of every run of 8 words in any array that it holds.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from instahide_jax import run
from instahide_jax.checkpoint import Checkpoints
from instahide_jax.errors import run_main

given: dict[str, str] = {}


def digest(words: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(words, "<u4").tobytes()).hexdigest()


def rows_in_memory() -> set[str]:
    """Digests of the rows of all arrays of 8 words, and of all images at any client's place."""
    found = set()
    for array in jax.live_arrays():
        if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        if array.dtype == np.uint32 and array.ndim and array.shape[-1] == 8:
            for shard in array.addressable_shards:
                found |= {digest(row) for row in np.asarray(shard.data).reshape(-1, 8)}
        if array.dtype == np.uint8 and array.ndim == 5:  # images [K, N, H, W, C]
            for shard in array.addressable_shards:
                images = np.asarray(shard.data)
                found |= {hashlib.sha256(image.tobytes()).hexdigest() for image in images[0]}
    return found


def read_secret(path):
    """Keep digests of what is read, and of what becomes of it."""
    secret = original_read(path)
    given["secret"] = digest(jax.random.key_data(secret.key))
    return secret


def make_keys(secrets, seed):
    """Keep digests of the keys that are used."""
    for client, secret in secrets.items():
        given[str(client)] = digest(jax.random.key_data(secret.key))
    return original_make(secrets, seed)


def save(self, *arguments):
    """Look around in the middle of the training, too."""
    seen.update(rows_in_memory())
    return original_save(self, *arguments)


seen: set[str] = set()
original_read, run.read_secret = run.read_secret, read_secret
original_make, train.make_keys = train.make_keys, make_keys
original_save, Checkpoints.save = Checkpoints.save, save


def main() -> None:
    train.main()
    found = {"given": given, "seen": sorted(seen)}
    Path(os.environ["SPY"], f"{jax.process_index()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    run_main(main)
