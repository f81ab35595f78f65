"""Owns the model that reads one text and writes another. Not: searching."""

import dataclasses
from typing import NamedTuple

import keras
from keras import ops

from kerasgpt.config import InputError, setting
from kerasgpt.layers.blocks import CrossDecoderBlock, EncoderBlock, build_norm
from kerasgpt.layers.cache import KVCache, slot_writer
from kerasgpt.layers.feed_forward import ACTIVATIONS
from kerasgpt.layers.masks import attention_mask, segment_mask
from kerasgpt.models.encoder import StackConfig
from kerasgpt.models.tied_lm import (
    ConfiguredModel,
    TiedLM,
    build_table,
    read_rows,
)


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig(StackConfig):
    """Shape of an encoder and a decoder of equal depth.

    Example:
        >>> EncoderDecoderConfig.from_depth(2, vocabulary_size=300).model_dim
        128
    """

    activation: str = setting(
        "relu2", "of the feed-forward network", choices=tuple(ACTIVATIONS)
    )
    norm: str = setting("rms", "normalisation", choices=("rms", "layer"))
    qk_norm: bool = setting(True, "RMS-normalise queries and keys")
    rotary_base: float = setting(
        10000.0, "wavelength base of rotary positions", minimum=1.0
    )

    def __post_init__(self):
        super().__post_init__()
        if self.head_dim % 2:
            raise InputError(
                f"head_dim={self.head_dim}: must be even for rotary positions."
            )

    @property
    def num_parameters(self):
        """Int. Trainable numbers, counted without building the model."""
        width, head = self.model_dim, self.num_heads * self.head_dim
        norm = width * (2 if self.norm == "layer" else 1)
        gates = 3 if self.activation in ("swiglu", "geglu") else 2
        attention = 4 * width * head + norm
        if self.qk_norm:
            attention += 2 * self.head_dim
        network = gates * width * self.inner_dim + norm
        pair = 3 * attention + 2 * network
        table = self.vocabulary_size * width
        return self.num_layers * pair + 2 * norm + table

    @property
    def training_flops_per_token(self):
        """Float. Forward and backward, of a position that both sides have."""
        attended = self.num_heads * self.head_dim * self.context_length
        return 6.0 * self.num_parameters + 36.0 * self.num_layers * attended


class Seq2SeqCache(NamedTuple):
    """What a decoder knows: the source, and the tokens it has written.

    Attributes:
        target: KVCache.
        source: KVCache, of which nothing is written any more.
        is_source: bool (batch, source_length). False = padding.
    """

    target: KVCache
    source: KVCache
    is_source: object

    def resized(self, num_slots):
        """Returns a cache of so many target slots, the new ones zero."""
        return self._replace(target=self.target.resized(num_slots))


