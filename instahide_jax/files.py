"""Files that show private data: for their owner's eyes, and whole or absent."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def private_file(path: Path) -> Iterator[IO[bytes]]:
    """A file of mode 0600 that takes the place of `path` when the block ends without an error.

    Nobody else can read it at any moment, whatever the umask is and whatever mode a file had that
    was there before.

    Raises:
      OSError: where the folder cannot be written.
    """
    # In the same folder, because a rename is atomic only within a file system; of mode 0600.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
