"""Owns tokenizers as Hugging Face keeps them. Not: how any of them works."""

import pathlib

from sentencepiece import sentencepiece_model_pb2

from kerasgpt.config import InputError
from kerasgpt.files import read_json, write_json
from kerasgpt.tokenizers.byte import ByteTokenizer
from kerasgpt.tokenizers.byte_pair import (
    NORMALIZATIONS,
    BytePairTokenizer,
    last_parts,
    spell,
    unspell,
)
from kerasgpt.tokenizers.chat_format import ChatFormat, build_chat_format
from kerasgpt.tokenizers.huggingface_word_piece import (
    PIECES_FILE,
    read_pieces,
    read_word_piece,
    save_pieces,
    token_text,
    word_piece_config,
    word_piece_parts,
)
from kerasgpt.tokenizers.jinja_reader import read_jinja
from kerasgpt.tokenizers.jinja_template import to_jinja
from kerasgpt.tokenizers.sentence_piece import (
    ESCAPE,
    SPACE_MARK,
    SentencePieceTokenizer,
)
from kerasgpt.tokenizers.word_piece import WordPieceTokenizer
from kerasgpt.tokenizers.word_split import WORD_SPLITS

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
# Of GPT-2 and its time.
VOCABULARY_FILE, MERGES_FILE = "vocab.json", "merges.txt"
SENTENCE_PIECE_FILES = (
    "tokenizer.model",
    "sentencepiece.model",
    "spiece.model",
)
# A tokenizer.json of 256,000 pieces has some 35 MB.
MAX_FILE_BYTES = 256 << 20
_PIECE = sentencepiece_model_pb2.ModelProto.SentencePiece
# Below every path of true pieces; see `_unigram`.
_NEVER = -1e9


def load_huggingface_tokenizer(folder, *, chat_format=None):
    """Returns the tokenizer of a folder as transformers writes it.

    Byte-level byte pairs (GPT-2, Llama 3, Qwen, SmolLM, …) from tokenizer.json
    or vocab.json and merges.txt; WordPiece (BERT) from tokenizer.json or
    vocab.txt; SentencePiece from its model file. Ids are
    those of `tokenizers` where special tokens in a text are text. All added
    tokens are control tokens here, so that no text becomes one.

    Its `chat_format` is the folder's chat template; without one, what fits the
    control tokens: ChatML's, Llama 3's, or else Alpaca's.

    Args:
        folder: str or Path.
        chat_format: ChatFormat, or the name of a built-in one, instead of the
            folder's.

    Returns:
        Tokenizer, or None where there are no files of one.

    Raises:
        InputError: for a kind that is not supported, a damaged file, or a
            chat template that is not of our form; the text says which.
    """
    folder = pathlib.Path(folder)
    config = {}
    if (folder / CONFIG_FILE).is_file():
        config = _read_object(folder / CONFIG_FILE)
    tokenizer = _load(folder, config)
    if tokenizer is not None:
        tokenizer.chat_format = _chat_format(
            folder, config, tokenizer, chat_format
        )
    return tokenizer


def save_huggingface_tokenizer(folder, tokenizer, *, max_length=None):
    """Writes a tokenizer's files for `transformers.AutoTokenizer`.

    tokenizer.json, tokenizer_config.json with the chat template, its own or
    the one that fits its control tokens, and of a
    SentencePiece tokenizer the model as tokenizer.model, of a WordPiece one
    the pieces as vocab.txt. Ids of a text are
    equal, where the reader takes special tokens in a text for text
    (`split_special_tokens=True`).

    Args:
        folder: str or Path, an existing folder.
        tokenizer: Tokenizer.
        max_length: int, tokens, of the model's context; None = not told.

    Raises:
        InputError: for a tokenizer that has no such form.
    """
    folder = pathlib.Path(folder)
    if isinstance(tokenizer, ByteTokenizer):
        first = tokenizer.vocabulary_size - 256
        tokenizer = _with_format(
            BytePairTokenizer(
                {bytes([byte]): first + byte for byte in range(256)},
                [],
                control_tokens=tokenizer.control_tokens,
            ),
            tokenizer.chat_format,
        )
    if isinstance(tokenizer, BytePairTokenizer):
        table = _byte_pair_table(tokenizer)
    elif isinstance(tokenizer, SentencePieceTokenizer):
        table = _sentence_piece_table(tokenizer)
    elif isinstance(tokenizer, WordPieceTokenizer) and tokenizer.bert_words:
        table = _table(**word_piece_parts(tokenizer))
    else:
        raise InputError(
            f"a tokenizer of kind {tokenizer.kind!r} is not written for "
            f"transformers."
        )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    chat_format = tokenizer.chat_format or _usual_format(
        tokenizer.control_tokens
    )
    if chat_format is not None:
        config |= {
            "bos_token": chat_format.document,
            "eos_token": chat_format.document_end,
            "chat_template": to_jinja(chat_format),
        }
    if isinstance(tokenizer, WordPieceTokenizer):
        config |= word_piece_config(tokenizer)
        save_pieces(folder, tokenizer)
    for key, token in (("pad_token", "<|pad|>"), ("unk_token", "<|unknown|>")):
        if token in tokenizer.control_tokens:
            config[key] = token
    if max_length is not None:
        config["model_max_length"] = max_length
    write_json(folder / TOKENIZER_FILE, table)
    write_json(folder / CONFIG_FILE, config)
    if isinstance(tokenizer, SentencePieceTokenizer):
        (folder / SENTENCE_PIECE_FILES[0]).write_bytes(tokenizer.model)


