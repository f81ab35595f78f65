"""Owns transformers' names and shapes of tensors: one table a family.

Each is read in both directions. Not: config.json (huggingface_families.py).
"""

import dataclasses
import re

HEAD, VOCABULARY = "lm_head.weight", "vocabulary"
BERT_HEAD = "cls."


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor of a file, or of each block where names hold "{}".

    Attributes:
        theirs: str, its name, without the prefix of the family.
        ours: tuple of str. Names of our variables, which lie side by side in
            the last axis if there are several.
        shape: tuple of str. Widths in the file, see `widths`.
        transposed: bool. Whether ours has the axes the other way round.
        when: str, a setting that is on, or "untied". "" = always.
    """

    theirs: str
    ours: tuple
    shape: tuple
    transposed: bool = False
    when: str = ""

    def of_block(self, index):
        """Returns the row of one block."""
        return dataclasses.replace(
            self,
            theirs=self.theirs.format(index),
            ours=tuple(name.format(index) for name in self.ours),
        )


@dataclasses.dataclass(frozen=True)
class TensorTable:
    """The tensors in files of one kind of model, read in both directions.

    Attributes:
        rows: tuple of Row.
        prefix: str. Of all names but the output head's; files of a model
            without a head lack it.
        buffers: str, a pattern of names that are not read: no weights, or
            those of another task.
        head: str, with which names of the output head begin.
        tied: dict of names that some write, too, to the equal tensors' names.
        renamed: dict of endings of names in old files to those of today.
    """

    rows: tuple
    prefix: str
    buffers: str
    head: str = HEAD
    tied: dict = dataclasses.field(default_factory=dict)
    renamed: dict = dataclasses.field(default_factory=dict)

    def rows_of(self, config):
        """Yields the rows of a configuration, names with prefix and block."""
        for row in self.rows:
            if not _holds(row.when, config):
                continue
            row = dataclasses.replace(row, theirs=self.full_name(row.theirs))
            if "{}" not in row.theirs:
                yield row
                continue
            for index in range(config.num_layers):
                yield row.of_block(index)

    def full_name(self, name):
        """Returns a tensor's name with the prefix, in today's words."""
        for old, new in self.renamed.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        if name.startswith((self.head, self.prefix)):
            return name
        return self.prefix + name

    def is_buffer(self, name):
        """Returns whether a tensor is none of the model's weights."""
        name = name.removeprefix(self.prefix)
        return re.fullmatch(self.buffers, name) is not None


def widths(config):
    """Returns dict of name to length, of the axes in the tables."""
    query = config.num_heads * config.head_dim
    # An encoder's heads all have keys of their own.
    num_kv_heads = getattr(config, "num_kv_heads", config.num_heads)
    key = num_kv_heads * config.head_dim
    return {
        VOCABULARY: config.vocabulary_size,
        "context": config.context_length,
        "model": config.model_dim,
        "inner": config.inner_dim,
        "head": config.head_dim,
        "query": query,
        "key": key,
        "query key value": query + 2 * key,
        "sentences": 2,
    }


def _holds(condition, config):
    """Returns whether a model has the rows that bear a condition."""
    if condition == "untied":
        return not config.tie_embeddings
    return not condition or getattr(config, condition)


def _block(theirs, ours, *shape, **options):
    """Returns the row of a tensor that every block has."""
    ours = tuple(f"backbone/block_{{}}/{name}" for name in ours.split())
    return Row(theirs, ours, shape, **options)


def _linear(theirs, ours, outputs, inputs):
    """Returns the row of a torch.nn.Linear's kernel, which is transposed."""
    return _block(
        f"{theirs}.weight", f"{ours}/kernel", outputs, inputs, transposed=True
    )


def _conv1d(theirs, ours, inputs, outputs):
    """Returns the rows of a transformers Conv1D, whose kernel is as ours."""
    kernels = " ".join(f"{name}/kernel" for name in ours.split())
    biases = " ".join(f"{name}/bias" for name in ours.split())
    return (
        _block(f"{theirs}.weight", kernels, inputs, outputs),
        _block(f"{theirs}.bias", biases, outputs),
    )


def _layer_norm(theirs, ours, make=_block):
    return (
        make(f"{theirs}.weight", f"{ours}/gamma", "model"),
        make(f"{theirs}.bias", f"{ours}/beta", "model"),
    )


def _biased(theirs, ours, outputs, inputs):
    """Returns the rows of a torch.nn.Linear with a bias."""
    return (
        _linear(theirs, ours, outputs, inputs),
        _block(f"{theirs}.bias", f"{ours}/bias", outputs),
    )


def _model(theirs, ours, *shape, **options):
    """Returns the row of a tensor outside the blocks."""
    return Row(theirs, (f"backbone/{ours}",), shape, **options)


def _transform(theirs, ours, *shape, **options):
    """Returns the row of a tensor between BERT's blocks and its table."""
    return Row(
        f"{BERT_HEAD}predictions.{theirs}",
        (f"output_transform/{ours}",),
        shape,
        when="output_transform",
        **options,
    )


