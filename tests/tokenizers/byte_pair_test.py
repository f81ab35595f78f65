import functools
import itertools
import json
import pathlib
import time

import hypothesis
import hypothesis.strategies as st
import pytest
import tensorflow as tf

from kerasgpt.config import InputError
from kerasgpt.tokenizers import BytePairTokenizer, train_byte_pair
from kerasgpt.tokenizers.byte_pair import last_parts, spell, unspell
from tests.descriptors import tiny_byte_pair
from tests.tokenizers.families import FAMILIES, build_family, golden

ROOT = pathlib.Path(__file__).parents[2]
GPT2 = ROOT.parent / "shared" / "data" / "gpt2"
every_split = pytest.mark.parametrize("name", FAMILIES)
BYTES = {bytes([byte]): byte for byte in range(256)}


@functools.cache
def gpt2():
    """Returns GPT-2's tokenizer, from the files published with it."""
    if not GPT2.is_dir():
        pytest.skip(f"{GPT2} is absent")
    vocabulary = json.loads((GPT2 / "encoder.json").read_text())
    lines = (GPT2 / "vocab.bpe").read_text(encoding="utf-8").split("\n")
    end = vocabulary.pop("<|endoftext|>")
    return BytePairTokenizer(
        {unspell(token): i for token, i in vocabulary.items()},
        [tuple(map(unspell, line.split())) for line in lines[1:] if line],
        control_tokens={"<|endoftext|>": end},
        split="gpt2",
    )


@functools.cache
def gpt2_tables():
    ranks = {pair: rank for rank, pair in enumerate(gpt2().merges)}
    return gpt2().vocabulary, ranks


def gpt2_reference(word):
    """Returns a word's ids by the definition: the best listed pair merges."""
    vocabulary, ranks = gpt2_tables()
    parts = [bytes([byte]) for byte in word]
    while len(parts) > 1:
        pairs = list(itertools.pairwise(parts))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        place = pairs.index(best)
        parts[place : place + 2] = [b"".join(best)]
    return [vocabulary[part] for part in parts]


@every_split
def test_ids_equal_those_of_tokenizers(name):
    tokenizer, texts = build_family(name), golden()["texts"]
    expected = golden()["tokenizers"][name]["ids"]
    assert tokenizer.encode_strings(tf.constant(texts)).to_list() == expected
    # Alone or beside others, a text has the same ids.
    for text, ids in list(zip(texts, expected, strict=True))[::9]:
        assert tokenizer.encode(text) == ids


@every_split
def test_texts_come_back(name):
    tokenizer, texts = build_family(name), golden()["texts"]
    if tokenizer.normalization:
        texts = [text for text in texts if text.isascii()]
    rows = tokenizer.encode_strings(tf.constant(texts))
    back = tokenizer.decode_ids(rows).numpy()
    assert [text.decode() for text in back] == texts


def test_normalised_text_is_that_of_unicode():
    assert build_family("qwen2").encode("e\u0301") == build_family(
        "qwen2"
    ).encode("é")
    assert build_family("llama3").encode("e\u0301") != build_family(
        "llama3"
    ).encode("é")


# Letters alone are one word, whatever they are.
letters = st.text(
    st.one_of(
        st.sampled_from("etaoinshrdlu"),
        st.characters(codec="utf-8", categories=["Ll", "Lo", "Lu"]),
    )
)


@hypothesis.given(word=letters)
def test_ids_are_those_of_the_definition(word):
    assert gpt2().encode(word) == gpt2_reference(word.encode())


def test_every_token_of_gpt2_is_its_own_encoding():
    # As words, without what the split would cut.
    tokenizer = gpt2()
    vocabulary, _ = gpt2_tables()
    tokens = [token for token in vocabulary if token.isalpha()]
    rows = tokenizer.encode_strings(tf.constant(tokens)).to_list()
    assert rows == [[vocabulary[token]] for token in tokens]
    assert len(tokens) > 10_000


def test_known_ids_of_gpt2():
    # As published in many places.
    assert gpt2().encode("Hello world") == [15496, 995]
    assert gpt2().encode("<|endoftext|>") == [27, 91, 437, 1659, 5239, 91, 29]
    assert gpt2().control_id("<|endoftext|>") == 50256
    assert gpt2().vocabulary_size == 50257
    assert gpt2().decode([15496, 995, 50256]) == "Hello world"


def test_a_million_identical_letters_take_time_in_proportion():
    tokenizer = tiny_byte_pair()
    tokenizer.encode("a" * 100)

    def seconds(count):
        started = time.perf_counter()
        ids = tokenizer.encode("a" * count)
        assert sum(tokenizer.token_bytes[i] for i in ids) == count
        return time.perf_counter() - started

    small = min(seconds(100_000) for _ in range(2))
    # Quadratic would be a hundred times as long.
    assert seconds(1_000_000) < 40 * small


def test_a_word_that_is_a_token_needs_no_merges():
    # "the" cannot be reached: no merge makes it.
    vocabulary = {**BYTES, b"th": 256, b"the": 257}
    options = {"control_tokens": {"<s>": 258}}
    merges = [(b"t", b"h")]
    merged = BytePairTokenizer(vocabulary, merges, **options)
    assert merged.encode("the then") == [256, 101, 32, 256, 101, 110]
    whole = BytePairTokenizer(vocabulary, merges, whole_words=True, **options)
    assert whole.encode("the then") == [257, 32, 256, 101, 110]


