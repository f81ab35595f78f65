"""Makes the folders beside it: tiny random BERTs of transformers, and logits.

Command  python tests/goldens/bert/make.py
Needs    pip install -e '.[peers]'

Each folder is as `save_pretrained` leaves it, tokenizer included; of some,
the vocabulary is vocab.txt alone. It has expected.safetensors: token_ids,
token_types and is_token int64 (2, length), and outputs float32: logits (2,
length, vocabulary), or hidden states of a model without a head. texts.json has
texts and their ids. Versions and the seed are in origin.json.
"""

import json
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from huggingface import make

FOLDER = pathlib.Path(__file__).parent
SEED = 0
VOCABULARY = (
    "[PAD] [unused1] the un ##aff ##able want ##ed [UNK] [CLS] cafe Café caf "
    "##e ! , . ' ? # ##. 你 好 世 ##界 界 國 [SEP] [MASK] don t is red Red a "
    "##a 1 ##2 \u2028x ᄀ ##ᅡ ##\u0301 İ i ß"
)
PIECES = VOCABULARY.split(" ")
TEXTS = (
    "Unaffable, unwanted! The CAFÉ the café the Café.",
    "你好世界，the世界 want你ed 國",
    "don't\tis\u00a0red\u3000Red\u200b a\u0000a\ufffd\u00ad",
    "A" * 100 + " " + "a" * 101,
    "é" * 100 + " İi ß 가 \u2028x ##. ## [MASK] [CLS]the[SEP]",
    "the \U0001f600 12 1\u0301",
    "",
    " \n ",
)
BERT = {
    "vocab_size": len(PIECES),
    "max_position_embeddings": 17,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}
LOWER, CASED = {"do_lower_case": True}, {"do_lower_case": False}
# Name -> (class, changes of the above, settings of words, how it is saved).
MODELS = {
    "masked": ("BertForMaskedLM", {}, LOWER, {}),
    "masked_tanh_bfloat16": (
        "BertForMaskedLM",
        {
            "hidden_size": 8,
            "num_attention_heads": 1,
            "num_hidden_layers": 3,
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-3,
            # Further rows, which no piece has.
            "vocab_size": len(PIECES) + 3,
        },
        CASED,
        {"dtype": "bfloat16", "vocabulary": True},
    ),
    "pretraining_shards": (
        "BertForPreTraining",
        {"num_attention_heads": 6, "intermediate_size": 7},
        {"do_lower_case": True, "strip_accents": False},
        {"max_shard_size": "4KB"},
    ),
    "masked_float16": (
        "BertForMaskedLM",
        {"num_hidden_layers": 1, "hidden_act": "gelu_pytorch_tanh"},
        {"do_lower_case": False, "tokenize_chinese_chars": False},
        {"dtype": "float16", "vocabulary": True},
    ),
    "backbone": (
        "BertModel",
        {"hidden_size": 10, "num_attention_heads": 2},
        LOWER,
        {},
    ),
}


def build(name, seed):
    """Returns a random model of transformers, in float32."""
    import torch
    import transformers

    cls, changes, _, options = MODELS[name]
    config = transformers.BertConfig(**{**BERT, **changes})
    torch.manual_seed(seed)
    model = getattr(transformers, cls)(config).eval()
    make.shake(model, seed, options.get("dtype", "float32"))
    return model


def outputs(model, inputs):
    """Returns what a model of transformers makes of arrays, float32."""
    import torch

    with torch.no_grad():
        given = model(
            torch.tensor(inputs["token_ids"]),
            attention_mask=torch.tensor(inputs["is_token"]),
            token_type_ids=torch.tensor(inputs["token_types"]),
        )
    for name in ("logits", "prediction_logits", "last_hidden_state"):
        if name in given:
            return given[name].numpy()


def draw_inputs(seed):
    """Returns dict of arrays int64 (2, 13): two sentences, then padding."""
    import numpy as np

    rng = np.random.default_rng(seed)
    separator = PIECES.index("[SEP]")
    token_ids = rng.integers(0, len(PIECES), (2, 13))
    token_ids[token_ids == separator] = 2
    token_ids[0, [5, 12]] = token_ids[1, [3, 8]] = separator
    is_token = np.ones((2, 13), int)
    is_token[1, 9:] = 0
    place = np.arange(13)
    token_types = (place > [[5], [3]]).astype(int)
    return {
        "token_ids": token_ids,
        "is_token": is_token,
        "token_types": token_types,
    }


def save_tokenizer(name, folder):
    """Writes the tokenizer; returns dict of text to its ids.

    A special token in a text is text.
    """
    import transformers

    _, _, words, options = MODELS[name]
    lines = "".join(f"{piece}\n" for piece in PIECES)
    (folder / "vocab.txt").write_text(lines)
    tokenizer = transformers.BertTokenizer(
        vocab={piece: i for i, piece in enumerate(PIECES)}, **words
    )
    if options.get("vocabulary"):
        config = {"tokenizer_class": "BertTokenizer", **words}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    else:
        (folder / "vocab.txt").unlink()
        tokenizer.save_pretrained(folder)
    return [
        tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=True
        )
        for text in TEXTS
    ]


def main():
    """Writes all folders anew."""
    import safetensors.numpy

    texts = {"texts": TEXTS, "ids": {}}
    for name, (_, _, _, options) in MODELS.items():
        folder = FOLDER / name
        shutil.rmtree(folder, ignore_errors=True)
        model = build(name, SEED)
        saved = {k: v for k, v in options.items() if k != "vocabulary"}
        make.save_as(model, folder, saved)
        texts["ids"][name] = save_tokenizer(name, folder)
        inputs = draw_inputs(SEED)
        safetensors.numpy.save_file(
            {**inputs, "outputs": outputs(model, inputs)},
            folder / "expected.safetensors",
        )
    written = json.dumps(texts, indent=1) + "\n"
    (FOLDER / "texts.json").write_text(written)
    make.write_origin(FOLDER, "python tests/goldens/bert/make.py")


if __name__ == "__main__":
    main()