HEAD_ROW = _model(
    HEAD,
    "token_embedding/reverse_embeddings",
    VOCABULARY,
    "model",
    transposed=True,
    when="untied",
)
GPT_BLOCK = (
    *_layer_norm("h.{}.ln_1", "attention_norm"),
    *_conv1d(
        "h.{}.attn.c_attn",
        "attention/query attention/key attention/value",
        "model",
        "query key value",
    ),
    *_conv1d("h.{}.attn.c_proj", "attention/output", "query", "model"),
    *_layer_norm("h.{}.ln_2", "feed_forward_norm"),
    *_conv1d("h.{}.mlp.c_fc", "feed_forward/up", "model", "inner"),
    *_conv1d("h.{}.mlp.c_proj", "feed_forward/down", "inner", "model"),
)
GPT1_ROWS = (
    _model(
        "tokens_embed.weight",
        "token_embedding/embeddings",
        VOCABULARY,
        "model",
    ),
    _model(
        "positions_embed.weight",
        "position_embedding/embeddings",
        "context",
        "model",
    ),
    *GPT_BLOCK,
    HEAD_ROW,
)
GPT2_ROWS = (
    _model("wte.weight", "token_embedding/embeddings", VOCABULARY, "model"),
    _model("wpe.weight", "position_embedding/embeddings", "context", "model"),
    *GPT_BLOCK,
    _model("ln_f.weight", "final_norm/gamma", "model"),
    _model("ln_f.bias", "final_norm/beta", "model"),
    HEAD_ROW,
)
# Llama's; Qwen's differ by what `_conditions` tells.
LLAMA_ROWS = (
    _model(
        "embed_tokens.weight",
        "token_embedding/embeddings",
        VOCABULARY,
        "model",
    ),
    _block("layers.{}.input_layernorm.weight", "attention_norm/scale", "model"),
    _linear("layers.{}.self_attn.q_proj", "attention/query", "query", "model"),
    _linear("layers.{}.self_attn.k_proj", "attention/key", "key", "model"),
    _linear("layers.{}.self_attn.v_proj", "attention/value", "key", "model"),
    _linear("layers.{}.self_attn.o_proj", "attention/output", "model", "query"),
    *(
        _block(
            f"layers.{{}}.self_attn.{name[0]}_proj.bias",
            f"attention/{name}/bias",
            width,
            when="qkv_bias",
        )
        for name, width in (
            ("query", "query"),
            ("key", "key"),
            ("value", "key"),
        )
    ),
    *(
        _block(
            f"layers.{{}}.self_attn.{name[0]}_norm.weight",
            f"attention/{name}_norm/scale",
            "head",
            when="qk_norm",
        )
        for name in ("query", "key")
    ),
    _block(
        "layers.{}.post_attention_layernorm.weight",
        "feed_forward_norm/scale",
        "model",
    ),
    _linear("layers.{}.mlp.gate_proj", "feed_forward/gate", "inner", "model"),
    _linear("layers.{}.mlp.up_proj", "feed_forward/up", "inner", "model"),
    _linear("layers.{}.mlp.down_proj", "feed_forward/down", "model", "inner"),
    _model("norm.weight", "final_norm/scale", "model"),
    HEAD_ROW,
)
BERT_ROWS = (
    _model(
        "embeddings.word_embeddings.weight",
        "token_embedding/embeddings",
        VOCABULARY,
        "model",
    ),
    _model(
        "embeddings.position_embeddings.weight",
        "position_embedding/embeddings",
        "context",
        "model",
    ),
    _model(
        "embeddings.token_type_embeddings.weight",
        "sentence_embedding/embeddings",
        "sentences",
        "model",
    ),
    *_layer_norm("embeddings.LayerNorm", "embedding_norm", _model),
    *(
        row
        for name in ("query", "key", "value")
        for row in _biased(
            f"encoder.layer.{{}}.attention.self.{name}",
            f"attention/{name}",
            "query",
            "model",
        )
    ),
    *_biased(
        "encoder.layer.{}.attention.output.dense",
        "attention/output",
        "model",
        "query",
    ),
    *_layer_norm(
        "encoder.layer.{}.attention.output.LayerNorm", "attention_norm"
    ),
    *_biased(
        "encoder.layer.{}.intermediate.dense",
        "feed_forward/up",
        "inner",
        "model",
    ),
    *_biased(
        "encoder.layer.{}.output.dense", "feed_forward/down", "model", "inner"
    ),
    *_layer_norm("encoder.layer.{}.output.LayerNorm", "feed_forward_norm"),
    _transform(
        "transform.dense.weight",
        "dense/kernel",
        "model",
        "model",
        transposed=True,
    ),
    _transform("transform.dense.bias", "dense/bias", "model"),
    *_layer_norm("transform.LayerNorm", "norm", _transform),
    _transform("bias", "bias", VOCABULARY),
)
GPT1_TABLE = TensorTable(
    rows=GPT1_ROWS,
    prefix="transformer.",
    tied={HEAD: "transformer.tokens_embed.weight"},
    buffers=r"h\.\d+\.attn\.bias|position_ids",
)
GPT2_TABLE = TensorTable(
    rows=GPT2_ROWS,
    prefix="transformer.",
    tied={HEAD: "transformer.wte.weight"},
    buffers=r"h\.\d+\.attn\.(bias|masked_bias)",
)
LLAMA_TABLE = TensorTable(
    rows=LLAMA_ROWS,
    prefix="model.",
    tied={HEAD: "model.embed_tokens.weight"},
    buffers=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
)
BERT_TABLE = TensorTable(
    rows=BERT_ROWS,
    prefix="bert.",
    # The tasks beside the masked one, and a table of 0, 1, 2, … in old files.
    buffers=r"pooler\..*|cls\.seq_relationship\..*|embeddings\.position_ids",
    head=BERT_HEAD,
    tied={
        "cls.predictions.decoder.weight": (
            "bert.embeddings.word_embeddings.weight"
        ),
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    renamed={
        "LayerNorm.gamma": "LayerNorm.weight",
        "LayerNorm.beta": "LayerNorm.bias",
    },
)
