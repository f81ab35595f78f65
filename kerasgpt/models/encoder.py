"""Owns the bidirectional model and its masked-language task. Not: masking.

Marks ([MASK], [CLS], …) are rows of the model's own table, after those of the
tokenizer, or control tokens of it: no text can hold one, whichever it is.
"""

import dataclasses

import keras
from keras import ops

from kerasgpt.config import Config, InputError, setting
from kerasgpt.layers.blocks import EncoderBlock, build_norm
from kerasgpt.layers.feed_forward import ACTIVATIONS
from kerasgpt.layers.masks import segment_mask
from kerasgpt.layers.output_transform import OutputTransform
from kerasgpt.models.gpt import GPTConfig
from kerasgpt.models.tied_lm import (
    EMBEDDING_NAME,
    ConfiguredModel,
    TiedLM,
    build_table,
    read_rows,
)

# [NEXT] and [OTHER] are never read: they are the two answers that are
# predicted at [CLS].
MARKS = ("[MASK]", "[CLS]", "[SEP]", "[NEXT]", "[OTHER]")


@dataclasses.dataclass(frozen=True)
class StackConfig(Config):
    """Shape of stacks of blocks that all have one width.

    Example:
        >>> StackConfig.from_depth(6).model_dim
        192
    """

    vocabulary_size: int = setting(
        256, "rows of the embedding", unit="tokens", minimum=1
    )
    context_length: int = setting(
        128, "longest input", unit="tokens", minimum=1
    )
    num_layers: int = setting(2, "blocks of a stack", minimum=1)
    num_heads: int = setting(4, "heads of a block", minimum=1)
    head_dim: int = setting(32, "width of a head", minimum=1)
    model_dim: int = setting(128, "width of the residual stream", minimum=1)
    inner_dim: int = setting(
        512, "inner width of the feed-forward network", minimum=1
    )
    activation: str = setting(
        "gelu", "of the feed-forward network", choices=tuple(ACTIVATIONS)
    )
    norm: str = setting("layer", "normalisation", choices=("rms", "layer"))
    dropout_rate: float = setting(
        0.0, "of embeddings and branches", minimum=0.0, maximum=0.9
    )

    @classmethod
    def from_depth(cls, depth, **fields):
        """Returns the shape of so many blocks: 32 wide each, at least 128."""
        width = max(128, 32 * depth)
        shape = {
            "num_layers": depth,
            "num_heads": width // 32,
            "model_dim": width,
            "inner_dim": 4 * width,
        }
        return cls(**{**shape, **fields})

    def as_decoder(self, num_layers, **fields):
        """Returns the GPTConfig of so many such blocks, which cost alike."""
        names = {field.name for field in dataclasses.fields(GPTConfig)}
        shared = {k: v for k, v in self.to_dict().items() if k in names}
        heads = {"num_layers": num_layers, "num_kv_heads": self.num_heads}
        return GPTConfig(**{**shared, **heads, **fields})


