"""Make the reference statistics of tests/test_fresh_networks.py with PyTorch.

    pip install torch==2.13.0
    python tests/golden/make_initialisation_golden.py

Builds the networks of `instahide_jax.encoders.initialisation` with PyTorch's layers, lets them
start as their originals do, and writes initialisation.json beside this file: of every network and
statistic the mean and the standard deviation over seeds. The statistics are the losses of the fresh
network, the root mean square of what the first and the last block put out, and the norms of the
gradients of their first kernels. What is easily missed in two of the originals:

- published: github.com/Hazelsuko07/InstaHide, models/resnet.py at 8048b06: in PreActBlock
  `self.shortcut` takes what bn1 and ReLU put out, and is empty where the shape stays.
- wide: github.com/szagoruyko/wide-residual-networks, models/wide-resnet.lua and utils.lua at
  ea02518: fan_in; where the shape stays, the shortcut is the input of the block; the scales are
  those of Torch7's batch normalisation.
"""

import json
from pathlib import Path

import numpy as np
import torch
from fresh_batches import batches, tokens
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).parent
SEEDS = range(16)


class Basic(nn.Module):
    """A residual block with two 3x3 convolutions, normalised before or after them.

    With "pre" the shortcut is activated where it is a convolution, with "published" everywhere.
    """

    def __init__(self, inputs, outputs, stride, form):
        super().__init__()
        self.form = form
        pre = form != "standard"
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inputs if pre else outputs)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            norm = [] if pre else [nn.BatchNorm2d(outputs)]
            self.shortcut = nn.Sequential(convolution, *norm)

    def forward(self, x):
        if self.form != "standard":
            active = F.relu(self.norm1(x))
            y = self.conv2(F.relu(self.norm2(self.conv1(active))))
            if self.shortcut is not None:
                return y + self.shortcut(active)
            return y + (active if self.form == "published" else x)
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Residual(nn.Module):
    """Stem, blocks, perhaps a last normalisation, global average, linear head."""

    def __init__(self, stem, blocks, last_norm, width):
        super().__init__()
        self.stem, self.blocks = stem, nn.ModuleList(blocks)
        self.last_norm = nn.BatchNorm2d(width) if last_norm else None
        self.head = nn.Linear(width, 10)
        self.block_outputs = []

    def forward(self, x):
        x = self.stem(x)
        self.block_outputs = []
        for block in self.blocks:
            x = block(x)
            self.block_outputs.append(x)
        if self.last_norm is not None:
            x = F.relu(self.last_norm(x))
        return self.head(x.mean(dim=(2, 3)))

    def kernels(self):
        return [block.conv1.weight for block in self.blocks]


def resnet(form, imagenet_stem=False, width=16, counts=(2, 2, 2, 2)):
    """ResNets: the "published" hybrid and the "standard" one."""
    size, stride = (7, 2) if imagenet_stem else (3, 1)
    stem = [
        nn.Conv2d(3, width, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    if imagenet_stem:
        stem.append(nn.MaxPool2d(3, 2, 1))
    blocks, inputs = [], width
    for stage, count in enumerate(counts):
        outputs = width * 2**stage
        for i in range(count):
            blocks.append(Basic(inputs, outputs, 2 if stage and not i else 1, form))
            inputs = outputs
    net = Residual(nn.Sequential(*stem), blocks, False, inputs)
    if imagenet_stem:  # as torchvision: He, fan_out
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return net


def wide_resnet(depth=16, widen=2):
    """A WideResNet, started as in its Lua code."""
    blocks, inputs = [], 16
    for stage in range(3):
        outputs = 16 * widen * 2**stage
        for i in range((depth - 4) // 6):
            blocks.append(Basic(inputs, outputs, 2 if stage and not i else 1, "pre"))
            inputs = outputs
    net = Residual(nn.Conv2d(3, 16, 3, 1, 1, bias=False), blocks, True, inputs)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
            nn.init.normal_(layer.weight, std=(2 / fan_in) ** 0.5)
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight)
    nn.init.zeros_(net.head.bias)
    return net


class LeNet(nn.Module):
    """LeNet-5 with ReLU and max-pooling; its layers stand for blocks."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.dense1, self.dense2 = nn.Linear(400, 120), nn.Linear(120, 84)
        self.head = nn.Linear(84, 10)
        self.block_outputs = []

    def forward(self, x):
        first = F.relu(self.conv1(x))
        second = F.relu(self.conv2(F.max_pool2d(first, 2)))
        x = F.relu(self.dense1(F.max_pool2d(second, 2).flatten(1)))
        x = F.relu(self.dense2(x))
        self.block_outputs = [first, x]
        return self.head(x)

    def kernels(self):
        return [self.conv1.weight, self.dense2.weight]


class Bert(nn.Module):
    """A BERT of post-norm blocks; features are the mean over the tokens."""

    def __init__(self, vocab=100, width=64, layers=4, heads=4, positions=16):
        super().__init__()
        self.words, self.positions = nn.Embedding(vocab, width), nn.Embedding(positions, width)
        self.types = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, 0.0, "gelu", 1e-12, batch_first=True
            )
            for _ in range(layers)
        )
        self.head = nn.Linear(width, 10)
        self.block_outputs = []
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids):
        positions = torch.arange(ids.shape[1])
        x = self.words(ids) + self.positions(positions) + self.types(torch.zeros_like(ids))
        x = self.norm(x)
        self.block_outputs = []
        for block in self.blocks:
            x = block(x)
            self.block_outputs.append(x)
        return self.head(x.mean(dim=1))

    def kernels(self):
        return [block.linear1.weight for block in self.blocks]


NETWORKS = {
    "published": lambda: resnet("published"),
    "standard": lambda: resnet("standard"),
    "imagenet": lambda: resnet("standard", imagenet_stem=True),
    "wide": wide_resnet,
    "lenet": LeNet,
    "bert": Bert,
}


def rms(x):
    return float(x.detach().square().mean().sqrt())


def statistics(name, seed):
    """Statistics of one fresh network."""
    torch.manual_seed(seed)
    net = NETWORKS[name]().train()
    if name == "bert":
        data = {"vanilla": tokens(seed)}
    else:
        data = {
            scheme: (images.transpose(0, 3, 1, 2).copy(), labels)
            for scheme, (images, labels) in batches(32, 10, seed).items()
        }
    found = {}
    for scheme, (inputs, labels) in data.items():
        net.zero_grad()
        loss = F.cross_entropy(net(torch.from_numpy(inputs)), torch.from_numpy(labels))
        found[f"loss, {scheme}"] = float(loss.detach())
        if scheme == "mixup":
            continue
        loss.backward()
        for place, at in (("first", 0), ("last", -1)):
            found[f"activations of the {place} block, {scheme}"] = rms(net.block_outputs[at])
            found[f"gradients of the {place} block, {scheme}"] = float(
                net.kernels()[at].grad.norm()
            )
    return found


def main():
    torch.set_num_threads(1)
    golden = {}
    for name in NETWORKS:
        found = [statistics(name, seed) for seed in SEEDS]
        golden[name] = {
            key: [float(f"{f(one[key] for one in found):.4g}") for f in (_mean, _deviation)]
            for key in found[0]
        }
        print(name, json.dumps(golden[name], indent=1))
    text = json.dumps(golden, indent=1) + "\n"
    (HERE / "initialisation.json").write_text(text, encoding="utf-8")


def _mean(values):
    return np.mean(list(values))


def _deviation(values):
    return np.std(list(values), ddof=1)


if __name__ == "__main__":
    main()
