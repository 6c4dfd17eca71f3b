"""Networks: activations, initialisers, layers, blocks, normalisation, and the network that stacks and scans them."""

from gradcourse.nn.activations import ACTIVATIONS, Activation
from gradcourse.nn.blocks import Block, Residual
from gradcourse.nn.convolutions import AvgPool, Conv, MaxPool
from gradcourse.nn.initializers import INITIALIZERS, Initializer, gaussian
from gradcourse.nn.layers import Dense, Flatten, Layer, Pointwise
from gradcourse.nn.locally_connected import LocallyConnected, untied
from gradcourse.nn.network import Network, cnn, mlp, sequential
from gradcourse.nn.normalisation import BatchNorm, ChannelScale, GroupNorm, LayerNorm, WeightStandardised, at_inference

__all__ = [
    "ACTIVATIONS",
    "INITIALIZERS",
    "Activation",
    "AvgPool",
    "BatchNorm",
    "Block",
    "ChannelScale",
    "Conv",
    "Dense",
    "Flatten",
    "GroupNorm",
    "Initializer",
    "Layer",
    "LayerNorm",
    "LocallyConnected",
    "MaxPool",
    "Network",
    "Pointwise",
    "Residual",
    "WeightStandardised",
    "at_inference",
    "cnn",
    "gaussian",
    "mlp",
    "sequential",
    "untied",
]
