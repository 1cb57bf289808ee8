"""How fresh weights are drawn: each architecture as the code that published it draws them.

A recipe belongs to an initialisation. The published InstaHide networks start with PyTorch's
defaults; with weights six times as large in variance the published recipe, SGD 0.1 without warm-up,
does not train. Their pre-activation blocks end in a convolution whose output no normalisation
rescales, so the size of its weights is the size of the features.

| architecture                       | kernels        | biases         | head            | source |
|------------------------------------|----------------|----------------|-----------------|--------|
| ResNet "published" and "standard"  | PyTorch        | none           | PyTorch         | [1]    |
| ResNet "standard", stem "imagenet" | He, fan_out    | none           | PyTorch         | [2]    |
| LeNet5                             | PyTorch        | PyTorch        | PyTorch         | [1]    |
| ConvNet (this project's own)       | PyTorch        | none           | PyTorch         | as [1] |
| WideResNet                         | He, fan_in     | none           | PyTorch, bias 0 | [3]    |
| ViT                                | Glorot uniform | 0; MLP 1e-6    | 0               | [4]    |
| ViT, embedding of the patches      | LeCun normal   | 0              |                 | [4]    |
| ViT, class token and positions     | 0; normal      |                |                 | [4]    |
| Bert                               | trunc. normal  | 0              | trunc. normal   | [5]    |
| Bert of kind "roberta"             | normal         | 0              | normal          | [6]    |

Normalisations start with scale 1 and bias 0; the scales of WideResNet are uniform in [0, 1) [3].

[1] The InstaHide code (Huang et al., ICML 2020), whose networks never set a weight: PyTorch's
    defaults for Conv2d and Linear, uniform with variance 1 / (3 fan_in), kernels and biases.
[2] torchvision's resnet.py; He et al., "Delving deep into rectifiers", ICCV 2015, section 2.2.
[3] The Lua code of Zagoruyko and Komodakis, BMVC 2016 (models/utils.lua: MSRinit as mended in
    commit ea02518, and FCinit). What these leave alone begins as in Torch7: a linear kernel as in
    PyTorch, the scale of a batch normalisation uniform. The authors' PyTorch code has the same
    convolutions and scales.
[4] The JAX code of Dosovitskiy et al., ICLR 2021 (vit_jax/models_vit.py); the embedding is a Flax
    convolution with its default, positions are normal with standard deviation 0.02.
[5] The TensorFlow code of Devlin et al., NAACL 2019 (modeling.py, run_classifier.py): truncated at
    two standard deviations of 0.02, kernels and embeddings. The TextHide code draws from the whole
    normal distribution, as its PyTorch port of BERT does.
[6] fairseq (init_bert_params), the code of Liu et al., 2019: standard deviation 0.02. Its zeros for
    the embeddings of padding, which reach no token, are left out.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import nnx

Initializer = nnx.Initializer  # (key, shape, dtype) -> array


class LayerInit(NamedTuple):
    """How the weights of a dense layer or a convolution begin.

    Attributes:
      kernel: of its kernel, whose last axis is that of the outputs.
      bias: its argument is the layer's fan-in, the inputs of one output.
    """

    kernel: Initializer
    bias: Callable[[int], Initializer]


def _zero_bias(fan_in: int) -> Initializer:
    del fan_in
    return nnx.initializers.zeros


def _pytorch_bias(fan_in: int) -> Initializer:
    """Uniform with variance 1 / (3 fan_in), like the kernel beside it."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


PYTORCH = LayerInit(nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), _pytorch_bias)
PYTORCH_ZERO_BIAS = PYTORCH._replace(bias=_zero_bias)
HE_FAN_IN = LayerInit(nnx.initializers.variance_scaling(2.0, "fan_in", "normal"), _zero_bias)
HE_FAN_OUT = LayerInit(nnx.initializers.variance_scaling(2.0, "fan_out", "normal"), _zero_bias)
GLOROT = LayerInit(nnx.initializers.xavier_uniform(), _zero_bias)
GLOROT_MLP = GLOROT._replace(bias=lambda fan_in: nnx.initializers.normal(1e-6))
LECUN = LayerInit(nnx.initializers.lecun_normal(), _zero_bias)
ZERO = LayerInit(nnx.initializers.zeros, _zero_bias)
TORCH7_SCALE = nnx.initializers.uniform(1.0)  # of a batch normalisation: uniform in [0, 1)


def normal(std: float) -> LayerInit:
    """A normal distribution of standard deviation `std`."""
    return LayerInit(nnx.initializers.normal(std), _zero_bias)


def truncated_normal(std: float) -> LayerInit:
    """A normal distribution cut at two standard deviations `std`, which leaves 0.88 `std`."""
    return LayerInit(nnx.initializers.truncated_normal(std), _zero_bias)
