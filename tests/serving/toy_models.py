"""Small SavedModels that servers are tested with."""

import tensorflow as tf

from kerasgpt.files import atomic_folder


def _specs(**dtypes):
    return [
        tf.TensorSpec([None], dtype, name=name)
        for name, dtype in dtypes.items()
    ]


class Arithmetic(tf.Module):
    """TensorFlow Serving's half_plus_two, and what its tests ask beside."""

    def __init__(self, addend=2.0):
        super().__init__()
        self.addend = tf.Variable(addend)

    @tf.function(input_signature=_specs(x=tf.float32))
    def halve(self, x):
        return {"y": 0.5 * x + self.addend}

    @tf.function(input_signature=_specs(count=tf.int32, text=tf.string))
    def repeat(self, count, text):
        check = tf.debugging.Assert(
            tf.reduce_all(count >= 0), ["count must be at least 0"]
        )
        with tf.control_dependencies([check]):
            copies = tf.strings.join([tf.strings.as_string(count), text])
        return {
            "copies": copies,
            "copies_bytes": copies,
            "length": tf.strings.length(copies),
        }

    @tf.function(input_signature=_specs(x=tf.float32))
    def sum_up(self, x):
        return {"total": tf.reduce_sum(x)}

    @tf.function(input_signature=_specs(x=tf.float32))
    def solve(self, x):
        return {"y": tf.linalg.inv(tf.reshape(x, [2, 2]))}

    @tf.function(input_signature=_specs(rounds=tf.int32))
    def spin(self, rounds):
        """Takes about as long as `rounds` asks for."""
        last = tf.while_loop(
            lambda index, _: index < rounds[0],
            lambda index, value: (index + 1, tf.sin(value)),
            [0, tf.ones([64, 64])],
        )[1]
        return {"y": last[:1, 0]}


def save_arithmetic(base_path, version, *, addend=2.0):
    """Writes a version, whole or not at all; its answers tell the addend."""
    module = Arithmetic(addend)
    names = ("repeat", "sum_up", "solve", "spin")
    with atomic_folder(base_path / str(version)) as folder:
        tf.saved_model.save(
            module,
            str(folder),
            signatures={
                "serving_default": module.halve,
                **{name: getattr(module, name) for name in names},
            },
        )
    return base_path / str(version)


def save_documented_half_plus_two(base_path, version):
    """Writes half_plus_two as TensorFlow Serving's own script does.

    Of TensorFlow 1: variables of a session, x of shape [None, 1].
    """
    v1 = tf.compat.v1
    path = base_path / str(version)
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 1], name="x")
        factor = v1.get_variable("a", initializer=0.5)
        addend = v1.get_variable("b", initializer=2.0)
        session.run(v1.global_variables_initializer())
        outputs = {"y": factor * x + addend}
        v1.saved_model.simple_save(session, str(path), {"x": x}, outputs)
    return path