@dataclasses.dataclass(frozen=True)
class EncoderConfig(StackConfig):
    """Shape of a bidirectional Transformer.

    Example:
        >>> config = EncoderConfig(vocabulary_size=265 + len(MARKS))
        >>> config.mark_id("[MASK]"), config.mark_id("[CLS]")
        (265, 266)
    """

    vocabulary_size: int = setting(
        261, "rows of the embedding, marks included", unit="tokens", minimum=6
    )
    num_layers: int = setting(4, "encoder blocks", minimum=1)
    norm_order: str = setting(
        "pre",
        "normalise what enters a branch, or (post) its sum with the input",
        choices=("pre", "post"),
    )
    norm_epsilon: float = setting(1e-6, "added to the variance", minimum=0.0)
    embedding_norm: bool = setting(False, "normalise what the tables give")
    use_bias: bool = setting(False, "biases in all projections of the blocks")
    output_transform: bool = setting(
        False,
        "a projection, an activation and a norm before the table is read "
        "again, and a bias for each token",
    )
    # A list in JSON, which knows no tuples.
    mark_ids: list | tuple = setting(
        (), "ids of MARKS, or of the first three; empty = the last rows"
    )

    def __post_init__(self):
        super().__post_init__()
        ids = tuple(self.mark_ids)
        if ids and (
            len(ids) not in (3, len(MARKS))
            or not all(
                type(one) is int and 0 <= one < self.vocabulary_size
                for one in ids
            )
            or len(set(ids)) < len(ids)
        ):
            raise InputError(
                f"mark_ids={list(ids)}: must be 3 or {len(MARKS)} different "
                f"ids below vocabulary_size={self.vocabulary_size}."
            )
        if self.output_transform and self.activation in ("swiglu", "geglu"):
            raise InputError(
                f"output_transform=true: needs an activation without a gate; "
                f"received {self.activation}."
            )
        object.__setattr__(self, "mark_ids", ids)

    def mark_id(self, name):
        """Returns the id of a mark, for example "[MASK]".

        Raises:
            InputError: if the model has no such mark.
        """
        first = self.vocabulary_size - len(MARKS)
        ids = self.mark_ids or range(first, self.vocabulary_size)
        index = MARKS.index(name)
        if index >= len(ids):
            raise InputError(
                f"the model has no {name}: it is not asked whether a sentence "
                f"follows another."
            )
        return ids[index]

    @property
    def num_parameters(self):
        """Int. Trainable numbers, counted without building the model."""
        width, query = self.model_dim, self.num_heads * self.head_dim
        norm = width * (2 if self.norm == "layer" else 1)
        gates = 3 if self.activation in ("swiglu", "geglu") else 2
        block = 4 * width * query
        block += gates * width * self.inner_dim + 2 * norm
        if self.use_bias:
            block += 3 * query + 2 * width + (gates - 1) * self.inner_dim
        tables = self.vocabulary_size + self.context_length + 2
        norms = (self.norm_order == "pre") + self.embedding_norm
        total = self.num_layers * block + norms * norm + tables * width
        if self.output_transform:
            total += width * width + width + norm + self.vocabulary_size
        return total

    @property
    def training_flops_per_token(self):
        """Float. Forward and backward: 6 a matrix parameter, plus attention.

        Reference: Chowdhery et al. 2022, PaLM (arXiv 2204.02311), appendix B.
        """
        attended = self.num_heads * self.head_dim * self.context_length
        looked_up = (self.context_length + 2) * self.model_dim
        matrices = self.num_parameters - looked_up
        return 6.0 * matrices + 12.0 * self.num_layers * attended


