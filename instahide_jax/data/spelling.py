"""Names and labels that are spelled differently and look the same."""

import functools
import unicodedata


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
