import numpy as np
import pytest

from kerasgpt.checkpoints.gptq import quantize_kernels, round_kernel
from kerasgpt.checkpoints.quantized import (
    SCALE_SUFFIX,
    dequantize,
    quantize_weights,
)
from kerasgpt.layers.projection import Projection
from kerasgpt.models.gpt import GPTCausalLM
from tests.descriptors import tiny_config


def nearest(kernel):
    """Returns a kernel whose weights are rounded to what is nearest."""
    found = quantize_weights({"kernel": kernel}, bits=4)
    scale = found["kernel" + SCALE_SUFFIX]
    return dequantize("kernel", found["kernel"], scale, kernel.shape)


def fitted(kernel, inputs):
    integers, scale = round_kernel(kernel, inputs.T @ inputs)
    return dequantize("kernel", integers, scale, kernel.shape)


def error(kernel, rounded, inputs):
    """Returns by how much of their size outputs are off."""
    outputs = inputs @ kernel
    change = inputs @ rounded - outputs
    return np.sqrt(np.mean(change**2) / np.mean(outputs**2))


@pytest.mark.parametrize("num_inputs", [20, 32, 77, 96])
def test_outputs_are_nearer_than_with_the_nearest_weights(num_inputs):
    draw = np.random.default_rng(0).normal
    kernel = draw(size=(num_inputs, 24)).astype("float32")
    # Inputs that go together, as those of a model do.
    inputs = draw(size=(500, num_inputs // 4)) @ draw(
        size=(num_inputs // 4, num_inputs)
    )
    inputs += 0.1 * draw(size=inputs.shape)
    before = error(kernel, nearest(kernel), inputs)
    after = error(kernel, fitted(kernel, inputs), inputs)
    assert 0 < after < 0.6 * before
    # Of new inputs of the same kind, too, and of no other.
    assert error(kernel, fitted(kernel, inputs), draw(size=inputs.shape)) > (
        error(kernel, nearest(kernel), draw(size=inputs.shape))
    )


def test_inputs_that_have_nothing_in_common_change_nothing():
    kernel = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    np.testing.assert_array_equal(fitted(kernel, np.eye(64)), nearest(kernel))


def test_inputs_that_are_always_zero_are_rounded_to_what_is_nearest():
    kernel = np.random.default_rng(0).normal(size=(40, 8)).astype("float32")
    np.testing.assert_array_equal(
        fitted(kernel, np.zeros((5, 40))), nearest(kernel)
    )


@pytest.fixture
def model():
    model = GPTCausalLM(tiny_config(activation="swiglu"), name="gpt")
    model.build()
    return model


def test_every_kernel_of_the_blocks_is_rounded_and_nothing_else(model):
    rows = np.random.default_rng(0).integers(0, 10, (8, 8)).astype("int32")
    before = {v.path: v.numpy() for v in model.variables}
    found = quantize_kernels(model, {"token_ids": rows})
    layers = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, Projection)
    ]
    assert set(found) == {layer.kernel.path for layer in layers}
    for variable in model.variables:
        old, new = before[variable.path], variable.numpy()
        assert np.array_equal(old, new) == (variable.path not in found)
        if variable.path in found:
            again = dequantize(variable.path, *found[variable.path], old.shape)
            np.testing.assert_array_equal(new, again)


def test_nobody_watches_the_model_afterwards(model):
    rows = np.array([[1, 2, 3]], "int32")
    quantize_kernels(model, {"token_ids": rows})
    for layer in model._flatten_layers():
        assert "call" not in vars(layer)
    with pytest.raises(Exception, match="segment_ids"):
        quantize_kernels(
            model, {"token_ids": rows, "segment_ids": np.array(["no"])}
        )
    for layer in model._flatten_layers():
        assert "call" not in vars(layer)


def test_a_block_is_fitted_to_what_rounded_blocks_before_it_give(model):
    rows = np.random.default_rng(0).integers(0, 10, (8, 8)).astype("int32")
    query = model.backbone.blocks[1].attention.query_projection
    kernel, seen = query.kernel.numpy(), []

    def watch(inputs, **options):
        seen.append(np.asarray(inputs, "float32").reshape(-1, len(kernel)))
        return type(query).call(query, inputs, **options)

    def look():
        query.call = watch
        model({"token_ids": rows})
        del query.call
        return seen.pop()

    inputs_before = look()
    integers, scale = quantize_kernels(model, {"token_ids": rows})[
        query.kernel.path
    ]
    inputs = look()
    assert np.abs(inputs - inputs_before).max() > 0.01
    expected = round_kernel(kernel, inputs.T @ inputs)
    np.testing.assert_array_equal(integers, expected[0])
    np.testing.assert_array_equal(scale, expected[1])
