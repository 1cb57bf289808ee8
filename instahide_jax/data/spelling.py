"""Names and labels that are spelled differently and look the same."""

import functools
import os
import unicodedata


def from_disk(name: str) -> str:
    """What the bytes of a file's name mean in UTF-8, whatever encoding Python took them for.

    That is the locale's, such as Latin-1, while the names on disks are written in UTF-8.

    Raises:
        UnicodeDecodeError: for bytes that are no UTF-8.
    """
    return os.fsencode(name).decode("utf-8")


def on_disk(name: str) -> str:
    """The name by which Python finds a file: the inverse of `from_disk`."""
    return os.fsdecode(name.encode("utf-8"))


def visible(text: str) -> str:
    """A text without invisible characters (Unicode's category Cf)."""
    return "".join(char for char in text if unicodedata.category(char) != "Cf")


@functools.lru_cache(maxsize=1024)
def appearance(text: str) -> str:
    """The same text for all that look alike.

    An accented letter may be one character or two, as files from macOS have it, and between letters
    may be characters that nobody sees. Blanks around a text are not seen either.
    """
    return unicodedata.normalize("NFC", visible(text)).strip()
