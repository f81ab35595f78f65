"""Owns low-rank adapters of a model's projections. Not: files of them."""

import dataclasses

import numpy as np

from kerasgpt.config import Config, InputError, setting
from kerasgpt.layers.projection import Projection

# Of the blocks; which of them a model has, its activation decides.
TARGETS = ("query", "key", "value", "output", "gate", "up", "down")
# Keras' names of an adapter's two matrices, beside the kernel they change.
DOWN_NAME, UP_NAME, KERNEL_NAME = "lora_kernel_a", "lora_kernel_b", "kernel"


@dataclasses.dataclass(frozen=True)
class LoRAConfig(Config):
    """Which kernels are changed by products of two thin matrices."""

    rank: int = setting(
        0, "columns of the thin matrices; 0 = train all weights", minimum=0
    )
    alpha: float = setting(
        16.0, "the product counts alpha / rank times", minimum=1e-3
    )
    targets: str = setting(
        "query,value",
        "projections that are adapted, with commas: " + ", ".join(TARGETS),
    )

    def __post_init__(self):
        super().__post_init__()
        for name in self.names:
            if name not in TARGETS:
                raise InputError(
                    f"targets={self.targets}: {name!r} is none of "
                    f"{', '.join(TARGETS)}."
                )

    @property
    def names(self):
        """List of str, the names in `targets`."""
        return [name.strip() for name in self.targets.split(",")]


def add_lora(model, config):
    """Freezes a model and gives it adapters, which alone are then trained.

    y = (W + alpha/rank A B) x, A random and B zero at first, so that nothing
    is changed yet. By Keras' own `enable_lora`, which `Projection` inherits.

    Args:
        model: GPTCausalLM, built; changed in place.
        config: LoRAConfig, of rank 1 or more.

    Raises:
        InputError: if the model lacks a target, or adapters would be no
            smaller than what they change.

    Example:
        >>> from kerasgpt.models.gpt import GPTCausalLM, GPTConfig
        >>> model = GPTCausalLM(GPTConfig.from_depth(1))
        >>> model.build()
        >>> add_lora(model, LoRAConfig(rank=2))
        >>> sum(v.shape[0] * v.shape[1] for v in model.trainable_variables)
        1024

    Reference: Hu et al. 2021, LoRA (arXiv 2106.09685), section 4.1.
    """
    found = {name: [] for name in config.names}
    # Keras' own walk over a layer and all that is in it.
    for layer in model._flatten_layers():
        if isinstance(layer, Projection) and layer.name in found:
            found[layer.name].append(layer)
    missing = [name for name, layers in found.items() if not layers]
    if missing:
        raise InputError(
            f"lora.targets: this model has no projection {missing[0]!r}."
        )
    layers = [
        layer for found_layers in found.values() for layer in found_layers
    ]
    for layer in layers:
        if config.rank >= min(layer.kernel.shape):
            raise InputError(
                f"lora.rank={config.rank}: must be below the "
                f"{min(layer.kernel.shape)} of the {layer.name} kernels."
            )
    for variable in model.variables:
        variable.trainable = False
    for layer in layers:
        layer.enable_lora(config.rank, lora_alpha=config.alpha)


def merge_lora(weights, adapters, config):
    """Returns weights with the products of adapters added to their kernels.

    Args:
        weights: dict of name to float32 array, of a model.
        adapters: dict of name to array: the thin matrices, and perhaps
            others, which are passed over.
        config: LoRAConfig of the adapters.

    Returns:
        dict of arrays, the thin matrices not among them; those that no
        adapter changes are the same objects.

    Raises:
        InputError: if an adapter changes a kernel that is not there, or of
            another shape.

    Example:
        >>> weights = {"kernel": np.zeros((2, 2), "float32")}
        >>> thin = {"lora_kernel_a": np.ones((2, 1)),
        ...         "lora_kernel_b": np.ones((1, 2))}
        >>> merge_lora(weights, thin, LoRAConfig(rank=1, alpha=3.0))
        {'kernel': array([[3., 3.],
               [3., 3.]], dtype=float32)}
    """
    merged = {
        name: array
        for name, array in weights.items()
        if not name.endswith((DOWN_NAME, UP_NAME))
    }
    for name, down in adapters.items():
        if not name.endswith(DOWN_NAME):
            continue
        place = name.removesuffix(DOWN_NAME)
        kernel, up = merged.get(place + KERNEL_NAME), adapters[place + UP_NAME]
        shape = (down.shape[0], up.shape[-1])
        if kernel is None or kernel.shape != shape:
            raise InputError(
                f"adapter {place}: is of another model: it changes a kernel "
                f"of shape {shape}."
            )
        change = np.float32(config.alpha / config.rank) * (down @ up)
        merged[place + KERNEL_NAME] = kernel + change.astype("float32")
    return merged