# Reading.


def _load(folder, config):
    path = folder / TOKENIZER_FILE
    models = [folder / name for name in SENTENCE_PIECE_FILES]
    models = [model for model in models if model.is_file()]
    if not path.is_file():
        if models:
            return _sentence_piece(models[0], _config_tokens(folder, config))
        if (folder / PIECES_FILE).is_file():
            return read_pieces(
                folder / PIECES_FILE, config, _config_tokens(folder, config)
            )
        return _load_gpt2(folder, config)
    table = _read_object(path)
    try:
        model = table["model"]
        # Old files do not tell; only BPE has merges, WordPiece this limit.
        told = {"merges": "BPE", "max_input_chars_per_word": "WordPiece"}
        kind = model.get("type") or next(
            (kind for key, kind in told.items() if key in model), ""
        )
        added = {one["content"]: one for one in table.get("added_tokens") or []}
        controls = {content: one["id"] for content, one in added.items()}
        if kind == "Unigram" or model.get("byte_fallback"):
            if not models:
                raise InputError(
                    f"a SentencePiece tokenizer is read from its "
                    f"{SENTENCE_PIECE_FILES[0]}, which is missing."
                )
            return _sentence_piece(models[0], controls)
        if kind == "WordPiece":
            return read_word_piece(table, controls)
        if kind != "BPE":
            raise InputError(
                f"tokenizers of type {kind!r} are not supported; byte-level "
                f"BPE, WordPiece and SentencePiece are."
            )
        return _byte_pair(table, model, added, controls)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: is no tokenizer of Hugging Face: {error!r}."
        ) from error


def _load_gpt2(folder, config):
    paths = folder / VOCABULARY_FILE, folder / MERGES_FILE
    if not all(path.is_file() for path in paths):
        return None
    vocabulary = _read_object(paths[0])
    controls = _config_tokens(folder, config) or {"<|endoftext|>": None}
    controls = {
        token: vocabulary.get(token, token_id)
        for token, token_id in controls.items()
    }
    try:
        lines = paths[1].read_text(encoding="utf-8").split("\n")
        merges = [line for line in lines if line.strip()]
        if merges and merges[0].startswith("#version"):
            merges = merges[1:]
        return BytePairTokenizer(
            _unspelled(vocabulary, controls),
            [_pair(line) for line in merges],
            control_tokens=controls,
            split="gpt2",
        )
    except InputError as error:
        raise InputError(f"{paths[0]}: {error}") from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{paths[1]}: are no merges of bytes: {error!r}."
        ) from error


def _byte_pair(table, model, added, controls):
    """Returns the BytePairTokenizer of a tokenizer.json."""
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise InputError(f"a BPE model with {key} is not supported.")
    for content, one in added.items():
        if not content.strip() or one.get("single_word"):
            raise InputError(
                f"the added token {content!r}, which is found in texts, is "
                f"not supported."
            )
    return BytePairTokenizer(
        _unspelled(model["vocab"], controls),
        [_pair(pair) for pair in model["merges"]],
        control_tokens=controls,
        split=_word_split(table.get("pre_tokenizer")),
        normalization=_normalization(table.get("normalizer")),
        whole_words=bool(model.get("ignore_merges")),
    )


def _unspelled(vocabulary, controls):
    tokens = {}
    for token, token_id in vocabulary.items():
        if token in controls:
            continue
        try:
            tokens[unspell(token)] = token_id
        except ValueError:
            raise InputError(
                f"the token {token!r} is not spelled in bytes, so that this "
                f"is no byte-level BPE; others are not supported."
            ) from None
    return tokens


def _pair(pair):
    left, right = pair.split(" ") if isinstance(pair, str) else pair
    return unspell(left), unspell(right)


