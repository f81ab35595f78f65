"""Owns scoring a language model by the likelihood of texts. Not: questions.

The same rows, contexts and sums for all models: counted n-grams, recurrent
networks and Transformers.
"""

import math
from typing import Protocol

import numpy as np
import tensorflow as tf
from keras import ops

# Positions scored at a time: their logits, of 4 bytes each, fit into memory.
BATCH_LOGITS = 1 << 24


class LanguageModel(Protocol):
    """What can be scored: `NGramModel`, or a network as `NetworkScorer`."""

    vocabulary_size: int

    def log_probabilities(self, inputs, targets):
        """Returns the natural logarithm of each target's probability.

        Args:
            inputs: dict of token_ids, positions and segment_ids, int arrays
                (batch, length).
            targets: int (batch, length). The token after each.

        Returns:
            float array (batch, length). Of padding, any number.
        """


class NetworkScorer:
    """A task model as a `LanguageModel`.

    Args:
        model: task model: `model(inputs)` gives logits, see `GPTCausalLM`.

    Example:
        >>> from kerasgpt.models import GPTCausalLM, GPTConfig
        >>> scorer = NetworkScorer(GPTCausalLM(GPTConfig.from_depth(1)))
        >>> row = np.array([[1, 2, 3]])
        >>> scorer.log_probabilities({"token_ids": row}, row).shape
        (1, 3)
    """

    def __init__(self, model):
        self.model = model
        self.vocabulary_size = model.config.vocabulary_size
        self._score = tf.function(self._traced_score)

    def log_probabilities(self, inputs, targets):
        inputs = {
            name: tf.constant(value, tf.int32) for name, value in inputs.items()
        }
        return self._score(inputs, tf.constant(targets, tf.int32)).numpy()

    def _traced_score(self, inputs, targets):
        scores = ops.log_softmax(
            ops.cast(self.model(inputs, training=False), "float32"), axis=-1
        )
        return ops.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]


def score_rows(model, rows, token_bytes):
    """Returns what the counted tokens of rows cost a model.

    Args:
        model: LanguageModel.
        rows: PackedRows.
        token_bytes: list of int. UTF-8 bytes of each token id, 0 = control.

    Returns:
        dict of float: loss (nats a token), perplexity and bits_per_byte, all
        infinite if a token was held to be impossible; and "tokens", int.

    Example:
        Even guesses of 8 tokens of one byte cost 3 bits each:

        >>> from kerasgpt.data.packing import pack
        >>> from kerasgpt.models.ngram import NGramModel
        >>> rows = pack(np.arange(6), np.ones(6), np.array([0, 6]),
        ...             row_length=4)
        >>> score = score_rows(NGramModel(0, vocabulary_size=8), rows, [1] * 8)
        >>> score["tokens"], score["bits_per_byte"]
        (5, 3.0)

    Reference: Gao et al. 2020, The Pile (arXiv 2101.00027), section 3.1.
    """
    lengths = np.asarray(token_bytes)
    nats, weight, num_bytes = 0.0, 0.0, 0
    batch_size = max(
        1, BATCH_LOGITS // (model.vocabulary_size * rows.row_length)
    )
    for first in range(0, len(rows), batch_size):
        numbers = range(first, min(first + batch_size, len(rows)))
        token_ids, positions, segment_ids, targets, weights = rows.assemble(
            numbers
        )
        scores = model.log_probabilities(
            {
                "token_ids": token_ids,
                "positions": positions,
                "segment_ids": segment_ids,
            },
            targets,
        )
        is_counted = weights > 0
        scores = np.where(is_counted, scores, 0.0)
        nats -= float((scores * weights).sum(dtype=np.float64))
        weight += float(weights.sum(dtype=np.float64))
        num_bytes += int(lengths[targets[is_counted]].sum())
    loss = nats / max(weight, 1.0)
    return {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "bits_per_byte": nats / math.log(2) / max(num_bytes, 1),
        "tokens": int(weight),
    }