@keras.saving.register_keras_serializable("kerasgpt")
class EncoderBackbone(ConfiguredModel):
    """Token ids -> hidden states that know what stands on both sides.

    Positions are a learned table, as in BERT, whose blocks are post-norm with
    biases and whose embeddings are normalised, too: see `EncoderConfig`. A
    segment's first sentence and what follows its first [SEP] get a row each,
    BERT's token types, which are counted here and not asked for.

    Args:
        config: EncoderConfig, or the dict of one.

    Call arguments:
        inputs: dict of token_ids, positions and segment_ids, as `GPTBackbone`
            takes them.

    Returns:
        float (batch, length, model_dim).

    Example:
        >>> backbone = EncoderBackbone(EncoderConfig(num_layers=1))
        >>> tuple(backbone({"token_ids": ops.array([[1, 2, 3]])}).shape)
        (1, 3, 128)

    Reference: Devlin et al. 2019, BERT (arXiv 1810.04805), section 3.
    """

    config_class = EncoderConfig

    def __init__(self, config, **kwargs):
        super().__init__(config, **kwargs)
        config = self.config
        small = keras.initializers.RandomNormal(stddev=0.02)
        self.token_embedding = build_table(config, small, self.dtype_policy)
        self.position_embedding, self.sentence_embedding = (
            keras.layers.Embedding(
                rows,
                config.model_dim,
                embeddings_initializer=small.clone(),
                dtype=self.dtype_policy,
                name=f"{name}_{EMBEDDING_NAME}",
            )
            for name, rows in (
                ("position", config.context_length),
                ("sentence", 2),
            )
        )
        if config.embedding_norm:
            self.embedding_norm = self._norm("embedding_norm")
        self.dropout = keras.layers.Dropout(
            config.dropout_rate, name="dropout", dtype=self.dtype_policy
        )
        kernel = keras.initializers.VarianceScaling(1.0, "fan_in", "normal")
        output = keras.initializers.VarianceScaling(
            1.0 / (2 * config.num_layers), "fan_in", "normal"
        )
        self.blocks = [
            EncoderBlock(
                num_heads=config.num_heads,
                head_dim=config.head_dim,
                inner_dim=config.inner_dim,
                activation=config.activation,
                norm=config.norm,
                norm_order=config.norm_order,
                norm_epsilon=config.norm_epsilon,
                use_bias=config.use_bias,
                dropout_rate=config.dropout_rate,
                kernel_initializer=kernel,
                output_initializer=output,
                dtype=self.dtype_policy,
                name=f"block_{index}",
            )
            for index in range(config.num_layers)
        ]
        self.final_norm = (
            self._norm("final_norm")
            if config.norm_order == "pre"
            else keras.layers.Identity(
                name="final_norm", dtype=self.dtype_policy
            )
        )

    def _norm(self, name):
        return build_norm(
            self.config.norm,
            epsilon=self.config.norm_epsilon,
            name=name,
            dtype=self.dtype_policy,
        )

    def call(self, inputs, training=None):
        token_ids, positions, segment_ids = read_rows(inputs)
        visible = segment_mask(segment_ids, segment_ids)
        hidden_states = (
            self.token_embedding(token_ids)
            + self.position_embedding(positions)
            + self.sentence_embedding(self._sentences(token_ids, visible))
        )
        if self.config.embedding_norm:
            hidden_states = self.embedding_norm(hidden_states)
        hidden_states = self.dropout(hidden_states, training=training)
        for block in self.blocks:
            hidden_states = block(
                hidden_states,
                attention_mask=visible,
                positions=positions,
                training=training,
            )
        return self.final_norm(hidden_states)

    def _sentences(self, token_ids, visible):
        """Returns 1 after a [SEP] of the same segment, else 0."""
        is_end = ops.equal(token_ids, self.config.mark_id("[SEP]"))
        place = ops.arange(ops.shape(token_ids)[1], dtype="int32")
        is_before = (place[None, :] < place[:, None])[None]
        return ops.cast(
            ops.any(
                ops.logical_and(
                    ops.logical_and(visible, is_before), is_end[:, None, :]
                ),
                axis=-1,
            ),
            "int32",
        )


@keras.saving.register_keras_serializable("kerasgpt")
class MaskedLM(TiedLM):
    """Token ids, some of them [MASK] -> logits of what stands at each place.

    The table of the tokens reads the last hidden states, as the GPT's does,
    after BERT's further projection if `output_transform` asks for it. Whether
    a second sentence follows the first is answered at [CLS] by a mark of the
    same table, so one loss trains both tasks.

    Args:
        config: see `EncoderBackbone`.

    Call arguments:
        inputs: see `EncoderBackbone`.

    Returns:
        float32 (batch, length, vocabulary_size) logits.

    Example:
        >>> model = MaskedLM(EncoderConfig(num_layers=1))
        >>> tuple(model({"token_ids": ops.array([[1, 256, 3]])}).shape)
        (1, 3, 261)
    """

    config_class = EncoderConfig
    backbone_class = EncoderBackbone

    def __init__(self, config, **kwargs):
        super().__init__(config, **kwargs)
        if self.config.output_transform:
            self.output_transform = OutputTransform(
                self.config.vocabulary_size,
                activation=self.config.activation,
                norm=self.config.norm,
                norm_epsilon=self.config.norm_epsilon,
                dtype=self.dtype_policy,
                name="output_transform",
            )

    def read(self, inputs, training=None):
        hidden_states = super().read(inputs, training=training)
        if self.config.output_transform:
            hidden_states = self.output_transform(hidden_states)
        return hidden_states

    def call(self, inputs, training=None):
        return self.project(self.read(inputs, training=training))

    def project(self, hidden_states):
        if not self.config.output_transform:
            return super().project(hidden_states)
        kernel = ops.cast(self.output_kernel(), "float32")
        return ops.matmul(
            ops.cast(hidden_states, "float32"), ops.transpose(kernel)
        )

    def output_kernel(self):
        table = super().output_kernel()
        if not self.config.output_transform:
            return table
        return self.output_transform.extend(table)
