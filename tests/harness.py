"""Owns properties that hold for every class of a sort. Knows no class.

A `Subject` says how to create one instance and what it eats. Each property is
a function of a subject that asserts; `check_layer`, `check_backbone`,
`check_task` and `check_tokenizer` run one property, or all of them.
"""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from kerasgpt.serving.scan import check_ops

# XLA may add in another order than the plain graph does.
TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Subject:
    """One public class, made at its smallest.

    Attributes:
        cls: the class.
        create: () -> instance, unbuilt.
        inputs: () -> (first argument, dict of further call arguments), arrays
            and dicts of arrays.
        wrap: task -> model with our train step, for tasks.
    """

    cls: type
    create: Callable
    inputs: Callable = None
    wrap: Callable = None

    @property
    def name(self):
        return self.cls.__name__


def call(layer, inputs):
    """Returns the outputs of a layer as a flat list."""
    first, further = inputs
    first, further = keras.tree.map_structure(
        keras.ops.convert_to_tensor, (first, further)
    )
    return keras.tree.flatten(layer(first, **further))


def arrays(outputs):
    """Returns float32 or integer arrays of tensors."""
    return [
        keras.ops.convert_to_numpy(
            keras.ops.cast(output, "float32")
            if keras.backend.is_float_dtype(output.dtype)
            else output
        )
        for output in outputs
    ]