@keras.saving.register_keras_serializable("kerasgpt")
class EncoderDecoderBackbone(ConfiguredModel):
    """Source ids and target ids -> hidden states of the target.

    One table for both languages; rotary positions on both sides.

    Args:
        config: EncoderDecoderConfig, or the dict of one.

    Call arguments:
        inputs: dict of
            token_ids, positions, segment_ids: of the target, as `GPTBackbone`
            takes them;
            source_ids, source_positions, source_segment_ids: of the source.
            Target tokens see the source of their own segment.
            With a cache only token_ids and positions.
        cache: Seq2SeqCache of the source and of earlier tokens, or None. A
            row is then one segment.
        return_cache: bool. Without a cache: return one that holds these
            tokens; rows are then one segment each.
        slot_writer: see `GPTBackbone`.

    Returns:
        float (batch, length, model_dim); with a cache or `return_cache` also
        the Seq2SeqCache.

    Example:
        >>> backbone = EncoderDecoderBackbone(EncoderDecoderConfig())
        >>> source, target = ops.array([[1, 2, 3]]), ops.array([[4, 5]])
        >>> tuple(backbone({"source_ids": source, "token_ids": target}).shape)
        (1, 2, 128)

    Reference: Vaswani et al. 2017 (arXiv 1706.03762), section 3, with the
    normalisation and positions of `GPTBackbone`.
    """

    config_class = EncoderDecoderConfig

    def __init__(self, config, **kwargs):
        super().__init__(config, **kwargs)
        config = self.config
        self.token_embedding = build_table(
            config,
            keras.initializers.RandomNormal(stddev=0.02),
            self.dtype_policy,
        )
        self.dropout = keras.layers.Dropout(
            config.dropout_rate, name="dropout", dtype=self.dtype_policy
        )
        shared = {
            "num_heads": config.num_heads,
            "head_dim": config.head_dim,
            "inner_dim": config.inner_dim,
            "rotary_base": config.rotary_base,
            "qk_norm": config.qk_norm,
            "activation": config.activation,
            "norm": config.norm,
            "dropout_rate": config.dropout_rate,
            "kernel_initializer": keras.initializers.VarianceScaling(
                1.0, "fan_in", "normal"
            ),
            "output_initializer": keras.initializers.VarianceScaling(
                1.0 / (2 * config.num_layers), "fan_in", "normal"
            ),
            "dtype": self.dtype_policy,
        }
        self.encoder_blocks = [
            EncoderBlock(name=f"encoder_block_{index}", **shared)
            for index in range(config.num_layers)
        ]
        self.decoder_blocks = [
            CrossDecoderBlock(name=f"decoder_block_{index}", **shared)
            for index in range(config.num_layers)
        ]
        self.encoder_norm, self.final_norm = (
            build_norm(
                config.norm, epsilon=1e-6, name=name, dtype=self.dtype_policy
            )
            for name in ("encoder_norm", "final_norm")
        )

    def encode(self, inputs, training=None):
        """Returns float (batch, source_length, model_dim), and its segments.

        Args:
            inputs: dict of source_ids, perhaps source_positions and
                source_segment_ids.
        """
        token_ids, positions, segment_ids = read_rows(inputs, "source_")
        visible = segment_mask(segment_ids, segment_ids)
        hidden_states = self.token_embedding(token_ids)
        hidden_states = self.dropout(hidden_states, training=training)
        for block in self.encoder_blocks:
            hidden_states = block(
                hidden_states,
                attention_mask=visible,
                positions=positions,
                training=training,
            )
        return self.encoder_norm(hidden_states), segment_ids

    def call(
        self,
        inputs,
        cache=None,
        return_cache=False,
        slot_writer=slot_writer,
        training=None,
    ):
        token_ids, positions, segment_ids = read_rows(inputs)
        source, write = None, None
        if cache is None:
            source, source_segments = self.encode(inputs, training=training)
            is_source = ops.not_equal(source_segments, 0)
            visible = attention_mask(
                positions, segment_ids, positions, segment_ids
            )
            source_visible = segment_mask(segment_ids, source_segments)
        else:
            is_source = cache.is_source
            slots = ops.arange(
                ops.shape(cache.target.keys[0])[2], dtype="int32"
            )
            visible = slots[None, None] <= positions[:, :, None]
            write = slot_writer(cache.target.keys[0], positions)
            source_visible = ops.logical_and(
                is_source[:, None], (positions >= 0)[:, :, None]
            )
        hidden_states = self.token_embedding(token_ids)
        hidden_states = self.dropout(hidden_states, training=training)
        kept = []
        for index, block in enumerate(self.decoder_blocks):
            known = {}
            if cache is not None:
                known = {
                    "keys": cache.target.keys[index],
                    "values": cache.target.values[index],
                    "source_keys": cache.source.keys[index],
                    "source_values": cache.source.values[index],
                }
            hidden_states, *layer = block(
                hidden_states,
                attention_mask=visible,
                source=source,
                source_mask=source_visible,
                positions=positions,
                write=write,
                is_causal=cache is None,
                training=training,
                **known,
            )
            kept.append(layer)
        hidden_states = self.final_norm(hidden_states)
        if cache is None and not return_cache:
            return hidden_states
        keys, values, source_keys, source_values = zip(*kept, strict=True)
        return hidden_states, Seq2SeqCache(
            KVCache(keys, values),
            KVCache(source_keys, source_values),
            is_source,
        )


@keras.saving.register_keras_serializable("kerasgpt")
class Seq2SeqLM(TiedLM):
    """A source and the beginning of a target -> logits of what follows.

    Args:
        config: see `EncoderDecoderBackbone`.

    Call arguments:
        inputs, cache: see `EncoderDecoderBackbone`.

    Returns:
        float32 (batch, length, vocabulary_size) logits; with a cache also the
        cache that holds these tokens.

    Example:
        >>> model = Seq2SeqLM(EncoderDecoderConfig(vocabulary_size=9))
        >>> source, target = ops.array([[1, 2, 3]]), ops.array([[4, 5]])
        >>> tuple(model({"source_ids": source, "token_ids": target}).shape)
        (1, 2, 9)
    """

    config_class = EncoderDecoderConfig
    backbone_class = EncoderDecoderBackbone
