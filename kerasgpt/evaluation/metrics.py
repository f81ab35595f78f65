"""Owns metrics of language models as Keras metrics. Not: tasks (scoring.py)."""

import math

import keras
from keras import ops


@keras.saving.register_keras_serializable("kerasgpt")
class BitsPerByte(keras.metrics.Metric):
    """Cost of the text in bits, divided by its UTF-8 bytes.

    All counted tokens pay their nats, control tokens too; only those that
    stand for text bring bytes. Unlike perplexity it can be compared between
    tokenizers. `keras_nlp.metrics.Perplexity` is per token and not used.

    Args:
        token_bytes: list of int. UTF-8 bytes of each token id, 0 = control.

    Example:
        Two tokens of 2 and 4 bytes, each costing 3 ln 2 nats: 6 bits over 6
        bytes.

        >>> metric = BitsPerByte([2, 4])
        >>> metric.update_state([[2.0794415, 2.0794415]], [[0, 1]], [[1, 1]])
        >>> round(float(metric.result()), 4)
        1.0

    Reference: Gao et al. 2020, The Pile (arXiv 2101.00027), section 3.1.
    """

    def __init__(self, token_bytes, name="bits_per_byte", **kwargs):
        super().__init__(name=name, **kwargs)
        self.token_bytes = list(token_bytes)
        self.nats = self.add_weight(name="nats", initializer="zeros")
        self.bytes = self.add_weight(name="bytes", initializer="zeros")

    def update_state(self, losses, targets, sample_weight):
        """Adds tokens: losses (nats), targets (ids), weights, equal shapes."""
        sample_weight = ops.cast(sample_weight, "float32")
        table = ops.convert_to_tensor(self.token_bytes, "float32")
        lengths = ops.take(table, ops.convert_to_tensor(targets), axis=0)
        self.nats.assign_add(ops.sum(losses * sample_weight))
        self.bytes.assign_add(
            ops.sum(lengths * ops.cast(sample_weight > 0, "float32"))
        )

    def result(self):
        return self.nats / math.log(2) / ops.maximum(self.bytes, 1.0)

    def get_config(self):
        return {**super().get_config(), "token_bytes": self.token_bytes}
