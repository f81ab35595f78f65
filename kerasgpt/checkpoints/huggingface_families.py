"""Owns config.json of transformers' model families, in both directions.

Not: their tensors (huggingface_tensors.py), files (huggingface.py).
"""

import dataclasses

from kerasgpt.checkpoints.huggingface_tensors import (
    BERT_TABLE,
    GPT1_TABLE,
    GPT2_TABLE,
    LLAMA_TABLE,
    TensorTable,
)
from kerasgpt.config import InputError
from kerasgpt.models.encoder import EncoderConfig
from kerasgpt.models.gpt import GPTConfig

GELU_NAMES = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
}
# OpenAI GPT's code calls the tanh form just "gelu".
GPT1_GELU_NAMES = {"gelu": "gelu_tanh"}
# Their key -> the field of our RotaryScaling.
ROTARY_SCALING = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_max_position_embeddings": "original_length",
        "low_freq_factor": "low_turns",
        "high_freq_factor": "high_turns",
    },
}
GATED_NAMES = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu"}


@dataclasses.dataclass(frozen=True)
class Family:
    """What transformers calls a model of one kind.

    Attributes:
        model_type: str, in config.json.
        architecture: str, the class in transformers.
        table: TensorTable of its files.
        fixed: dict. Fields of GPTConfig that all of the family share.
        fields: dict of their key to our field, of those that are equal.
        activations: dict of their name to ours, the usual name first.
        defaults: dict. What is meant where config.json says nothing.
        only: dict. What else it may not say.
        config_class: of our configuration.
        has_head: bool. Without one, names of tensors lack the prefix.
    """

    model_type: str
    architecture: str
    table: TensorTable
    fixed: dict
    fields: dict
    activations: dict
    defaults: dict
    only: dict
    config_class: type = GPTConfig
    has_head: bool = True

    def read_config(self, values):
        """Returns our configuration for a config.json of this family.

        Raises:
            InputError: for a value that is missing or not supported.
            ValueError: for widths that do not fit together.
        """
        for key, only in self.only.items():
            if values.get(key, only) != only:
                raise InputError(
                    f"{key}={values[key]!r} is not supported; only {only!r} is."
                )
        given = {k: value for k, value in values.items() if value is not None}
        values = {**self.defaults, **given}
        fields = dict(self.fixed)
        for key, name in self.fields.items():
            if key not in values:
                raise InputError(f"{key} is missing.")
            fields[name] = values[key]
        activation = fields["activation"]
        if activation not in [*self.activations]:
            raise InputError(
                f"activation {activation!r} is not supported; it must be one "
                f"of {', '.join(self.activations)}."
            )
        fields["activation"] = self.activations[activation]
        if self.fixed.get("position") == "rotary":
            fields |= _read_rotary(values)
        return self.config_class.from_dict(
            _derive_widths(fields, self.config_class)
        )

    def write_config(self, config):
        """Returns the config.json of our configuration, as far as it can."""
        # Of several names the first: others' readers know no synonyms.
        pairs = reversed(self.activations.items())
        names = {ours: theirs for theirs, ours in pairs}
        fields = {
            **config.to_dict(),
            "activation": names.get(config.activation, config.activation),
        }
        values = {key: fields[name] for key, name in self.fields.items()}
        if self.fixed.get("position") == "rotary":
            values |= _write_rotary(config)
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            **self.only,
            **values,
            "torch_dtype": "float32",
        }


def _derive_widths(fields, config_class):
    """Returns the fields with those that follow from others filled in."""
    width, heads = fields["model_dim"], fields["num_heads"]
    for name in ("model_dim", "num_heads"):
        if not isinstance(fields[name], int) or fields[name] < 1:
            raise InputError(
                f"{name} must be a positive integer; received {fields[name]!r}."
            )
    if fields.get("head_dim") is None and width % heads:
        raise InputError(
            f"a width of {width} cannot be shared by {heads} heads."
        )
    derived = {
        "num_kv_heads": heads,
        "head_dim": width // heads,
        "inner_dim": 4 * width,
    }
    names = {field.name for field in dataclasses.fields(config_class)}
    derived = {k: value for k, value in derived.items() if k in names}
    given = {k: value for k, value in fields.items() if value is not None}
    return {**derived, **given}


