"""Owns WordPiece in Hugging Face's files. Not: running it (word_piece.py)."""

import itertools

from kerasgpt.config import InputError
from kerasgpt.files import write_text
from kerasgpt.tokenizers.bert_words import LONGEST_WORD
from kerasgpt.tokenizers.word_piece import JOINER, WordPieceTokenizer

PIECES_FILE = "vocab.txt"
# Their keys, and the usual tokens.
SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
# Settings of words, as tokenizer_config.json calls them.
BERT_KEYS = {
    "lower_case": "do_lower_case",
    "strip_accents": "strip_accents",
    "split_han": "tokenize_chinese_chars",
}


def read_pieces(path, config, controls):
    """Returns the WordPieceTokenizer of a vocab.txt, a piece a line.

    Args:
        path: pathlib.Path.
        config: dict, the tokenizer_config.json beside it.
        controls: dict of added tokens to their ids.

    Raises:
        InputError: naming the file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}.") from error
    names = {
        key: token_text(config.get(key)) or usual
        for key, usual in SPECIAL_TOKENS.items()
    }
    lower_case = config.get("do_lower_case", True)
    strip_accents = config.get("strip_accents")
    try:
        return _build(
            # Only "\n" ends a line: pieces hold other separators.
            dict(zip(text.removesuffix("\n").split("\n"), itertools.count())),
            {**dict.fromkeys(names.values()), **controls},
            unknown=names["unk_token"],
            lower_case=lower_case,
            strip_accents=(
                lower_case if strip_accents is None else strip_accents
            ),
            split_han=config.get("tokenize_chinese_chars", True),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_word_piece(table, controls):
    """Returns the WordPieceTokenizer of a tokenizer.json.

    Args:
        table: dict, its content.
        controls: dict of added tokens to their ids.

    Raises:
        InputError: for what `WordPieceTokenizer` does not do.
        AttributeError, KeyError, TypeError: if it is none.
    """
    model = table["model"]
    for key, only in (
        ("continuing_subword_prefix", JOINER),
        ("max_input_chars_per_word", LONGEST_WORD),
    ):
        if model.get(key, only) != only:
            raise InputError(
                f"WordPiece with {key}={model[key]!r} is not supported; only "
                f"{only!r} is."
            )
    normalizer, split = (
        table.get(key) or {} for key in ("normalizer", "pre_tokenizer")
    )
    for step, only in (
        (normalizer, "BertNormalizer"),
        (split, "BertPreTokenizer"),
    ):
        if step.get("type") != only:
            raise InputError(
                f"WordPiece with {step.get('type')} is not supported; with "
                f"{only} it is."
            )
    if not normalizer.get("clean_text", True):
        raise InputError("WordPiece with clean_text=false is not supported.")
    lower_case = normalizer.get("lowercase", True)
    strip_accents = normalizer.get("strip_accents")
    return _build(
        model["vocab"],
        controls,
        unknown=model.get("unk_token", "[UNK]"),
        lower_case=lower_case,
        strip_accents=lower_case if strip_accents is None else strip_accents,
        split_han=normalizer.get("handle_chinese_chars", True),
    )


def token_text(token):
    """Returns the text of a token that a tokenizer_config tells."""
    return token.get("content") if isinstance(token, dict) else token


def word_piece_parts(tokenizer):
    """Returns dict of the parts of a tokenizer.json, by `tokenizers`' names.

    Args:
        tokenizer: WordPieceTokenizer with `bert_words`.
    """
    unknown = tokenizer.pieces[tokenizer.unknown_id]
    controls = tokenizer.control_tokens
    words = tokenizer.bert_words
    post_processor = None
    if {"[CLS]", "[SEP]"} <= controls.keys():
        post_processor = {
            "type": "BertProcessing",
            "sep": ["[SEP]", controls["[SEP]"]],
            "cls": ["[CLS]", controls["[CLS]"]],
        }
    return {
        "controls": {**controls, unknown: tokenizer.unknown_id},
        "model": {
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": JOINER,
            "max_input_chars_per_word": LONGEST_WORD,
            "vocab": {piece: i for i, piece in enumerate(tokenizer.pieces)},
        },
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": words["split_han"],
            "strip_accents": words["strip_accents"],
            "lowercase": words["lower_case"],
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": JOINER, "cleanup": True},
        "post_processor": post_processor,
    }


def word_piece_config(tokenizer):
    """Returns dict of what tokenizer_config.json tells of a tokenizer."""
    words = tokenizer.bert_words.items()
    return {
        "tokenizer_class": "BertTokenizer",
        **{
            key: token
            for key, token in SPECIAL_TOKENS.items()
            if token in tokenizer.control_tokens
        },
        "unk_token": tokenizer.pieces[tokenizer.unknown_id],
        **{BERT_KEYS[name]: value for name, value in words},
    }


def save_pieces(folder, tokenizer):
    """Writes vocab.txt, a piece a line."""
    lines = "".join(f"{piece}\n" for piece in tokenizer.pieces)
    write_text(folder / PIECES_FILE, lines)


def _build(vocabulary, controls, *, unknown, **bert_words):
    """Returns the WordPieceTokenizer of pieces and added tokens, by id."""
    ids = dict(vocabulary)
    for name, token_id in controls.items():
        if token_id is not None and ids.setdefault(name, token_id) != token_id:
            raise InputError(f"the added token {name!r} has two ids.")
    pieces = sorted(ids, key=ids.get)
    for token_id, piece in enumerate(pieces):
        if ids[piece] != token_id:
            raise InputError(f"the id {token_id} is missing, or there twice.")
    return WordPieceTokenizer(
        pieces,
        control_tokens=[
            name for name in pieces if name in controls and name != unknown
        ],
        unknown=unknown,
        bert_words=bert_words,
    )
