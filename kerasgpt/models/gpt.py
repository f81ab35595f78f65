"""Owns the decoder-only model. Not: tokens to text, sampling, the train step.

One `call` serves fit, scoring, cached decoding and export.
"""

import dataclasses
import functools

import keras
from keras import ops

from kerasgpt.config import Config, InputError, setting
from kerasgpt.layers.attention import FUSED_BACKENDS
from kerasgpt.layers.blocks import DecoderBlock, build_dropout, build_norm
from kerasgpt.layers.cache import KVCache, allocate_cache, slot_writer
from kerasgpt.layers.feed_forward import ACTIVATIONS
from kerasgpt.layers.masks import attention_mask
from kerasgpt.models.tied_lm import (
    EMBEDDING_NAME,
    ConfiguredModel,
    TiedLM,
    build_table,
    read_rows,
)

ACTIVATION_NAMES = tuple(ACTIVATIONS)


@dataclasses.dataclass(frozen=True)
class RotaryScaling(Config):
    """How rotary positions reach beyond the context that was trained.

    See `RotaryEmbedding`, whose arguments these are.
    """

    factor: float = setting(
        1.0, "how much slower pairs turn; 1 = as fast as ever", minimum=1.0
    )
    original_length: int = setting(
        0, "context that was trained; 0 = slow all pairs", minimum=0
    )
    low_turns: float = setting(1.0, "below, a pair slows by the factor")
    high_turns: float = setting(4.0, "above, a pair keeps its pace")

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.low_turns < self.high_turns:
            raise InputError(
                f"low_turns must be above 0 and below high_turns; received "
                f"{self.low_turns} and {self.high_turns}."
            )