def _read_rotary(values):
    """Returns the rotary fields of a config.json, of transformers 4 or 5."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise InputError(f"rope_scaling must be an object; received {rope!r}.")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    base = rope.get("rope_theta") or values.get("rope_theta", 10000.0)
    for place in (rope, values):
        if place.get("partial_rotary_factor", 1) != 1:
            raise InputError("partial_rotary_factor is not supported.")
    if kind == "default":
        return {"rotary_base": base}
    if kind not in ROTARY_SCALING:
        raise InputError(
            f"rope type {kind!r} is not supported; it must be default, "
            f"{' or '.join(ROTARY_SCALING)}."
        )
    missing = [key for key in ROTARY_SCALING[kind] if key not in rope]
    if missing:
        raise InputError(f"rope type {kind} needs {missing[0]}.")
    scaling = {
        ours: rope[theirs] for theirs, ours in ROTARY_SCALING[kind].items()
    }
    return {"rotary_base": base, "rotary_scaling": scaling}


def _write_rotary(config):
    """Returns the keys of transformers 4, which 5 reads as well."""
    scaling = config.rotary_scaling
    kind = "llama3" if scaling.original_length else "linear"
    rope = {
        theirs: getattr(scaling, ours)
        for theirs, ours in ROTARY_SCALING[kind].items()
    }
    is_scaled = scaling.factor != 1.0
    return {
        "rope_theta": config.rotary_base,
        "rope_scaling": {"rope_type": kind, **rope} if is_scaled else None,
    }


GPT_FIXED = {
    "position": "learned",
    "norm": "layer",
    "qk_norm": False,
    "use_bias": True,
}
GPT_FIELDS = {
    "vocab_size": "vocabulary_size",
    "n_positions": "context_length",
    "n_embd": "model_dim",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "layer_norm_epsilon": "norm_epsilon",
    "tie_word_embeddings": "tie_embeddings",
}
GPT_DEFAULTS = {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
LLAMA_FIXED = {
    "position": "rotary",
    "norm": "rms",
    "qk_norm": False,
}
# Of BERT and those that came after it.
HIDDEN_FIELDS = {
    "vocab_size": "vocabulary_size",
    "max_position_embeddings": "context_length",
    "hidden_size": "model_dim",
    "intermediate_size": "inner_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "hidden_act": "activation",
}
LLAMA_FIELDS = {
    **HIDDEN_FIELDS,
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "rms_norm_eps": "norm_epsilon",
    "tie_word_embeddings": "tie_embeddings",
}
LLAMA_DEFAULTS = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
LLAMA = {
    "table": LLAMA_TABLE,
    "fields": LLAMA_FIELDS,
    "activations": GATED_NAMES,
}
BERT = {
    "model_type": "bert",
    "table": BERT_TABLE,
    "fields": {**HIDDEN_FIELDS, "layer_norm_eps": "norm_epsilon"},
    "activations": {"gelu": "gelu", **GELU_NAMES},
    "defaults": {"hidden_act": "gelu", "layer_norm_eps": 1e-12},
    "only": {
        "type_vocab_size": 2,
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    "config_class": EncoderConfig,
}
BERT_FIXED = {
    "norm": "layer",
    "norm_order": "post",
    "embedding_norm": True,
    "use_bias": True,
}
FAMILIES = (
    Family(
        model_type="gpt2",
        architecture="GPT2LMHeadModel",
        table=GPT2_TABLE,
        fixed=GPT_FIXED,
        fields={
            **GPT_FIELDS,
            "n_inner": "inner_dim",
            "activation_function": "activation",
        },
        activations=GELU_NAMES,
        defaults={
            **GPT_DEFAULTS,
            "n_inner": None,
            "activation_function": "gelu_new",
        },
        only={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
    ),
    Family(
        model_type="openai-gpt",
        architecture="OpenAIGPTLMHeadModel",
        table=GPT1_TABLE,
        fixed={**GPT_FIXED, "norm_order": "post"},
        fields={**GPT_FIELDS, "afn": "activation"},
        activations=GPT1_GELU_NAMES,
        defaults={**GPT_DEFAULTS, "afn": "gelu"},
        only={},
    ),
    Family(
        model_type="llama",
        architecture="LlamaForCausalLM",
        fixed=LLAMA_FIXED,
        defaults=LLAMA_DEFAULTS,
        only={"attention_bias": False, "mlp_bias": False},
        **LLAMA,
    ),
    Family(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        fixed={**LLAMA_FIXED, "qkv_bias": True},
        defaults=LLAMA_DEFAULTS,
        only={"use_sliding_window": False},
        **LLAMA,
    ),
    Family(
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        fixed={**LLAMA_FIXED, "qk_norm": True},
        # Unlike the others, not the width shared by the heads.
        defaults={**LLAMA_DEFAULTS, "head_dim": 128},
        only={"use_sliding_window": False, "attention_bias": False},
        **LLAMA,
    ),
    Family(
        architecture="BertForMaskedLM",
        fixed={**BERT_FIXED, "output_transform": True},
        **BERT,
    ),
    Family(
        architecture="BertModel",
        fixed={**BERT_FIXED, "output_transform": False},
        has_head=False,
        **BERT,
    ),
)


def read_family(values):
    """Returns (Family, our configuration) of a config.json.

    Args:
        values: dict, its content. Of families with one model_type, the first
            whose class in transformers it names, or else the first.

    Raises:
        InputError: for an unknown model_type, or what its model cannot be.
        ValueError: for widths that do not fit together.

    Example:
        >>> family, config = read_family({"model_type": "gpt2", "n_embd": 8,
        ...     "n_head": 2, "n_layer": 1, "n_positions": 16, "vocab_size": 9})
        >>> config.head_dim, config.inner_dim, config.activation
        (4, 32, 'gelu_tanh')
        >>> next(family.table.rows_of(config)).theirs
        'transformer.wte.weight'
    """
    named = values.get("architectures")
    found = [f for f in FAMILIES if f.model_type == values.get("model_type")]
    if found:
        chosen = [f for f in found if named == [f.architecture]] or found
        return chosen[0], chosen[0].read_config(values)
    known = ", ".join(dict.fromkeys(family.model_type for family in FAMILIES))
    raise InputError(
        f"model_type {values.get('model_type')!r} is unknown; it must be one "
        f"of {known}."
    )


def write_family(config):
    """Returns (Family, config.json as a dict) of our configuration.

    The dropout rate is not told: it belongs to training. Neither are the ids
    of marks: the tokenizer tells them.

    Raises:
        InputError: if transformers has no such model.
    """
    families = [f for f in FAMILIES if f.config_class is type(config)]
    if not families:
        raise InputError(
            "a model of this kind is not written for transformers."
        )
    config = _told(config)
    differences = []
    for family in families:
        values = family.write_config(config)
        try:
            told = family.read_config(values)
        except (InputError, ValueError):
            told = dataclasses.replace(config, **family.fixed)
            told = dataclasses.replace(told, activation="another")
        if told == config:
            return family, values
        names = [f.name for f in dataclasses.fields(config)]
        differences.append(
            (
                family.model_type,
                [n for n in names if getattr(told, n) != getattr(config, n)],
            )
        )
    nearest, names = min(differences, key=lambda pair: len(pair[1]))
    shown = ", ".join(f"{name}={getattr(config, name)}" for name in names)
    raise InputError(
        f"transformers has no model with {shown}; the nearest is {nearest}."
    )


def _told(config):
    """Returns the config without what changes nothing, or only training."""
    if type(config) is EncoderConfig:
        if not config.mark_ids:
            raise InputError(
                "transformers keeps [MASK], [CLS] and [SEP] in the tokenizer's "
                "vocabulary; this model has them after it (mark_ids is empty)."
            )
        return dataclasses.replace(config, dropout_rate=0.0, mark_ids=())
    changes = {"dropout_rate": 0.0}
    if config.use_bias:
        changes["qkv_bias"] = False
    if config.position == "learned":
        changes["rotary_base"] = GPTConfig.rotary_base
    if config.position == "learned" or config.rotary_scaling.factor == 1.0:
        changes["rotary_scaling"] = GPTConfig.rotary_scaling
    return dataclasses.replace(config, **changes)
