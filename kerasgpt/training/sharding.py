"""Owns which device holds which part of a model, under JAX.

Not: the train step (jax_step.py), devices under TensorFlow (distribution.py).
"""

import keras
from keras import distribution

from kerasgpt.config import InputError

DATA_AXIS, MODEL_AXIS = "data", "model"
# Path of a variable, as a whole -> the mesh axis that cuts each dimension; all
# others are whole on every device. A kernel into heads or the inner width is
# cut by its columns, the one back by its rows, so that a device computes with
# its own heads and inner features, and the devices' results are added up once
# behind attention and once behind the network. The table is cut by tokens, as
# then are the logits.
LAYOUT = {
    r".*/token_embedding/embeddings": (MODEL_AXIS, None),
    r".*/token_embedding/reverse_embeddings": (None, MODEL_AXIS),
    r".*/attention/(query|key|value)/kernel": (None, MODEL_AXIS),
    r".*/attention/(query|key|value)/bias": (MODEL_AXIS,),
    r".*/attention/output/kernel": (MODEL_AXIS, None),
    r".*/feed_forward/(up|gate)/kernel": (None, MODEL_AXIS),
    r".*/feed_forward/(up|gate)/bias": (MODEL_AXIS,),
    r".*/feed_forward/down/kernel": (MODEL_AXIS, None),
}
# What a layout cuts into equal parts.
DIVIDED = ("vocabulary_size", "num_heads", "num_kv_heads", "inner_dim")


def layout_map(device_mesh):
    """Returns LAYOUT for the devices of a mesh.

    Slots of an optimizer lie where their weights do.

    Args:
        device_mesh: keras.distribution.DeviceMesh with axes "data" and
            "model".

    Returns:
        keras.distribution.LayoutMap.

    Reference: Shoeybi et al. 2019, Megatron-LM (arXiv 1909.08053), section 3.
    """
    layouts = distribution.LayoutMap(device_mesh)
    for path, axes in LAYOUT.items():
        layouts[path] = axes
    return layouts


def build_distribution(model_config=None, *, model_devices=1, devices=None):
    """Returns how a model trains on several devices under KERAS_BACKEND=jax.

    To be set (`keras.distribution.set_distribution`) before model, train step
    and optimizer are built. Rows of a batch are shared out over groups of
    `model_devices` devices, which share the weights.

    Args:
        model_config: GPTConfig. `None` = any, held whole.
        model_devices: int. Devices that hold one model together. 1 = each
            holds all of it.
        devices: list of str, such as "gpu:0". `None` = all there are.

    Returns:
        keras.distribution.DataParallel or ModelParallel.

    Raises:
        InputError: if the backend shards nothing, or the devices cannot share
            this model equally.
    """
    if keras.backend.backend() != "jax":
        raise InputError(
            "keras.distribution: shards under JAX only; set "
            "KERAS_BACKEND=jax, or choose devices with distribute."
        )
    devices = devices or distribution.list_devices()
    if len(devices) % model_devices:
        raise InputError(
            f"model_devices={model_devices}: {len(devices)} devices cannot be "
            f"cut into groups of so many."
        )
    if model_devices == 1:
        return distribution.DataParallel(devices=devices)
    for name in DIVIDED:
        value = getattr(model_config, name)
        if value % model_devices:
            raise InputError(
                f"model_devices={model_devices}: does not divide {name}="
                f"{value}."
            )
    mesh = distribution.DeviceMesh(
        (len(devices) // model_devices, model_devices),
        (DATA_AXIS, MODEL_AXIS),
        devices,
    )
    return distribution.ModelParallel(
        layout_map=layout_map(mesh), batch_dim_name=DATA_AXIS
    )