@dataclasses.dataclass(frozen=True)
class GPTConfig(Config):
    """Shape of a decoder-only Transformer, from GPT-1's to Llama's and Qwen's.

    Raises:
        ValueError: for widths that do not fit together.

    Example:
        >>> GPTConfig.from_depth(12, vocabulary_size=50257).model_dim
        768
    """

    vocabulary_size: int = setting(256, "rows of the embedding", unit="tokens")
    context_length: int = setting(256, "longest input", unit="tokens")
    num_layers: int = setting(4, "decoder blocks")
    num_heads: int = setting(4, "query heads of a block")
    num_kv_heads: int = setting(4, "key/value heads, a divisor of num_heads")
    head_dim: int = setting(32, "width of a head")
    model_dim: int = setting(128, "width of the residual stream")
    inner_dim: int = setting(512, "inner width of the feed-forward network")
    activation: str = setting(
        "relu2",
        "of the feed-forward network",
        choices=ACTIVATION_NAMES,
    )
    norm: str = setting("rms", "normalisation", choices=("rms", "layer"))
    norm_order: str = setting(
        "pre",
        "normalise what enters a branch, or (post) its sum with the input",
        choices=("pre", "post"),
    )
    norm_epsilon: float = setting(1e-6, "added to the variance")
    position: str = setting(
        "rotary",
        "how order enters: rotated queries and keys, or a learned table",
        choices=("rotary", "learned"),
    )
    rotary_base: float = setting(10000.0, "wavelength base of rotary positions")
    rotary_scaling: RotaryScaling = setting(
        RotaryScaling(), "of contexts longer than was trained"
    )
    qk_norm: bool = setting(True, "RMS-normalise queries and keys")
    use_bias: bool = setting(False, "biases in all projections")
    qkv_bias: bool = setting(False, "biases of queries, keys and values alone")
    tie_embeddings: bool = setting(True, "one table reads and writes tokens")
    dropout_rate: float = setting(0.0, "of embeddings and residual branches")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            is_count = isinstance(value, int) and not isinstance(value, bool)
            if is_count and value < 1:
                raise ValueError(
                    f"{field.name} must be at least 1; received {value}."
                )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads; received "
                f"{self.num_heads} and {self.num_kv_heads}."
            )
        if self.position == "rotary" and self.head_dim % 2:
            raise ValueError(
                f"rotary positions need an even head_dim; received "
                f"{self.head_dim}."
            )

    @classmethod
    def from_depth(cls, depth, **overrides):
        """Returns the shape that one dial, the number of layers, implies.

        The width is 8 times the squared depth in steps of 64, at least 128
        and at most 64 a layer: 128 up to 4 layers, 256 at 6, 512 at 8, 768 at
        12 (GPT-2 small). Heads are 64 wide, 32 below a width of 256, so that
        a small model still has four.

        Args:
            depth: int. Decoder blocks.
            **overrides: any field; `None` keeps the derived value.

        Raises:
            ValueError: if depth < 1, or overrides do not fit together.
        """
        if depth < 1:
            raise ValueError(f"depth must be at least 1; received {depth}.")
        chosen = {k: v for k, v in overrides.items() if v is not None}
        width = min(64 * round(8 * depth**2 / 64), 64 * depth)
        model_dim = chosen.get("model_dim", max(128, width))
        head_dim = chosen.get("head_dim", 64 if model_dim >= 256 else 32)
        # A width of 0 is refused below, where all widths are checked.
        fitting = model_dim // max(1, head_dim)
        num_heads = chosen.get("num_heads", max(1, fitting))
        derived = {
            "num_layers": depth,
            "model_dim": model_dim,
            "head_dim": head_dim,
            "num_heads": num_heads,
            "num_kv_heads": num_heads,
            "inner_dim": 4 * model_dim,
        }
        return cls(**{**derived, **chosen})

    @property
    def num_parameters(self):
        """Int. Trainable numbers, counted without building the model."""
        width, inner = self.model_dim, self.inner_dim
        query, key = (
            self.num_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
        )
        gated = self.activation in ("swiglu", "geglu")
        norm = width * (2 if self.norm == "layer" else 1)
        block = 2 * norm + 2 * width * query + 2 * width * key
        block += (3 if gated else 2) * width * inner
        if self.qk_norm:
            block += 2 * self.head_dim
        if self.use_bias:
            block += 2 * width + inner * (2 if gated else 1)
        if self.use_bias or self.qkv_bias:
            block += query + 2 * key
        tables = self.vocabulary_size * (1 if self.tie_embeddings else 2)
        if self.position == "learned":
            tables += self.context_length
        final_norm = norm if self.norm_order == "pre" else 0
        return self.num_layers * block + final_norm + tables * width

    @property
    def training_flops_per_token(self):
        """Float. Forward and backward: 6 a matrix parameter, plus attention.

        Reference: Chowdhery et al. 2022, PaLM (arXiv 2204.02311), appendix B.
        """
        table = self.vocabulary_size * self.model_dim
        # The embedding is a look-up; as output head it is a matrix product.
        matrices = self.num_parameters - (0 if self.tie_embeddings else table)
        attended = self.num_heads * self.head_dim * self.context_length
        return 6 * matrices + 12 * self.num_layers * attended


@dataclasses.dataclass(frozen=True)
class ModelConfig(Config):
    """One dial, `depth`, and what may be set apart from it.

    Every `None` is derived from the depth or from the data.
    """

    depth: int = setting(
        4, "decoder blocks; sets width, heads and more", minimum=1
    )
    context_length: int | None = setting(
        None,
        "longest input; none = 256, or what your conversations need",
        unit="tokens",
        minimum=8,
    )
    model_dim: int | None = setting(None, "width; none = from depth", minimum=1)
    num_heads: int | None = setting(
        None, "query heads; none = from width", minimum=1
    )
    num_kv_heads: int | None = setting(None, "none = num_heads", minimum=1)
    head_dim: int | None = setting(
        None, "none = 32, 64 from a width of 256", minimum=1
    )
    inner_dim: int | None = setting(None, "none = 4 widths", minimum=1)
    activation: str = setting(
        "relu2", "of the feed-forward network", choices=ACTIVATION_NAMES
    )
    norm: str = setting("rms", "normalisation", choices=("rms", "layer"))
    position: str = setting(
        "rotary", "how order enters", choices=("rotary", "learned")
    )
    rotary_base: float = setting(
        10000.0, "wavelength base of rotary positions", minimum=1.0
    )
    qk_norm: bool = setting(True, "RMS-normalise queries and keys")
    use_bias: bool = setting(False, "biases in all projections")
    tie_embeddings: bool = setting(True, "one table reads and writes tokens")
    dropout_rate: float = setting(
        0.0, "of embeddings and residual branches", minimum=0.0, maximum=0.9
    )

    def build_config(self, *, vocabulary_size, context_length):
        """Returns the GPTConfig for a vocabulary and a context.

        Args:
            vocabulary_size: int.
            context_length: int, tokens, where none is set here.

        Raises:
            InputError: if the settings do not fit together.
        """
        values = self.to_dict()
        values.pop("depth")
        values["context_length"] = self.context_length or context_length
        try:
            return GPTConfig.from_depth(
                self.depth, vocabulary_size=vocabulary_size, **values
            )
        except ValueError as error:
            raise InputError(f"model: {error}") from error


