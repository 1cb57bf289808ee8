"""What an encoder is, and the one place that knows Flax NNX's split and merge.

An encoder is a frozen dataclass of hyper-parameters with a method `build` that makes an NNX module;
the module maps images or tokens to features. A head maps features to outputs; schemes that hide
features act between the two. `make_model` turns both into pure functions on pytrees: modules
are split once, so that a training step is one `jax.jit` dispatch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from instahide_jax.encoders.heads import Head
from instahide_jax.encoders.initialisation import PYTORCH, LayerInit
from instahide_jax.errors import InputError

Tree = Any  # a pytree of arrays


@dataclass(frozen=True)
class EncoderConfig:
    """Base of all encoder configurations.

    Attributes:
      dtype: computation dtype, "float32" or "bfloat16"; parameters are always float32.
      remat: recompute every block's activations in the backward pass instead of keeping them: less
        memory, about a third more computation. Outputs, statistics, dropout and gradients stay the
        same. XLA for CPUs merges the repetition with the first pass again: nothing is saved there.
    """

    # Whether `build` honours remat; an encoder that does not say so refuses it.
    can_remat: ClassVar[bool] = False

    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"encoder dtype is {self.dtype!r}; choose 'float32' or 'bfloat16'")
        if self.remat and not self.can_remat:
            raise InputError(
                f"remat is True; {type(self).__name__} has no blocks to recompute: set it to False"
            )

    @property
    def head_init(self) -> LayerInit:
        """How the layers of the head on top begin; PyTorch's default where nothing else is said."""
        return PYTORCH

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Module:
        """An NNX module that maps inputs to features [B, width].

        `shape` is that of one example: (H, W, C) of an image, (L,) of a text. Dropout layers take
        their `rngs` as an argument of the call; the module is called as module(inputs, rngs).
        """
        raise TypeError(f"{type(self).__name__} does not define build")

    def example(self, shape: tuple[int, ...]) -> Tree:
        """Abstract inputs of one row in the dtypes that the module takes: images [1, H, W, C].

        Text encoders override it. Inputs have this structure and are cast to these dtypes.
        """
        return jax.ShapeDtypeStruct((1, *shape), jnp.dtype(self.dtype))


class Variables(NamedTuple):
    """What a model computes with.

    Attributes:
      params: trained by gradients; a dict with "encoder" and "head".
      stats: running statistics (batch normalisation), updated by the forward pass.
    """

    params: Tree
    stats: Tree


class Model(NamedTuple):
    """Pure functions of an encoder with its head.

    Attributes:
      init: (key) -> Variables.
      features: (variables, inputs, *, train, dropout_key=None) ->
        (float32 features [B, width], stats).
      logits: (params, features [..., width], dropout_key=None) -> float32 [..., outputs]; a key
        switches the head's dropout on.
    """

    init: Callable[[jax.Array], Variables]
    features: Callable[..., tuple[jax.Array, Tree]]
    logits: Callable[..., jax.Array]


def make_model(
    config: EncoderConfig, shape: tuple[int, ...], num_outputs: int, head: Head | None = None
) -> Model:
    """Split an encoder and its head into pure functions.

    Args:
      config: the encoder.
      shape: of one example: (height, width, channels) of an image, (length,) of a text.
      num_outputs: of the head: the number of classes, or 1 for regression.
      head: a linear one by default.
    """
    head = Head() if head is None else head
    example = config.example(shape)

    def build_encoder(key: jax.Array) -> nnx.Module:
        return config.build(shape, nnx.Rngs(params=key))

    abstract = nnx.eval_shape(lambda: build_encoder(jax.random.key(0)))
    graphs = {}
    for train in (True, False):
        (abstract.train if train else abstract.eval)()
        graphs[train] = nnx.split(abstract, nnx.Param, nnx.BatchStat)[0]

    def forward(variables: Variables, inputs: Tree, train: bool, key: Any) -> Any:
        if _outline(inputs) != _outline(example):
            raise InputError(
                f"{type(config).__name__} is given {_outline(inputs)}; it takes {_outline(example)}"
            )
        module = nnx.merge(graphs[train], variables.params["encoder"], variables.stats, copy=True)
        rngs = None if key is None else nnx.Rngs(dropout=key)
        features = module(jax.tree.map(lambda x, e: x.astype(e.dtype), inputs, example), rngs)
        return features.astype(jnp.float32), nnx.state(module, nnx.BatchStat)

    def init(key: jax.Array) -> Variables:
        encoder_key, head_key = jax.random.split(key)
        module = build_encoder(encoder_key)
        params, stats = nnx.state(module, nnx.Param), nnx.state(module, nnx.BatchStat)
        variables = Variables({"encoder": params}, stats)
        features, _ = jax.eval_shape(lambda v, x: forward(v, x, False, None), variables, example)
        head_params = head.init(head_key, features.shape[-1], num_outputs, config.head_init)
        return Variables({"encoder": params, "head": head_params}, stats)

    def features(
        variables: Variables, inputs: Tree, *, train: bool, dropout_key: Any = None
    ) -> tuple[jax.Array, Tree]:
        return forward(variables, inputs, train, dropout_key)

    def logits(params: Tree, features: jax.Array, dropout_key: Any = None) -> jax.Array:
        return head.apply(params["head"], features, dropout_key)

    return Model(init, features, logits)


def _outline(inputs: Tree) -> str:
    """The names of the inputs, for a message."""
    return f"a dict of {sorted(inputs)}" if isinstance(inputs, dict) else "one array"


def num_parameters(params: Tree) -> int:
    """Trained numbers in a pytree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
