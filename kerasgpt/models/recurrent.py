"""Owns recurrent language models: RNN, GRU, LSTM. Not: their layers' steps.

A rung below the Transformer, with the same calls: `fit`, scoring, cached
decoding and saving know no difference.
"""

import dataclasses
from typing import NamedTuple

import keras
from keras import ops

from kerasgpt.config import Config, setting
from kerasgpt.layers.blocks import build_dropout
from kerasgpt.layers.recurrent import KINDS, RecurrentLayer
from kerasgpt.models.tied_lm import (
    ConfiguredModel,
    TiedLM,
    build_table,
    read_rows,
)


@dataclasses.dataclass(frozen=True)
class RecurrentConfig(Config):
    """Shape of a recurrent language model.

    Example:
        >>> RecurrentConfig(kind="rnn", vocabulary_size=3, model_dim=2,
        ...                 num_layers=1).num_parameters
        16
    """

    kind: str = setting("lstm", "what remembers", choices=tuple(sorted(KINDS)))
    vocabulary_size: int = setting(
        256, "rows of the embedding", unit="tokens", minimum=1
    )
    context_length: int = setting(
        256, "longest input that is trained", unit="tokens", minimum=1
    )
    num_layers: int = setting(2, "recurrent layers", minimum=1)
    model_dim: int = setting(
        256, "width of the embedding and of each state", minimum=1
    )
    dropout_rate: float = setting(
        0.0, "of what enters a layer and of the last", minimum=0.0, maximum=0.9
    )

    @property
    def num_parameters(self):
        """Int. Trainable numbers, counted without building the model."""
        width = self.model_dim
        num_gates, _ = KINDS[self.kind]
        layer = num_gates * (2 * width**2 + width)
        if self.kind == "gru":
            layer += width
        return self.num_layers * layer + self.vocabulary_size * width

    @property
    def training_flops_per_token(self):
        """Float. Forward and backward: 6 a parameter of a matrix."""
        return 6.0 * self.num_parameters


class RecurrentState(NamedTuple):
    """What a model remembers of the tokens it has read.

    Attributes:
        layers: tuple, one list of float (batch, model_dim) a layer.
    """

    layers: tuple

    def resized(self, num_slots):
        """Returns itself: it takes the same room for any number of tokens."""
        return self


@keras.saving.register_keras_serializable("kerasgpt")
class RecurrentBackbone(ConfiguredModel):
    """Token ids -> hidden states of a stack of recurrent layers.

    Args:
        config: RecurrentConfig, or the dict of one.

    Call arguments:
        inputs: dict of
            token_ids: int32 (batch, length);
            positions: int32 (batch, length), optional, default 0, 1, 2, …:
            where it is 0, what was read before is forgotten;
            segment_ids: int32 (batch, length), optional. 0 = padding, which
            changes nothing that is remembered.
        cache: RecurrentState of earlier tokens, or None.
        return_cache: bool. Return the state after the row.
        slot_writer: ignored, see `GPTBackbone`.

    Returns:
        float (batch, length, model_dim); with a cache or `return_cache` also
        the RecurrentState after the row.

    Example:
        >>> backbone = RecurrentBackbone(RecurrentConfig(model_dim=8))
        >>> tuple(backbone({"token_ids": ops.array([[1, 2, 3]])}).shape)
        (1, 3, 8)

    Reference: Mikolov et al. 2010, Recurrent neural network based language
    model (Interspeech); Zaremba et al. 2014 (arXiv 1409.2329), for layers and
    dropout.
    """

    config_class = RecurrentConfig

    def __init__(self, config, **kwargs):
        super().__init__(config, **kwargs)
        config = self.config
        self.token_embedding = build_table(
            config,
            keras.initializers.RandomNormal(stddev=0.05),
            self.dtype_policy,
        )
        self.dropouts = [
            build_dropout(
                config.dropout_rate, self.dtype_policy, name=f"dropout_{index}"
            )
            for index in range(config.num_layers + 1)
        ]
        self.recurrent_layers = [
            RecurrentLayer(
                config.kind,
                config.model_dim,
                dtype=self.dtype_policy,
                name=f"layer_{index}",
            )
            for index in range(config.num_layers)
        ]

    def call(
        self,
        inputs,
        cache=None,
        return_cache=False,
        slot_writer=None,
        training=None,
    ):
        token_ids, positions, segment_ids = read_rows(inputs)
        is_token = ops.not_equal(segment_ids, 0)
        # Padding forgets nothing either: what stands before it is asked for.
        is_known = ops.logical_or(
            ops.not_equal(positions, 0), ops.logical_not(is_token)
        )
        kept = ops.stack(
            [
                ops.cast(is_known, self.compute_dtype),
                ops.cast(is_token, self.compute_dtype),
            ],
            axis=-1,
        )
        hidden_states = self.token_embedding(token_ids)
        states = []
        for index, layer in enumerate(self.recurrent_layers):
            hidden_states, state = layer(
                self.dropouts[index](hidden_states, training=training),
                kept,
                states=None if cache is None else cache.layers[index],
            )
            states.append(state)
        hidden_states = self.dropouts[-1](hidden_states, training=training)
        if cache is None and not return_cache:
            return hidden_states
        return hidden_states, RecurrentState(tuple(states))


@keras.saving.register_keras_serializable("kerasgpt")
class RecurrentCausalLM(TiedLM):
    """Token ids -> logits of the token after each of them, by recurrence.

    Args:
        config: see `RecurrentBackbone`.

    Call arguments:
        inputs, cache: see `RecurrentBackbone`.

    Returns:
        float32 (batch, length, vocabulary_size) logits; with a cache also the
        RecurrentState after the row.

    Example:
        >>> model = RecurrentCausalLM(RecurrentConfig(kind="gru", model_dim=8))
        >>> tuple(model({"token_ids": ops.array([[1, 2, 3]])}).shape)
        (1, 3, 256)
    """

    config_class = RecurrentConfig
    backbone_class = RecurrentBackbone