@keras.saving.register_keras_serializable("kerasgpt")
class GPTBackbone(ConfiguredModel):
    """Token ids -> hidden states of a stack of causal decoder blocks.

    Args:
        config: GPTConfig, or the dict of one.
        rematerialize: bool. In training, compute what is inside the blocks
            twice instead of keeping it: less memory, more time.
        fill: see `ConfiguredModel`.

    Call arguments:
        inputs: dict of
            token_ids: int32 (batch, length);
            positions: int32 (batch, length), optional, default 0, 1, 2, …;
            segment_ids: int32 (batch, length), optional, default 1. Tokens
                see their own segment only; 0 = padding.
            Without a cache a segment's tokens stand in their order.
        cache: KVCache of earlier tokens, or None. A row is then one segment,
            and its tokens see it up to their own positions.
        return_cache: bool. Without a cache: return one that holds these
            tokens, a slot each.
        slot_writer: function of a layer's buffer and the positions, returns
            one that writes into such buffers; as the one of layers/cache.py.

    Returns:
        float (batch, length, model_dim); with a cache or `return_cache` also
        the cache that holds these tokens.

    Example:
        >>> backbone = GPTBackbone(GPTConfig.from_depth(2))
        >>> tuple(backbone({"token_ids": ops.array([[1, 2, 3]])}).shape)
        (1, 3, 128)

    Raises:
        ValueError: for dropout in what is rematerialised, which would be
            another the second time.

    Reference: Radford et al. 2019 (GPT-2), section 2.3; Touvron et al. 2023,
    Llama (arXiv 2302.13971), section 2.2, for the RMSNorm/rotary shape; Chen
    et al. 2016 (arXiv 1604.06174), section 4, for rematerialisation.
    """

    config_class = GPTConfig

    def __init__(self, config, *, rematerialize=False, fill=None, **kwargs):
        super().__init__(config, fill=fill, **kwargs)
        config = self.config
        if rematerialize and config.dropout_rate:
            raise ValueError(
                f"rematerialize needs dropout_rate=0; received "
                f"{config.dropout_rate}."
            )
        self.rematerialize = rematerialize
        # Small tables keep the first logits near zero, so that the first loss
        # is near ln V; kernels keep the variance of what they read.
        table = keras.initializers.RandomNormal(stddev=0.02)
        kernel = keras.initializers.VarianceScaling(1.0, "fan_in", "normal")
        output = keras.initializers.VarianceScaling(
            1.0 / (2 * config.num_layers), "fan_in", "normal"
        )
        if fill:
            table = kernel = output = keras.initializers.Zeros()
        self.token_embedding = build_table(
            config,
            table,
            self.dtype_policy,
            tie_weights=config.tie_embeddings,
        )
        if config.position == "learned":
            self.position_embedding = keras.layers.Embedding(
                config.context_length,
                config.model_dim,
                embeddings_initializer=table.clone(),
                dtype=self.dtype_policy,
                name=f"position_{EMBEDDING_NAME}",
            )
        self.dropout = build_dropout(config.dropout_rate, self.dtype_policy)
        self.blocks = [
            DecoderBlock(
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                inner_dim=config.inner_dim,
                rotary_base=(
                    config.rotary_base if config.position == "rotary" else None
                ),
                rotary_scaling=config.rotary_scaling.to_dict(),
                qk_norm=config.qk_norm,
                activation=config.activation,
                norm=config.norm,
                norm_order=config.norm_order,
                norm_epsilon=config.norm_epsilon,
                use_bias=config.use_bias,
                qkv_bias=config.qkv_bias,
                dropout_rate=config.dropout_rate,
                kernel_initializer=kernel,
                output_initializer=output,
                dtype=self.dtype_policy,
                name=f"block_{index}",
            )
            for index in range(config.num_layers)
        ]
        self.final_norm = (
            build_norm(
                config.norm,
                epsilon=config.norm_epsilon,
                name="final_norm",
                dtype=self.dtype_policy,
            )
            if config.norm_order == "pre"
            else keras.layers.Identity(
                name="final_norm", dtype=self.dtype_policy
            )
        )

    def call(
        self,
        inputs,
        cache=None,
        return_cache=False,
        slot_writer=slot_writer,
        training=None,
    ):
        # Causal rows of one segment each: a fused kernel needs no mask.
        is_plain = cache is None and not any(
            inputs.get(name) is not None
            for name in ("positions", "segment_ids")
        )
        is_fused = is_plain and keras.backend.backend() in FUSED_BACKENDS
        token_ids, positions, segment_ids = read_rows(inputs)

        visible, write = None, None
        if cache is not None:
            slots = ops.arange(ops.shape(cache.keys[0])[2], dtype="int32")
            visible = slots[None, None] <= positions[:, :, None]
            write = slot_writer(cache.keys[0], positions)
        elif not is_fused:
            visible = attention_mask(
                positions, segment_ids, positions, segment_ids
            )

        hidden_states = self.token_embedding(token_ids)
        if self.config.position == "learned":
            hidden_states = hidden_states + self.position_embedding(positions)
        hidden_states = self.dropout(hidden_states, training=training)
        if self.rematerialize and training:
            for block in self.blocks:
                hidden_states = keras.remat(
                    functools.partial(_hidden_states, block, visible, positions)
                )(hidden_states)
            return self.final_norm(hidden_states)
        all_keys, all_values = [], []
        for index, block in enumerate(self.blocks):
            hidden_states, keys, values = block(
                hidden_states,
                attention_mask=visible,
                positions=positions,
                keys=None if cache is None else cache.keys[index],
                values=None if cache is None else cache.values[index],
                write=write,
                is_causal=cache is None,
                training=training,
            )
            all_keys.append(keys)
            all_values.append(values)
        hidden_states = self.final_norm(hidden_states)
        if cache is None and not return_cache:
            return hidden_states
        return hidden_states, KVCache(tuple(all_keys), tuple(all_values))

    def get_config(self):
        return {**super().get_config(), "rematerialize": self.rematerialize}


