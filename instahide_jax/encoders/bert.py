"""BERT and RoBERTa (Devlin et al. 2019; Liu et al. 2019): text encoders with post-norm blocks."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from instahide_jax.encoders.base import EncoderConfig
from instahide_jax.encoders.initialisation import LayerInit, normal, truncated_normal
from instahide_jax.encoders.layers import Attention, apply_block, dense, layer_norm
from instahide_jax.errors import InputError

Tokens = dict[str, jax.Array]


@dataclass(frozen=True)
class Bert(EncoderConfig):
    """A BERT or RoBERTa encoder; the defaults are those of bert-base-uncased.

    Inputs are a dict of int32 arrays [B, L]: "ids"; "types", the segment of each token; "mask", 1
    for a token and 0 for padding. Padding never influences the output of a token, nor "pooled",
    "cls" or "mean". A row without any token gives finite numbers that mean nothing.

    Attributes:
      kind: "bert" numbers the positions from 0; "roberta" numbers the tokens, without the padding,
        from `padding_idx` + 1, and gives padding the position `padding_idx`.
      vocab_size: rows of the word embedding.
      hidden: width of the features, a multiple of `heads`.
      layers: transformer blocks.
      heads: attention heads per block.
      intermediate: width between the two dense layers of a block.
      positions: rows of the position embedding.
      token_types: rows of the token type embedding.
      norm_epsilon: of the layer normalisations.
      padding_idx: position of padding in RoBERTa; BERT ignores it.
      init_std: standard deviation of the normal distribution that kernels, embeddings and the head
        start from, cut at two of it where `kind` is "bert".
      output: "pooled", tanh of a dense layer on the first token [B, hidden]; "cls", the first token
        [B, hidden]; "mean" over the tokens [B, hidden]; "sequence" [B, L, hidden]. Only with
        "pooled" is there a pooler among the parameters.
      dropout: rate after the embeddings and after both halves of a block, in [0, 1).
      attention_dropout: rate on the attention probabilities, in [0, 1).
      folder: where `encoders.bert_folder.pretrained` finds the weights to start from, a path or
        "package:NAME/FOLDER" (`folders.local_folder`); None starts from random ones.
    """

    can_remat: ClassVar[bool] = True

    kind: Literal["bert", "roberta"] = "bert"
    vocab_size: int = 30_522
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    intermediate: int = 3072
    positions: int = 512
    token_types: int = 2
    norm_epsilon: float = 1e-12
    padding_idx: int = 1
    init_std: float = 0.02
    output: Literal["pooled", "cls", "mean", "sequence"] = "pooled"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    folder: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in ("bert", "roberta"):
            raise InputError(f"kind is {self.kind!r}; choose 'bert' or 'roberta'")
        sizes = ("vocab_size", "hidden", "layers", "heads", "intermediate", "token_types")
        for name in (*sizes, "positions"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.hidden % self.heads:
            raise InputError(
                f"hidden is {self.hidden}; it must be a multiple of heads, which is {self.heads}"
            )
        if self.padding_idx < 0:
            raise InputError(f"padding_idx is {self.padding_idx}; it must be at least 0")
        if self.max_length < 1:
            raise InputError(
                f"positions is {self.positions}; RoBERTa leaves padding_idx + 1 = "
                f"{self.padding_idx + 1} of them unused and needs more"
            )
        for name in ("norm_epsilon", "init_std"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.output not in ("pooled", "cls", "mean", "sequence"):
            raise InputError(
                f"output is {self.output!r}; choose 'pooled', 'cls', 'mean' or 'sequence'"
            )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")

    @property
    def head_init(self) -> LayerInit:
        return (normal if self.kind == "roberta" else truncated_normal)(self.init_std)

    @property
    def max_length(self) -> int:
        """The longest sequence, in tokens with [CLS] and [SEP]."""
        return self.positions - (self.padding_idx + 1 if self.kind == "roberta" else 0)

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Module:
        del shape  # one module for all lengths
        return _Bert(self, rngs)

    def example(self, shape: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
        """Abstract tokens of one row, int32 [1, L]; `shape` is (L,)."""
        if len(shape) != 1:
            raise InputError(f"the shape of a text is {shape}; give (length,)")
        row = jax.ShapeDtypeStruct((1, *shape), jnp.int32)
        return {"ids": row, "types": row, "mask": row}


class _Embeddings(nnx.Module):
    def __init__(self, config: Bert, rngs: nnx.Rngs):
        def table(rows: int) -> nnx.Embed:
            init = config.head_init.kernel
            return nnx.Embed(
                rows, config.hidden, dtype=config.dtype, embedding_init=init, rngs=rngs
            )

        self.config = config
        self.words = table(config.vocab_size)
        self.positions = table(config.positions)
        self.types = table(config.token_types)
        self.norm = _norm(config, rngs)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(self, tokens: Tokens, key: Any) -> jax.Array:
        x = self.words(tokens["ids"]) + self.types(tokens["types"])
        x += self.positions(_positions(self.config, tokens["mask"]))
        return self.dropout(self.norm(x), rngs=key)


class _Layer(nnx.Module):
    def __init__(self, config: Bert, rngs: nnx.Rngs):
        self.attention = Attention(
            config.hidden,
            config.heads,
            dropout=config.attention_dropout,
            init=config.head_init,
            dtype=config.dtype,
            rngs=rngs,
        )
        self.attention_norm = _norm(config, rngs)
        self.intermediate = _dense(config, config.hidden, config.intermediate, rngs)
        self.output = _dense(config, config.intermediate, config.hidden, rngs)
        self.output_norm = _norm(config, rngs)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(self, x: jax.Array, mask: jax.Array, key: Any) -> jax.Array:
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        attended = self.dropout(self.attention(x, mask, keys[0]), rngs=keys[1])
        x = self.attention_norm(x + attended)
        y = self.output(jax.nn.gelu(self.intermediate(x), approximate=False))
        return self.output_norm(x + self.dropout(y, rngs=keys[2]))


class _Bert(nnx.Module):
    def __init__(self, config: Bert, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = _Embeddings(config, rngs)
        self.layers = nnx.List([_Layer(config, rngs) for _ in range(config.layers)])
        if config.output == "pooled":
            self.pooler = _dense(config, config.hidden, config.hidden, rngs)

    def __call__(self, tokens: Tokens, rngs: Any = None) -> jax.Array:
        _check(self.config, tokens)
        count = len(self.layers) + 1
        keys = [None] * count if rngs is None else list(jax.random.split(rngs.dropout(), count))
        mask = tokens["mask"] > 0
        x = self.embeddings(tokens, keys[0])
        for layer, key in zip(self.layers, keys[1:], strict=True):
            x = apply_block(layer, x, mask[:, None, None, :], key, remat=self.config.remat)
        match self.config.output:
            case "sequence":
                return x
            case "mean":
                weights = mask.astype(jnp.float32)
                weights /= jnp.maximum(weights.sum(axis=1, keepdims=True), 1)
                return jnp.einsum("bl,blh->bh", weights, x.astype(jnp.float32))
            case "cls":
                return x[:, 0]
        return jnp.tanh(self.pooler(x[:, 0]))


def _norm(config: Bert, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return layer_norm(config.hidden, config.norm_epsilon, dtype=config.dtype, rngs=rngs)


def _dense(config: Bert, inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    return dense(inputs, outputs, init=config.head_init, dtype=config.dtype, rngs=rngs)


def _positions(config: Bert, mask: jax.Array) -> jax.Array:
    """Rows of the position embedding, int32 [B, L] or [1, L]."""
    if config.kind == "bert":
        return jnp.arange(mask.shape[1], dtype=jnp.int32)[None, :]
    tokens = (mask > 0).astype(jnp.int32)
    return jnp.cumsum(tokens, axis=1) * tokens + config.padding_idx


def _check(config: Bert, tokens: Tokens) -> None:
    shapes = {name: tuple(array.shape) for name, array in tokens.items()}
    if len(set(shapes.values())) > 1 or len(shapes["ids"]) != 2:
        raise InputError(f"tokens have the shapes {shapes}; all must be the same [B, L]")
    length = shapes["ids"][1]
    if length > config.max_length:
        raise InputError(
            f"the sequences have {length} tokens; this {config.kind} has positions for "
            f"{config.max_length}: truncate to that length"
        )