def test_a_part_of_a_word_that_is_a_token_needs_merges():
    # "abc" is never made, and is a part of "xabc" that nothing cuts.
    vocabulary = {**BYTES, b"ab": 256, b"bc": 257, b"abc": 258}
    tokenizer = BytePairTokenizer(
        vocabulary,
        [(b"a", b"b"), (b"b", b"c")],
        whole_words=True,
        control_tokens={"<s>": 259},
    )
    assert tokenizer.encode("abc") == [258]
    assert tokenizer.encode("xabc") == [ord("x"), 256, ord("c")]


def test_spelling_is_that_of_gpt2():
    assert spell(b" a\n\x00\xff") == "ĠaĊĀÿ"
    assert unspell(spell(bytes(range(256)))) == bytes(range(256))
    for text in ("你", " ", "a\n"):
        with pytest.raises(ValueError, match="stands for no byte"):
            unspell(text)


def test_the_last_parts_of_a_token():
    ranks = {b"ab": 1, b"bc": 0, b"abc": 2}
    assert last_parts(b"abc", ranks) == [b"a", b"bc"]
    assert last_parts(b"xyz", ranks) == [b"x", b"y", b"z"]


BAD = {
    "the byte 0x41": lambda: BytePairTokenizer(
        {k: v for k, v in BYTES.items() if k != b"A"}, []
    ),
    "two tokens have one id": lambda: BytePairTokenizer(BYTES, []),
    "needs a token": lambda: _small([(b"a", b"b")]),
    "word split 'gpt9' is unknown": lambda: _small([], split="gpt9"),
    "normalization 'NFX' is unknown": lambda: _small([], normalization="NFX"),
    # b + c merges first, so that ab never stands before a c.
    "an order that no training gives": lambda: BytePairTokenizer(
        {**BYTES, b"bc": 256, b"ab": 257, b"abc": 258},
        [(b"b", b"c"), (b"a", b"b"), (b"ab", b"c")],
        control_tokens={"<s>": 259},
    ),
}


def _small(merges, **options):
    return BytePairTokenizer(
        BYTES, merges, control_tokens={"<s>": 256}, **options
    )


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_vocabulary_is_refused(message):
    with pytest.raises(InputError, match=message):
        BAD[message]()


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"vocabulary": {"你": 1}, "merges": []}']
)
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "byte_pair.json").write_text(content)
    with pytest.raises(InputError, match=r"byte_pair\.json"):
        BytePairTokenizer.load_files(tmp_path)


def test_control_ids_may_stand_anywhere_and_are_kept(tmp_path):
    tokenizer = build_family("llama3")
    tokenizer.save_files(tmp_path)
    loaded = BytePairTokenizer.load_files(tmp_path)
    assert loaded.control_tokens == tokenizer.control_tokens
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert loaded.fingerprint() != build_family("gpt2").fingerprint()
    assert min(loaded.control_tokens.values()) > 256
    assert loaded.vocabulary == tokenizer.vocabulary
    assert loaded.merges == tokenizer.merges


def test_training_again_gives_the_same_tokenizer():
    texts = ["to be, or not to be", "你好"] * 10
    first = train_byte_pair(texts, vocabulary_size=290)
    assert (
        train_byte_pair(iter(texts), vocabulary_size=290).fingerprint()
        == first.fingerprint()
    )
    other = train_byte_pair(["another"] * 10, vocabulary_size=290)
    assert other.fingerprint() != first.fingerprint()


def test_the_commonest_pair_is_learned_first():
    tokenizer = train_byte_pair(
        ["ab ab ab ab abc abc xy xy xy"], vocabulary_size=280
    )
    # Counted by hand: ab 6; with its blank 5; xy 3, with its blank 3.
    assert tokenizer.merges[:2] == [(b"a", b"b"), (b" ", b"ab")]
    assert tokenizer.encode(" ab") == [9 + 256 + 1]
    assert {b" xy", b"c"} <= set(tokenizer.vocabulary)


def test_no_merge_crosses_words():
    tokenizer = train_byte_pair(["a b " * 50] * 5, vocabulary_size=300)
    assert set(tokenizer.merges) == {(b" ", b"a"), (b" ", b"b")}
    assert tokenizer.vocabulary_size == 9 + 256 + 2


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        ([], 300, "there is no text"),
        ([""], 300, "there is no text"),
        (["abc"], 265, "at least 266 ids"),
    ],
)
def test_what_cannot_be_trained_is_refused(texts, size, message):
    with pytest.raises(InputError, match=message):
        train_byte_pair(texts, vocabulary_size=size)


def test_a_seed_leaves_the_tables_whole():
    # It empties a cache of kernels that unnamed resources live in.
    tokenizer = build_family("gpt2")
    expected = tokenizer.encode("to be")
    tf.random.set_seed(1)
    assert tokenizer.encode("to be") == expected
    assert tokenizer.decode(expected) == "to be"