def assert_equal_outputs(actual, expected, tolerance=TOLERANCE):
    """Asserts that two flat lists of tensors are equal up to `tolerance`."""
    assert len(actual) == len(expected)
    for one, other in zip(arrays(actual), arrays(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def through_json(value):
    """Returns what is left of a value that was written as JSON."""
    return json.loads(json.dumps(value))


# Layers, backbones and tasks.


def config_survives_json(subject):
    layer = subject.create()
    config = through_json(layer.get_config())
    rebuilt = subject.cls.from_config(config)
    assert through_json(rebuilt.get_config()) == config

    serialised = through_json(keras.saving.serialize_keras_object(layer))
    rebuilt = keras.saving.deserialize_keras_object(serialised)
    assert type(rebuilt) is subject.cls
    assert through_json(rebuilt.get_config()) == config


def symbolic_equals_eager(subject):
    layer, inputs = subject.create(), subject.inputs()
    expected = call(layer, inputs)
    first, further = keras.tree.map_structure(
        lambda array: keras.Input(array.shape[1:], dtype=str(array.dtype)),
        inputs,
    )
    outputs = keras.tree.flatten(layer(first, **further))
    for symbol, value in zip(outputs, expected, strict=True):
        assert symbol.dtype == keras.backend.standardize_dtype(value.dtype)
        assert len(symbol.shape) == len(value.shape)
        for told, real in zip(symbol.shape, value.shape, strict=True):
            assert told in (None, real)
    model = keras.Model(keras.tree.flatten((first, further)), outputs)
    actual = keras.tree.flatten(model(keras.tree.flatten(inputs)))
    assert_equal_outputs(actual, expected)

    graph = tf.function(lambda: call(layer, inputs))
    assert_equal_outputs(graph(), expected)


def one_fit_step_learns(subject):
    layer, inputs = subject.create(), subject.inputs()
    first, further = keras.tree.map_structure(
        lambda array: keras.Input(array.shape[1:], dtype=str(array.dtype)),
        inputs,
    )
    output = keras.tree.flatten(layer(first, **further))[0]
    model = keras.Model(keras.tree.flatten((first, further)), output)
    before = [np.copy(weight) for weight in model.get_weights()]
    model.compile(keras.optimizers.SGD(0.1), "mse")
    targets = np.ones(keras.ops.shape(call(layer, inputs)[0]), "float32")
    history = model.fit(keras.tree.flatten(inputs), targets, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert_every_weight_moved(before, model)


def assert_every_weight_moved(before, model):
    moved = [
        not np.array_equal(old, new)
        for old, new in zip(before, model.get_weights(), strict=True)
    ]
    stuck = [
        weight.path
        for weight, has_moved in zip(model.weights, moved, strict=True)
        if not has_moved
    ]
    assert not stuck, f"one step left these weights as they were: {stuck}"


def _runs_under_policy(policy, first_dtype):
    def runs_under_policy(subject):
        keras.config.set_dtype_policy(policy)
        layer = subject.create()
        outputs = call(layer, subject.inputs())
        expected = first_dtype or layer.compute_dtype
        assert keras.backend.standardize_dtype(outputs[0].dtype) == expected
        for array in arrays(outputs):
            assert np.isfinite(array).all()
        assert {w.dtype for w in layer.trainable_weights} <= {"float32"}

    return runs_under_policy


def weights_reload(subject):
    layer, inputs = subject.create(), subject.inputs()
    expected = call(layer, inputs)
    rebuilt = subject.cls.from_config(through_json(layer.get_config()))
    call(rebuilt, inputs)
    rebuilt.set_weights(layer.get_weights())
    assert_equal_outputs(call(rebuilt, inputs), expected, tolerance=0)


def compiled_equals_plain(subject):
    layer, inputs = subject.create(), subject.inputs()
    expected = call(layer, inputs)
    compiled = tf.function(lambda: call(layer, inputs), jit_compile=True)
    assert_equal_outputs(compiled(), expected)


LAYER_PROPERTIES = {
    "config_survives_json": config_survives_json,
    "symbolic_equals_eager": symbolic_equals_eager,
    "one_fit_step_learns": one_fit_step_learns,
    "runs_in_float32": _runs_under_policy("float32", None),
    "runs_in_mixed_bfloat16": _runs_under_policy("mixed_bfloat16", None),
    "weights_reload": weights_reload,
    "compiled_equals_plain": compiled_equals_plain,
}


def check_layer(subject, name=None):
    """Checks one property, or all, of a layer."""
    _check(LAYER_PROPERTIES, subject, name)


# A backbone is a layer whose first argument is a dict of token arrays.
BACKBONE_PROPERTIES = LAYER_PROPERTIES


def check_backbone(subject, name=None):
    """Checks one property, or all, of a backbone."""
    _check(BACKBONE_PROPERTIES, subject, name)


# Tasks.


def _training_batch(subject):
    inputs, _ = subject.inputs()
    targets = np.roll(inputs["token_ids"], -1, axis=1)
    return inputs, targets, np.ones(targets.shape, "float32")


def stock_fit_learns(subject):
    task = subject.create()
    inputs, targets, sample_weight = _training_batch(subject)
    task.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
    )
    task.build()
    before = [np.copy(weight) for weight in task.get_weights()]
    history = task.fit(
        inputs, targets, sample_weight=sample_weight, epochs=3, verbose=0
    )
    assert_every_weight_moved(before, task)
    assert history.history["loss"][-1] < history.history["loss"][0]


def own_step_fit_learns(subject):
    task = subject.create()
    trained = subject.wrap(task)
    trained.compile(keras.optimizers.SGD(0.1))
    # The wrapper has built the task.
    assert task.built
    before = [np.copy(weight) for weight in task.get_weights()]
    batch = _training_batch(subject)
    dataset = tf.data.Dataset.from_tensors(batch)
    history = trained.fit(dataset, epochs=3, verbose=0)
    assert_every_weight_moved(before, task)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert trained.evaluate(dataset, verbose=0, return_dict=True)["loss"] > 0


TASK_PROPERTIES = {
    # `stock_fit_learns` asks for all that one step must do.
    **{
        name: check
        for name, check in LAYER_PROPERTIES.items()
        if check is not one_fit_step_learns
    },
    # Logits are float32 under every policy.
    "runs_in_mixed_bfloat16": _runs_under_policy("mixed_bfloat16", "float32"),
    "stock_fit_learns": stock_fit_learns,
    "own_step_fit_learns": own_step_fit_learns,
}


def check_task(subject, name=None):
    """Checks one property, or all, of a task model."""
    _check(TASK_PROPERTIES, subject, name)


# Tokenizers.

TEXTS = (
    "",
    "to be, or not to be",
    "  two  spaces\tand\r\nlines\n\n",
    "你好，世界！ mixed 中文 and English 123",
    "naïve café \U0001f600\U0001f468‍\U0001f469‍\U0001f467",
    "\x00 \x7f \u2581 \ufeff \ufffd \ufffe \U0010ffff \U0010ffff1 \u200b",
    "<|user|>",
)


def texts_survive(subject):
    tokenizer = subject.create()
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text, repr(text)


def ids_are_equal_everywhere(subject):
    tokenizer = subject.create()
    expected = [tokenizer.encode(text) for text in TEXTS]
    strings = tf.constant(TEXTS)

    assert tokenizer.encode_strings(strings).to_list() == expected
    rows = tokenizer.encode_batch(list(TEXTS), batch_size=2)
    assert [row.tolist() for row in rows] == expected
    graph = tf.function(tokenizer.encode_strings)
    assert graph(strings).to_list() == expected

    module = tf.Module()
    module.tokenizer = tokenizer
    module.encode = tf.function(
        tokenizer.encode_strings,
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    module.decode = tf.function(
        tokenizer.decode_ids,
        input_signature=[tf.RaggedTensorSpec([None, None], tf.int32)],
    )
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder)
        # A stock server has core and TF Text ops only.
        check_ops(folder)
        loaded = tf.saved_model.load(folder)
        ids = loaded.encode(strings)
        assert ids.to_list() == expected
        decoded = [text.decode() for text in loaded.decode(ids).numpy()]
        assert decoded == tokenizer.decode_batch(expected)


def files_reload(subject):
    tokenizer = subject.create()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_files(pathlib.Path(folder))
        loaded = subject.cls.load_files(pathlib.Path(folder))
    assert type(loaded) is type(tokenizer)
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert loaded.vocabulary_size == tokenizer.vocabulary_size
    assert loaded.token_bytes == tokenizer.token_bytes
    for text in TEXTS:
        assert loaded.encode(text) == tokenizer.encode(text)


def ids_count_bytes(subject):
    tokenizer = subject.create()
    assert len(tokenizer.token_bytes) == tokenizer.vocabulary_size
    plain = "to be, or not\nto be 你好"
    lengths = [tokenizer.token_bytes[i] for i in tokenizer.encode(plain)]
    assert sum(lengths) == len(plain.encode())


def typed_control_text_gives_no_control_id(subject):
    tokenizer = subject.create()
    control = set(tokenizer.control_tokens.values())
    assert len(control) >= 4
    for name, token_id in tokenizer.control_tokens.items():
        ids = tokenizer.encode(f"{name}{name} x{name}")
        assert ids
        assert not control & set(ids)
        assert tokenizer.decode([token_id]) == ""


def typed_control_text_comes_back(subject):
    tokenizer = subject.create()
    for name in tokenizer.control_tokens:
        ids = tokenizer.encode(f"{name}{name} x{name}")
        assert tokenizer.decode(ids) == f"{name}{name} x{name}"


# Of a tokenizer that need not give a text back.
PIECE_PROPERTIES = {
    "ids_are_equal_everywhere": ids_are_equal_everywhere,
    "files_reload": files_reload,
    "typed_control_text_gives_no_control_id": (
        typed_control_text_gives_no_control_id
    ),
}
TOKENIZER_PROPERTIES = {
    **PIECE_PROPERTIES,
    "texts_survive": texts_survive,
    "ids_count_bytes": ids_count_bytes,
    "typed_control_text_comes_back": typed_control_text_comes_back,
}


def check_tokenizer(subject, name=None):
    """Checks one property, or all, of a tokenizer."""
    _check(TOKENIZER_PROPERTIES, subject, name)


def _check(properties, subject, name):
    for chosen in [name] if name else properties:
        properties[chosen](subject)
