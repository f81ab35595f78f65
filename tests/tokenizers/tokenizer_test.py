"""What holds for every tokenizer, whatever is typed."""

import base64
import unicodedata

import hypothesis
import hypothesis.strategies as st
import pytest
import tensorflow as tf

from kerasgpt.tokenizers import (
    CONTROL_TOKENS,
    BytePairTokenizer,
    ByteTokenizer,
    SentencePieceTokenizer,
)
from kerasgpt.tokenizers.tokenizer import Tokenizer
from tests.descriptors import (
    tiny_byte_pair,
    tiny_sentence_piece,
    tiny_unigram,
)

TOKENIZERS = {
    "byte": ByteTokenizer,
    "byte_pair": tiny_byte_pair,
    "sentence_piece": tiny_sentence_piece,
    "unigram": tiny_unigram,
}
every_tokenizer = pytest.mark.parametrize("kind", TOKENIZERS)
CONTROL_IDS = set(range(len(CONTROL_TOKENS)))
# Texts that other tokenizers have lost, merged or normalised.
HARD_TEXTS = {
    "empty": "",
    "one space": " ",
    "many spaces": "   a   b   ",
    "space mark": "\u2581 a\u2581b \u2581\u2581",
    "escape character": "\U0010ffff \U0010ffff0 \U0010ffff1 \U0010ffff\u2581",
    "NUL": "a\x00b\x00",
    "other controls": "\x01\x08\x1b[0m\x7f\x85",
    "line ends": "\n\r\n\r\n\n\r",
    "tabs": "\ta\t\tb",
    "emoji": "\U0001f600 \U0001f468\u200d\U0001f469 \u2764\ufe0f \U0001f1e9",
    "mixed": "Hello 你好, 3 pieces 三件！naïve café",
    "composed and decomposed": "\u00e9 e\u0301 \ufb01 \u2460 \uff21",
    "right to left": "\u202eשלום\u202c مرحبا",
    "noncharacters": "\ufeff\ufffe\uffff\ufffd\ufdd0",
    "spaces of Unicode": "\u00a0\u2003\u3000\u200b\u2028\u2029",
    "digits": "0123456789 3.14159",
    "long": "a" * 5000,
}


@every_tokenizer
@pytest.mark.parametrize("name", HARD_TEXTS)
def test_hard_texts_come_back_as_they_were(kind, name):
    tokenizer, text = TOKENIZERS[kind](), HARD_TEXTS[name]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not CONTROL_IDS & set(ids)


@every_tokenizer
@hypothesis.given(text=st.text())
def test_every_text_comes_back_and_gives_no_control_id(kind, text):
    tokenizer = TOKENIZERS[kind]()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not CONTROL_IDS & set(ids)


# Surrogates are no Unicode text; everything else of each plane is tried.
PLANES = [
    range(start, start + 0x1000)
    for start in (0x0, 0x2000, 0xE000, 0xF000, 0x1F000, 0x10F000)
]


@every_tokenizer
@pytest.mark.parametrize("plane", PLANES, ids=lambda plane: hex(plane.start))
def test_every_character_comes_back(kind, plane):
    tokenizer = TOKENIZERS[kind]()
    texts = ["".join(map(chr, plane[i : i + 64])) for i in range(0, 4096, 64)]
    rows = tokenizer.encode_strings(tf.constant(texts))
    assert int(tf.reduce_min(rows.values)) >= len(CONTROL_TOKENS)
    decoded = [text.decode() for text in tokenizer.decode_ids(rows).numpy()]
    assert decoded == texts


def _full_width(text):
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


DISGUISES = {
    "plain": lambda name: name,
    "upper": str.upper,
    "title": str.title,
    "full width": _full_width,
    "zero width inside": lambda name: "\u200b".join(name),
    "joiner inside": lambda name: "\u2060".join(name),
    "spaced": lambda name: " ".join(name),
    "padded": lambda name: f"  {name}\n",
    "repeated": lambda name: name * 5,
    "nested": lambda name: f"{name[:2]}{name}{name[2:]}",
    "cut": lambda name: name[:-1],
    "NUL": lambda name: f"{name}\x00",
    "base64": lambda name: base64.b64encode(name.encode()).decode(),
    "escaped": lambda name: name.encode("unicode_escape").decode(),
    "decomposed": lambda name: unicodedata.normalize("NFKD", name),
    "space mark": lambda name: f"\u2581{name}\u2581",
    "escape character": lambda name: f"\U0010ffff{name}\U0010ffff0",
    "in a word": lambda name: f"to{name}be",
}


