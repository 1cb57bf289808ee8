"""Arrays as users give them: lists, memory maps, foreign byte orders, and what is no array."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instahide_jax.errors import InputError


def as_array(values: Any, name: str, give: str = "integers or floats") -> Any:
    """An array of NumPy or JAX, of real numbers or bool, without a copy of what is one already.

    Arrays of JAX, traced ones too, stay as they are. What else NumPy takes for an array becomes a
    plain NumPy array: lists, `np.matrix`, memory maps, which stay on the disk.

    Args:
      values: what a user gave.
      name: what it is, a plural, for the complaint.
      give: the remedy: what `name` are to be.

    Raises:
      InputError: for what is no array, a dtype that holds no real numbers (objects, texts, times,
        records, complex numbers), or a masked array, whose mask would be lost.
    """
    if isinstance(values, jax.Array) and not jnp.issubdtype(values.dtype, jax.dtypes.extended):
        return values
    parts = values if isinstance(values, list | tuple) else [values]
    if any(isinstance(part, np.ma.MaskedArray) for part in parts):
        raise InputError(
            f"{name} are a masked array, and what the mask hides would be used; give {give}, such "
            "as array.filled(0), or leave the masked rows out"
        )
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:  # also lists of JAX's tracers, and its keys
        cause = str(error).partition("\n")[0]
        raise InputError(
            f"{name} are a {type(values).__name__} that is no array ({cause}); give a NumPy or JAX "
            f"array of {give}"
        ) from error
    is_small = array.dtype.kind == "V" and jnp.issubdtype(array.dtype, jnp.integer)  # as int4
    if not (array.dtype.kind in "biu" or is_small or is_float(array.dtype)):
        raise InputError(f"{name} have dtype {array.dtype}: convert to {give}")
    return array


def is_float(dtype: np.dtype) -> bool:
    """Whether a dtype holds floats; NumPy does not know bfloat16, JAX no long doubles."""
    return np.issubdtype(dtype, np.floating) or jnp.issubdtype(dtype, jnp.floating)


def for_jax(values: Any, name: str, give: str = "integers or floats") -> Any:
    """`as_array` in a dtype that JAX takes: native byte order, floats of at most 64 bits."""
    array = as_array(values, name, give)
    if isinstance(array, jax.Array):
        return array
    is_long = is_float(array.dtype) and array.dtype.itemsize > 8
    with np.errstate(over="ignore"):  # of long doubles; they become infinite
        return array.astype(np.float64 if is_long else array.dtype.newbyteorder("="), copy=False)
