import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from kerasgpt.layers.projection import Projection

WIDTH, UNITS = 8, 6
UNKNOWN = tf.TensorSpec([None, None, WIDTH], tf.float32)
every_bias = pytest.mark.parametrize("use_bias", [False, True])


def _layers(use_bias):
    """Returns a Projection and a Dense of the same weights."""
    layers = [
        cls(UNITS, use_bias=use_bias, bias_initializer="normal", name="output")
        for cls in (Projection, keras.layers.Dense)
    ]
    for layer in layers:
        layer.build((None, None, WIDTH))
    layers[0].set_weights(layers[1].get_weights())
    return layers


def _inputs(batch_size=2, length=5):
    rng = np.random.default_rng(batch_size)
    return ops.array(rng.normal(size=(batch_size, length, WIDTH)), "float32")


def _eager(layer):
    return layer


def _graph_of_unknown_shapes(layer):
    return tf.function(layer, input_signature=[UNKNOWN])


def _compiled(layer):
    return tf.function(layer, jit_compile=True)


@every_bias
@pytest.mark.parametrize("run", [_eager, _graph_of_unknown_shapes, _compiled])
def test_it_equals_dense(run, use_bias):
    projection, dense = map(run, _layers(use_bias))
    for inputs in (_inputs(), _inputs(3, 1), _inputs(1, 7)):
        outputs = projection(inputs)
        assert outputs.shape == (*inputs.shape[:2], UNITS)
        np.testing.assert_allclose(outputs, dense(inputs), atol=1e-6)


@every_bias
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_its_gradients_equal_those_of_dense(use_bias, training, jit_compile):
    inputs = tf.Variable(_inputs())

    @tf.function(jit_compile=jit_compile)
    def gradients(layer):
        with tf.GradientTape() as tape:
            loss = ops.sum(ops.sin(layer(inputs, training=training)))
        watched = [inputs, *(v.value for v in layer.trainable_variables)]
        return tape.gradient(loss, watched)

    projection, dense = map(gradients, _layers(use_bias))
    assert len(projection) == 2 + use_bias
    for one, other in zip(projection, dense, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_gradient_of_a_tall_kernel_is_computed_wide():
    def products(layer, training):
        @tf.function
        def gradient(inputs):
            with tf.GradientTape() as tape:
                outputs = layer(inputs, training=training)
            return tape.gradient(outputs, layer.kernel.value)

        graph = gradient.get_concrete_function(_inputs()).graph
        return {
            tuple(one.outputs[0].shape)
            for one in graph.get_operations()
            if one.type == "MatMul"
        }

    (tall, _), wide = _layers(False), Projection(WIDTH + 1)
    wide.build((None, None, WIDTH))
    assert (UNITS, WIDTH) in products(tall, True)
    assert (WIDTH, UNITS) in products(tall, False)
    assert (WIDTH, WIDTH + 1) in products(wide, True)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_gradient_that_is_not_finite_has_no_finite_norm(value):
    projection, _ = _layers(False)
    with tf.GradientTape() as tape:
        loss = ops.sum(value * projection(_inputs(), training=True))
    gradient = tape.gradient(loss, projection.kernel.value)
    assert not np.isfinite(float(ops.sum(ops.square(gradient))))


@every_bias
def test_its_variables_are_those_of_dense(use_bias):
    projection, dense = _layers(use_bias)
    for attribute in ("path", "shape", "dtype", "trainable"):
        assert [getattr(v, attribute) for v in projection.variables] == [
            getattr(v, attribute) for v in dense.variables
        ]


@every_bias
def test_a_graph_of_unknown_shapes_holds_few_operations_on_shapes(use_bias):
    def count(layer):
        run = _graph_of_unknown_shapes(layer)
        operations = run.get_concrete_function().graph.get_operations()
        others = {"Const", "Placeholder", "ReadVariableOp", "Identity", "NoOp"}
        others |= {"MatMul", "BiasAdd"}
        return len([one for one in operations if one.type not in others])

    projection, dense = map(count, _layers(use_bias))
    # Shape, two numbers of it, their packing, and two reshapes.
    assert projection <= 6 < dense


def test_the_length_may_be_unknown_to_a_functional_model():
    inputs = keras.Input((None, WIDTH))
    projection, dense = _layers(True)
    model = keras.Model(inputs, projection(inputs))
    assert model.output.shape == (None, None, UNITS)
    np.testing.assert_allclose(model(_inputs()), dense(_inputs()), atol=1e-6)


def test_it_computes_in_the_compute_dtype():
    projection = Projection(UNITS, dtype="mixed_bfloat16")
    assert projection(_inputs()).dtype == "bfloat16"
    assert projection.kernel.dtype == "float32"
