"""Asking whether the machine has the memory for what a user asks for, before work begins."""

import os
from collections.abc import Callable

from instahide_jax.errors import InputError


def machine_memory() -> int:
    """Bytes of memory of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(
    name: str, value: int, what: str, needed: int, fitting: Callable[[int], int]
) -> None:
    """Refuse a number that needs more memory than the machine has.

    Asked of the system: the kernel may promise more than there is, and kill the program later.

    Args:
      name: of the option or argument.
      value: the number.
      what: takes the memory, a plural.
      needed: bytes that this takes at least.
      fitting: the largest number that fits in so many bytes.

    Raises:
      InputError: if more is needed than there is.
    """
    memory = machine_memory()
    if needed > memory:
        raise InputError(
            f"{name} is {value}: {what} take at least {needed / 1e9:,.0f} GB, the machine has "
            f"{memory / 1e9:,.0f} GB of memory; lower {name} to at most {fitting(memory)}"
        )