def _steps(step):
    """Returns the steps of a `Sequence`, or of one step, as a flat list."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    parts = step.get("pretokenizers") or step.get("normalizers") or []
    return [one for part in parts for one in _steps(part)]


def _word_split(step):
    steps = _steps(step)
    kinds = [one["type"] for one in steps]
    if kinds and kinds[-1] == "ByteLevel":
        if steps[-1].get("add_prefix_space"):
            raise InputError("add_prefix_space=true is not supported.")
        has_regex = steps[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and has_regex:
            return "gpt2"
        if (
            kinds == ["Digits", "ByteLevel"]
            and steps[0]["individual_digits"]
            and has_regex
        ):
            return "gpt2_digits"
        if kinds == ["Split", "ByteLevel"] and not has_regex:
            regex = steps[0]["pattern"].get("Regex")
            for name, split in WORD_SPLITS.items():
                if (
                    split.regex == regex
                    and not split.digits_apart
                    and steps[0]["behavior"] == "Isolated"
                    and not steps[0]["invert"]
                ):
                    return name
            raise InputError(f"the word split {regex!r} is not supported.")
    raise InputError(
        f"the pre-tokenizer {' + '.join(kinds) or None} is not supported; "
        f"ByteLevel is, alone or after Digits or a known Split."
    )


def _normalization(step):
    kinds = [one["type"] for one in _steps(step)]
    if not kinds:
        return None
    if len(kinds) == 1 and kinds[0] in NORMALIZATIONS:
        return kinds[0]
    raise InputError(f"the normalizer {' + '.join(kinds)} is not supported.")


def _sentence_piece(path, controls):
    """Returns the SentencePieceTokenizer of a model file.

    Special tokens that are pieces of the text there become control pieces:
    they would be found in what is typed.
    """
    try:
        model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}.") from error
    except Exception as error:
        # Protobuf's own class of errors comes from the module that is loaded.
        raise InputError(f"{path}: is no SentencePiece model.") from error
    pieces = {piece.piece: piece for piece in model.pieces}
    further = {}
    for token, token_id in controls.items():
        if token not in pieces:
            further[token] = token_id
        elif pieces[token].type in (_PIECE.NORMAL, _PIECE.USER_DEFINED):
            pieces[token].type = _PIECE.CONTROL
    taken = [token for token, i in further.items() if i < len(model.pieces)]
    if taken:
        raise InputError(
            f"{path}: the added token {taken[0]!r} has the id of a piece."
        )
    try:
        return SentencePieceTokenizer(
            model.SerializeToString(), control_tokens=further
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _config_tokens(folder, config):
    """Returns dict of added tokens to ids that a tokenizer_config tells."""
    table = config.get("added_tokens_decoder")
    if not isinstance(table, dict):
        return {}
    try:
        return {one["content"]: int(i) for i, one in table.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / CONFIG_FILE}: added_tokens_decoder is no table of "
            f"tokens: {error!r}."
        ) from error


def _chat_format(folder, config, tokenizer, chosen):
    controls = tokenizer.control_tokens
    if isinstance(chosen, ChatFormat):
        return chosen
    if chosen:
        return build_chat_format(chosen, controls)
    source = config.get("chat_template")
    if isinstance(source, list):
        by_name = {one["name"]: one["template"] for one in source}
        source = by_name.get("default")
    if (folder / TEMPLATE_FILE).is_file():
        source = (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    if source:
        try:
            return read_jinja(
                source,
                control_tokens=list(controls),
                variables=_variables(config),
            )
        except InputError as error:
            raise InputError(
                f"{folder}: {str(error).rstrip('.')}; or load it with "
                f'chat_format="chatml".'
            ) from error
    return _usual_format(controls)


def _usual_format(controls):
    """Returns the built-in ChatFormat that fits control tokens, or None."""
    for name in ("kerasgpt", "chatml", "llama-3", "alpaca"):
        try:
            chat_format = build_chat_format(name, controls)
        except InputError:
            # It has no token that begins or ends a document.
            return None
        if set(chat_format.control_tokens) <= controls.keys():
            return chat_format
    return None


def _variables(config):
    variables = {}
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = token_text(config.get(key))
        if token:
            variables[key] = token
    return variables


def _read_object(path):
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{path}: is too large for a tokenizer's file.")
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: must hold a JSON object.")
    return values


# Writing.


def _with_format(tokenizer, chat_format):
    tokenizer.chat_format = chat_format
    return tokenizer


def _added_tokens(controls):
    ranked = sorted(controls.items(), key=lambda one: one[1])
    return [
        {
            "id": token_id,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token, token_id in ranked
    ]


def _table(
    controls, model, *, normalizer, pre_tokenizer, decoder, post_processor=None
):
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(controls),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": model,
    }


def _with_controls(vocabulary, controls):
    """Returns the vocabulary of a file, control tokens in their places.

    `tokenizers` numbers added tokens itself, after the vocabulary, unless the
    vocabulary has them.
    """
    rest = sorted(controls.values())
    if rest == list(range(len(vocabulary), len(vocabulary) + len(rest))):
        return vocabulary
    return {**vocabulary, **controls}


def _byte_pair_table(tokenizer):
    split = WORD_SPLITS[tokenizer.split]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": tokenizer.split in ("gpt2", "gpt2_digits"),
    }
    before = []
    if split.digits_apart:
        before = [{"type": "Digits", "individual_digits": True}]
    elif not byte_level["use_regex"]:
        before = [
            {
                "type": "Split",
                "pattern": {"Regex": split.regex},
                "behavior": "Isolated",
                "invert": False,
            }
        ]
    pre_tokenizer = byte_level
    if before:
        pre_tokenizer = {
            "type": "Sequence",
            "pretokenizers": [*before, byte_level],
        }
    spelled = {spell(token): i for token, i in tokenizer.vocabulary.items()}
    return _table(
        tokenizer.control_tokens,
        _bpe(
            _with_controls(spelled, tokenizer.control_tokens),
            [[spell(left), spell(right)] for left, right in tokenizer.merges],
            ignore_merges=tokenizer.whole_words,
        ),
        normalizer=(
            {"type": tokenizer.normalization}
            if tokenizer.normalization
            else None
        ),
        pre_tokenizer=pre_tokenizer,
        decoder={**byte_level, "add_prefix_space": True, "use_regex": True},
    )


def _bpe(vocabulary, merges, **settings):
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": merges,
        **settings,
    }


def _replace(old, new):
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _sentence_piece_table(tokenizer):
    model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    normalizer = model.normalizer_spec
    if normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces:
        raise InputError(
            "a SentencePiece model that normalises text is not written for "
            "transformers; its model file can be read as it is."
        )
    for piece in model.pieces:
        # One character without merges stays alone, as it is meant to.
        if piece.type == _PIECE.USER_DEFINED and len(piece.piece) > 1:
            raise InputError(
                f"a SentencePiece model with the user-defined symbol "
                f"{piece.piece!r} is not written for transformers."
            )
    before, after = [], []
    if tokenizer.is_ours:
        before = [
            _replace(ESCAPE, ESCAPE + "0"),
            _replace(SPACE_MARK, ESCAPE + "1"),
        ]
        after = [
            _replace(ESCAPE + "1", SPACE_MARK),
            _replace(ESCAPE + "0", ESCAPE),
        ]
    if normalizer.add_dummy_prefix:
        before.append({"type": "Prepend", "prepend": SPACE_MARK})
        after.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    before.append(_replace(" ", SPACE_MARK))
    is_bpe = model.trainer_spec.model_type == model.trainer_spec.BPE
    return _table(
        tokenizer.control_tokens,
        _merged(model) if is_bpe else _unigram(model),
        normalizer={"type": "Sequence", "normalizers": before},
        pre_tokenizer=None,
        decoder={
            "type": "Sequence",
            "decoders": [
                _replace(SPACE_MARK, " "),
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *after,
            ],
        },
    )


def _merged(model):
    """Returns the BPE model of `tokenizers` for SentencePiece's.

    SentencePiece joins the neighbours whose union has the best score; of all
    pairs that make a piece only one ever stands side by side, see
    `byte_pair.last_parts`.
    """
    learned = [
        piece
        for piece in model.pieces
        if piece.type == _PIECE.NORMAL and len(piece.piece) > 1
    ]
    learned.sort(key=lambda piece: -piece.score)
    ranks = {piece.piece: rank for rank, piece in enumerate(learned)}
    parts = [last_parts(piece.piece, ranks) for piece in learned]
    return _bpe(
        {piece.piece: index for index, piece in enumerate(model.pieces)},
        [pair for pair in parts if len(pair) == 2],
        unk_token=model.pieces[model.trainer_spec.unk_id].piece,
        byte_fallback=True,
    )


def _unigram(model):
    """Returns the Unigram model of `tokenizers` for SentencePiece's.

    There all pieces are looked for in the text, the names of control tokens
    and of bytes too; their scores here keep them from being chosen.
    """
    kinds = (_PIECE.NORMAL, _PIECE.USER_DEFINED)
    return {
        "type": "Unigram",
        "unk_id": model.trainer_spec.unk_id,
        "vocab": [
            [piece.piece, piece.score if piece.type in kinds else _NEVER]
            for piece in model.pieces
        ],
        "byte_fallback": True,
    }
