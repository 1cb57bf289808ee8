"""The spread of every kind of weight is that of the published code, and of nothing else."""

import jax
import numpy as np
import pytest
import scipy.stats
from fresh import NETWORKS, fresh, names_of, small_bert

from instahide_jax.encoders import ConvNet, LeNet5, ResNet, TanhHead, WideResNet, resnet
from instahide_jax.encoders.base import EncoderConfig
from instahide_jax.encoders.initialisation import (
    HE_FAN_OUT,
    LECUN,
    PYTORCH,
    PYTORCH_ZERO_BIAS,
    LayerInit,
)

# Depth changes nothing here: the rules know a layer's own size alone.
ONE_OF_EACH = {
    "published": ResNet(blocks=(1, 1), width=8),
    "standard": ResNet(blocks=(1, 1), width=8, form="standard"),
    "imagenet": ResNet(blocks=(1, 1), width=8, form="standard", stem="imagenet"),
    "wide": WideResNet(depth=10, widen=1),
    "convnet": ConvNet(widths=(8, 16), strides=(2, 1)),
    "lenet": LeNet5(),
    "vit": NETWORKS["vit 1"],
    "bert": small_bert(layers=1, output="pooled"),
    "roberta": small_bert(layers=1, output="pooled", kind="roberta", positions=18),
}

# The spread of every kind of weight

# Name, kurtosis, largest entry and mean in deviations.
UNIFORM = ("uniform", 1.8, np.sqrt(3), 0)
UNIT = ("uniform in [0, 1)", 1.8, np.sqrt(12), np.sqrt(3))
NORMAL = ("normal", 3.0, None, 0)
TRUNCATED_STD = float(scipy.stats.truncnorm(-2, 2).std())
TRUNCATED = (
    "truncated",
    float(scipy.stats.truncnorm(-2, 2).stats("k")) + 3,
    2 / TRUNCATED_STD,
    0,
)


def pytorch(fan_in, fan_out):
    return UNIFORM, (3 * fan_in) ** -0.5


def he_fan_in(fan_in, fan_out):
    return NORMAL, (2 / fan_in) ** 0.5


def he_fan_out(fan_in, fan_out):
    return NORMAL, (2 / fan_out) ** 0.5


def glorot(fan_in, fan_out):
    return UNIFORM, (2 / (fan_in + fan_out)) ** 0.5


def lecun(fan_in, fan_out):
    return TRUNCATED, fan_in**-0.5


def truncated(fan_in, fan_out):
    return TRUNCATED, 0.02 * TRUNCATED_STD


def zero(fan_in, fan_out):
    return "zero", 0.0


def torch7_scale(fan_in, fan_out):
    return UNIT, 12**-0.5


def one(fan_in, fan_out):
    return "one", 1.0


def normal(fan_in, fan_out):
    return NORMAL, 0.02


def mlp_bias(fan_in, fan_out):
    return NORMAL, 1e-6


# Of each family the rules by the end of a weight's name; the first that fits holds.
RESNET = {"scale": one, "norm1/bias": zero, "norm2/bias": zero, "norm/bias": zero}
RULES = {
    "published": RESNET | {"kernel": pytorch, "head/bias": pytorch},
    "imagenet": RESNET | {"head/kernel": pytorch, "head/bias": pytorch, "kernel": he_fan_out},
    "wide": {
        **{"head/kernel": pytorch, "head/bias": zero, "kernel": he_fan_in},
        **{"scale": torch7_scale, "bias": zero},
    },
    "convnet": {"scale": one, "head/bias": pytorch, "bias": zero, "kernel": pytorch},
    "lenet": {"kernel": pytorch, "bias": pytorch},
    "vit": {
        **{"scale": one, "cls": zero, "positions": normal, "head/kernel": zero},
        **{"patches/kernel": lecun, "kernel": glorot},
        **{"dense1/bias": mlp_bias, "dense2/bias": mlp_bias, "bias": zero},
    },
    "bert": {"scale": one, "kernel": truncated, "embedding": truncated, "bias": zero},
    "roberta": {"scale": one, "kernel": normal, "embedding": normal, "bias": zero},
}
RULES |= {"standard": RULES["published"]}


def check_spread(params, rules):
    """Every weight, stacked over fresh networks, has the distribution of its rule."""
    weights = names_of(params)
    for name, values in weights.items():
        rule = next((rule for end, rule in rules.items() if name.endswith(end)), None)
        assert rule is not None, f"no rule for {name}"
        kernel = weights.get(name.removesuffix("bias") + "kernel", values)
        *window, inputs, outputs = kernel.shape[1:] if kernel.ndim > 2 else (1, 1)
        field = int(np.prod(window))
        kind, std = rule(field * inputs, field * outputs)
        if isinstance(kind, str):
            assert (values == std).all(), f"{name} is not {kind}"
            continue
        shape, kurtosis, largest, mean = kind
        # Of n draws the standard deviation errs by sqrt((kurtosis - 1) / 4 n) of itself.
        error = 5 * np.sqrt((kurtosis - 1) / (4 * values.size))
        assert values.std() == pytest.approx(std, rel=error), f"spread of {name}"
        assert abs(values.mean() - mean * std) < 5 * std / np.sqrt(values.size), f"mean of {name}"
        if largest is not None:
            assert np.abs(values).max() < 1.001 * largest * std, f"{name} is not {shape}"
        if values.size > 2000:
            assert np.abs(values).max() > 0.95 * std * (largest or 3), f"{name} is not {shape}"
            found = scipy.stats.kurtosis(values, axis=None, fisher=False)
            assert found == pytest.approx(kurtosis, abs=12 / np.sqrt(values.size) * kurtosis)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_spread(name):
    check_spread(fresh(ONE_OF_EACH[name], 16).params, RULES[name])


def test_spread_of_the_repeated_head():
    params = fresh(small_bert(layers=1), 16, head=TanhHead()).params
    assert set(params["head"]) == {"kernel", "bias", "shared_kernel", "shared_bias"}
    check_spread(params, RULES["bert"])
    init = jax.vmap(lambda key: TanhHead().init(key, 40, 3, PYTORCH))
    check_spread(jax.device_get(init(jax.random.split(jax.random.key(1), 32))), RULES["lenet"])


# Wrong ones

FAN_OUT = LayerInit(jax.nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform"), PYTORCH.bias)
NORMAL_OF_THAT_SPREAD = LayerInit(
    jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "normal"), PYTORCH.bias
)
LARGE = LayerInit(jax.nn.initializers.variance_scaling(2, "fan_in", "uniform"), PYTORCH.bias)
PUBLISHED = ONE_OF_EACH["published"]


@pytest.mark.parametrize("init", [HE_FAN_OUT, FAN_OUT, NORMAL_OF_THAT_SPREAD, LARGE])
def test_other_convolutions_are_found(init, monkeypatch):
    check_spread(fresh(PUBLISHED, 16).params, RULES["published"])
    monkeypatch.setattr(resnet, "PYTORCH", init)
    with pytest.raises(AssertionError, match=r"kernel|Obtained"):
        check_spread(fresh(PUBLISHED, 16).params, RULES["published"])


@pytest.mark.parametrize("init", [LECUN, FAN_OUT, LARGE, PYTORCH_ZERO_BIAS])
@pytest.mark.parametrize("config", [PUBLISHED, LeNet5()])
def test_other_heads_are_found(config, init, monkeypatch):
    monkeypatch.setattr(EncoderConfig, "head_init", init)
    rules = RULES["lenet" if config == LeNet5() else "published"]
    with pytest.raises(AssertionError, match="head"):
        check_spread(fresh(config, 64).params, rules)
