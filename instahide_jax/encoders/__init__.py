"""Encoders and heads: one configuration dataclass each, chosen by its constructor."""

from instahide_jax.encoders.base import EncoderConfig, Model, Variables, make_model, num_parameters
from instahide_jax.encoders.bert import Bert
from instahide_jax.encoders.bert_folder import from_folder
from instahide_jax.encoders.convnet import ConvNet, LeNet5
from instahide_jax.encoders.heads import Head, TanhHead
from instahide_jax.encoders.resnet import ResNet, ResNet18, WideResNet
from instahide_jax.encoders.vit import ViT

__all__ = [
    "Bert",
    "ConvNet",
    "EncoderConfig",
    "Head",
    "LeNet5",
    "Model",
    "ResNet",
    "ResNet18",
    "TanhHead",
    "Variables",
    "ViT",
    "WideResNet",
    "from_folder",
    "make_model",
    "num_parameters",
]