def _hidden_states(block, attention_mask, positions, hidden_states):
    """Returns what a block in training makes of whole rows, no keys."""
    return block(
        hidden_states,
        attention_mask=attention_mask,
        positions=positions,
        is_causal=True,
        training=True,
    )[0]


@keras.saving.register_keras_serializable("kerasgpt")
class GPTCausalLM(TiedLM):
    """Token ids -> logits of the token after each of them.

    Args:
        config, rematerialize, fill: see `GPTBackbone`.

    Call arguments:
        inputs, cache: see `GPTBackbone`.

    Returns:
        float32 (batch, length, vocabulary_size) logits; with a cache also the
        cache that holds these tokens.

    Example:
        >>> model = GPTCausalLM(GPTConfig.from_depth(2))
        >>> tuple(model({"token_ids": ops.array([[1, 2, 3]])}).shape)
        (1, 3, 256)
        >>> model.compile("adamw", keras.losses.SparseCategoricalCrossentropy(
        ...     from_logits=True, reduction="mean_with_sample_weight"))
    """

    config_class = GPTConfig
    backbone_class = GPTBackbone

    def __init__(self, config, *, rematerialize=False, **kwargs):
        super().__init__(
            config, backbone_settings={"rematerialize": rematerialize}, **kwargs
        )

    def output_kernel(self):
        if self.config.tie_embeddings:
            return super().output_kernel()
        return ops.transpose(self.backbone.token_embedding.reverse_embeddings)

    def allocate_cache(self, batch_size, num_slots):
        """Returns an empty `KVCache` of `num_slots` tokens for each row."""
        return allocate_cache(
            self.config.num_layers,
            batch_size=batch_size,
            num_slots=num_slots,
            num_kv_heads=self.config.num_kv_heads,
            head_dim=self.config.head_dim,
            dtype=self.backbone.compute_dtype,
        )

    def get_config(self):
        rematerialize = self.backbone.rematerialize
        return {**super().get_config(), "rematerialize": rematerialize}