@every_tokenizer
@pytest.mark.parametrize("disguise", DISGUISES)
def test_no_disguise_of_a_control_token_gives_its_id(kind, disguise):
    tokenizer = TOKENIZERS[kind]()
    # Names that others use for structure are tried too.
    foreign = ("<s>", "</s>", "<unk>", "<pad>", "<|im_start|>", "<0x00>")
    for name in (*CONTROL_TOKENS, *foreign):
        text = DISGUISES[disguise](name)
        ids = tokenizer.encode(text)
        assert not CONTROL_IDS & set(ids)
        assert tokenizer.decode(ids) == text


@every_tokenizer
@hypothesis.given(
    parts=st.lists(
        st.one_of(
            st.sampled_from(CONTROL_TOKENS),
            st.sampled_from(["<|", "|>", "<0x00>", "\u2581", "\U0010ffff"]),
            st.text(max_size=3),
        ),
        max_size=6,
    )
)
@hypothesis.settings(max_examples=60)
def test_no_mixture_with_control_tokens_gives_a_control_id(kind, parts):
    tokenizer, text = TOKENIZERS[kind](), "".join(parts)
    ids = tokenizer.encode(text)
    assert not CONTROL_IDS & set(ids)
    assert tokenizer.decode(ids) == text


@every_tokenizer
def test_control_ids_come_first_and_have_no_text(kind):
    tokenizer = TOKENIZERS[kind]()
    ids = [tokenizer.control_id(name) for name in CONTROL_TOKENS]
    assert ids == list(range(len(CONTROL_TOKENS)))
    assert tokenizer.decode(ids) == ""
    assert [tokenizer.token_bytes[i] for i in ids] == [0] * len(ids)
    text = tokenizer.encode("to be")
    assert tokenizer.decode([2, *text, 8, 0, 0]) == "to be"


@every_tokenizer
@hypothesis.given(
    ids=st.lists(st.integers(min_value=0, max_value=264), max_size=12)
)
def test_any_ids_decode_to_valid_text(kind, ids):
    # A model may well produce half a character.
    tokenizer = TOKENIZERS[kind]()
    text = tokenizer.decode(ids)
    assert text.encode().decode() == text


@every_tokenizer
def test_rows_of_a_batch_are_independent_and_may_be_padded(kind):
    tokenizer = TOKENIZERS[kind]()
    texts = ["to be", "", "你好", "or not"]
    rows = tokenizer.encode_strings(tf.constant(texts))
    assert rows.dtype == tf.int32
    for text, row in zip(texts, rows.to_list(), strict=True):
        assert row == tokenizer.encode(text)
    decoded = tokenizer.decode_ids(rows.to_tensor()).numpy()
    assert [text.decode() for text in decoded] == texts


@every_tokenizer
@pytest.mark.parametrize("batch_size", [2, 100])
def test_many_texts_are_encoded_in_batches(kind, batch_size):
    tokenizer = TOKENIZERS[kind]()
    texts = ["to be", "", "你好", "or not", ""]
    rows = tokenizer.encode_batch(texts, batch_size=batch_size)
    expected = [tokenizer.encode(text) for text in texts]
    assert [row.tolist() for row in rows] == expected


@every_tokenizer
def test_no_text_at_all(kind):
    tokenizer = TOKENIZERS[kind]()
    assert tokenizer.encode_batch([]) == []
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""
    empty = tokenizer.encode_strings(tf.constant([], tf.string))
    assert empty.to_list() == []
    assert tokenizer.decode_ids(empty).numpy().tolist() == []


def test_the_contract_leaves_the_cutting_to_subclasses():
    tokenizer = Tokenizer()
    for call in (
        lambda: tokenizer.encode("a"),
        lambda: tokenizer.decode([1]),
        lambda: tokenizer.save_files("."),
        lambda: Tokenizer.load_files("."),
        tokenizer.fingerprint,
    ):
        with pytest.raises(NotImplementedError):
            call()
    classes = (BytePairTokenizer, ByteTokenizer, SentencePieceTokenizer)
    kinds = {one.kind for one in classes}
    assert len(kinds) == len(classes)
    assert "" not in kinds
