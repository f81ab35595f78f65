"""Owns what models share: their configuration, and a table that also writes.

Not: what stands between reading a token and writing one.
"""

import keras
from keras import ops

# Parameters named so are embedding tables: Muon leaves them to AdamW, and
# they are not decayed. Keras' Muon looks for this very word in the path.
EMBEDDING_NAME = "embedding"


class ConfiguredModel(keras.Model):
    """A model that one frozen configuration describes.

    Args:
        config: instance of the class' `config_class`, or the dict of one.
        fill: function of a layer, gives each its weights once it is built and
            before the next is: at no time is more held than they take. `None`
            = random ones.
    """

    config_class = None

    def __init__(self, config, *, fill=None, **kwargs):
        super().__init__(**kwargs)
        if isinstance(config, dict):
            config = self.config_class.from_dict(config)
        self.config = config
        self.fill = fill

    def build(self, input_shape=None):
        # Those built already have their weights: a task's backbone.
        for layer in self.layers:
            if not layer.built:
                layer.build((None, None, self.config.model_dim))
                if self.fill:
                    self.fill(layer)
        self.built = True

    def get_config(self):
        return {
            "name": self.name,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "config": self.config.to_dict(),
        }


class TiedLM(ConfiguredModel):
    """A backbone whose table of tokens also reads its hidden states.

    Args:
        config, fill: see `ConfiguredModel`.
        backbone_settings: dict. Further arguments of the backbone.

    Call arguments:
        inputs, cache: see the backbone.

    Returns:
        float32 (batch, length, vocabulary_size) logits; with a cache also the
        cache that holds these tokens.
    """

    backbone_class = None

    def __init__(self, config, *, fill=None, backbone_settings=None, **kwargs):
        super().__init__(config, fill=fill, **kwargs)
        self.backbone = self.backbone_class(
            self.config,
            fill=fill,
            name="backbone",
            dtype=self.dtype_policy,
            **(backbone_settings or {}),
        )

    def build(self, input_shape=None):
        self.backbone.build()
        super().build()

    def read(self, inputs, training=None):
        """Returns what `output_kernel` turns into logits, in training."""
        return self.backbone(inputs, training=training)

    def call(self, inputs, cache=None, training=None):
        outputs = self.backbone(inputs, cache=cache, training=training)
        hidden_states = outputs if cache is None else outputs[0]
        logits = self.project(hidden_states)
        return logits if cache is None else (logits, outputs[1])

    def project(self, hidden_states):
        """Returns the logits (…, vocabulary_size) of hidden states."""
        return self.backbone.token_embedding(hidden_states, reverse=True)

    def output_kernel(self):
        """Returns the (vocabulary_size, model_dim) matrix of `project`."""
        return ops.convert_to_tensor(self.backbone.token_embedding.embeddings)


def build_table(config, initializer, dtype, *, tie_weights=True):
    """Returns the layer that turns ids into vectors, and back into logits."""
    return keras.layers.ReversibleEmbedding(
        config.vocabulary_size,
        config.model_dim,
        tie_weights=tie_weights,
        embeddings_initializer=initializer,
        reverse_dtype="float32",
        dtype=dtype,
        name=f"token_{EMBEDDING_NAME}",
    )


def read_rows(inputs, prefix=""):
    """Returns int32 ids, positions and segments: one text a row by default.

    Args:
        inputs: dict of token_ids, perhaps positions and segment_ids, all
            (batch, length).
        prefix: str, before these names; "token_ids" is "source_ids" then.
    """
    token_ids = ops.convert_to_tensor(
        inputs[f"{prefix or 'token_'}ids"], "int32"
    )
    positions = inputs.get(f"{prefix}positions")
    segment_ids = inputs.get(f"{prefix}segment_ids")
    if positions is None:
        positions = ops.broadcast_to(
            ops.arange(ops.shape(token_ids)[1], dtype="int32")[None],
            ops.shape(token_ids),
        )
    if segment_ids is None:
        segment_ids = ops.ones_like(token_ids)
    return (
        token_ids,
        ops.convert_to_tensor(positions, "int32"),
        ops.convert_to_tensor(segment_ids, "int32"),
    )
