import gc
import itertools
import json
import pathlib
import random

import hypothesis
import hypothesis.strategies as st
import pytest
import sentencepiece
import tensorflow as tf
from sentencepiece import sentencepiece_model_pb2

from kerasgpt.config import InputError
from kerasgpt.tokenizers import (
    CONTROL_TOKENS,
    SentencePieceTokenizer,
    train_sentence_piece,
)
from tests.descriptors import tiny_sentence_piece

DEMO = pathlib.Path(__file__).parents[3] / "shared" / "data" / "demo"


def _reference():
    """Returns the Python library's processor of the same model."""
    return sentencepiece.SentencePieceProcessor(
        model_proto=tiny_sentence_piece()._model
    )


# Without the two characters that our tokenizer escapes.
plain_text = st.text(
    st.characters(codec="utf-8", exclude_characters="\u2581\U0010ffff")
)


@hypothesis.given(text=plain_text)
def test_ids_equal_those_of_the_python_library(text):
    ids = tiny_sentence_piece().encode(text)
    assert ids == _reference().encode(text)


def test_words_of_the_training_text_are_short():
    tokenizer = tiny_sentence_piece()
    text = "to be, or not to be"
    assert len(tokenizer.encode(text)) < len(text)


def test_the_escape_keeps_marks_apart_from_spaces():
    tokenizer = tiny_sentence_piece()
    assert tokenizer.encode("\u2581") != tokenizer.encode(" ")
    assert tokenizer.encode("\U0010ffff1") != tokenizer.encode("\u2581")


def test_bytes_are_counted_as_the_text_has_them():
    tokenizer = tiny_sentence_piece()
    for text in ("to be, or not", " 你好", "x\ny", "\x00é\U0001f600"):
        lengths = [tokenizer.token_bytes[i] for i in tokenizer.encode(text)]
        assert sum(lengths) == len(text.encode())


def test_training_again_gives_the_same_model():
    texts = ["to be, or not to be", "你好"] * 10
    first = train_sentence_piece(texts, vocabulary_size=300)
    second = train_sentence_piece(texts, vocabulary_size=300)
    assert first.fingerprint() == second.fingerprint()
    other = train_sentence_piece(["another text"] * 10, vocabulary_size=300)
    assert other.fingerprint() != first.fingerprint()


def assert_round_trips(tokenizer, texts):
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        lengths = [tokenizer.token_bytes[i] for i in ids]
        assert sum(lengths) == len(text.encode())


def pieces(tokenizer):
    """Returns the learned pieces: no control ids, no bytes."""
    processor = sentencepiece.SentencePieceProcessor(
        model_proto=tokenizer._model
    )
    return [
        processor.id_to_piece(index)
        for index in range(len(CONTROL_TOKENS), processor.vocab_size())
        if not processor.is_byte(index)
    ]


@pytest.mark.parametrize("size", [300, 800, 2048])
def test_many_chinese_characters_leave_room_for_words(size):
    # Characters as in a natural text: few common ones, many rare ones.
    rng = random.Random(0)
    characters = [chr(0x4E00 + index) for index in range(4000)]
    weights = list(itertools.accumulate(1 / n for n in range(1, 4001)))
    texts = [
        "".join(rng.choices(characters, cum_weights=weights, k=40))
        + "多少钱？你好。"
        for _ in range(1500)
    ]
    assert len(set("".join(texts))) > size
    tokenizer = train_sentence_piece(texts, vocabulary_size=size)
    assert tokenizer.vocabulary_size <= size
    learned = pieces(tokenizer)
    single = [piece for piece in learned if len(piece) == 1]
    # The line break has a piece whatever the text.
    assert 0 < len(single) <= len(learned) // 2 + 2
    assert_round_trips(tokenizer, [*texts[:50], "罕见字龘\n", "\u9fa5 x"])


@pytest.mark.skipif(
    not DEMO.is_dir(), reason="the demo files are not beside this checkout"
)
def test_the_chinese_demo_file_trains_the_default_vocabulary():
    rows = json.loads((DEMO / "alpaca_zh_demo.json").read_text())
    texts = [text for row in rows for text in row.values() if text]
    tokenizer = train_sentence_piece(texts, vocabulary_size=2048)
    assert 1500 < tokenizer.vocabulary_size <= 2048
    assert max(map(len, pieces(tokenizer))) > 1
    assert_round_trips(tokenizer, texts)


def test_texts_may_come_from_a_generator():
    tokenizer = train_sentence_piece(
        (text for text in ["to be or not"] * 9), vocabulary_size=300
    )
    assert tokenizer.decode(tokenizer.encode("to be")) == "to be"


def test_a_small_text_gives_fewer_pieces_than_asked_for():
    tokenizer = train_sentence_piece(["ab ab ab"], vocabulary_size=5000)
    assert len(CONTROL_TOKENS) + 256 < tokenizer.vocabulary_size < 300


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(InputError, match="vocabulary_size=100: at least 267"):
        train_sentence_piece(["a"], vocabulary_size=100)


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_no_text_is_refused(texts):
    with pytest.raises(InputError, match="there is no text"):
        train_sentence_piece(texts, vocabulary_size=300)


@pytest.mark.parametrize("text", ["\n", "\n\n", "a\x00b", "\x00", "\u2581"])
def test_odd_texts_train_or_are_refused_in_words(text):
    try:
        tokenizer = train_sentence_piece([text], vocabulary_size=300)
    except InputError as error:
        assert "vocabulary_size=300" in str(error)
    else:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_of_control_tokens_can_be_trained_on():
    texts = [f"{name} to be" for name in CONTROL_TOKENS] * 5
    tokenizer = train_sentence_piece(texts, vocabulary_size=320)
    for text in texts:
        ids = tokenizer.encode(text)
        assert min(ids) >= len(CONTROL_TOKENS)
        assert tokenizer.decode(ids) == text


def test_the_model_file_reloads(tmp_path):
    tokenizer = tiny_sentence_piece()
    tokenizer.save_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sentencepiece.model"]
    loaded = SentencePieceTokenizer.load_files(tmp_path)
    assert loaded.fingerprint() == tokenizer.fingerprint()


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"sentencepiece\.model"):
        SentencePieceTokenizer.load_files(tmp_path)


def _foreign(tmp_path, **options):
    path = tmp_path / "foreign"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["to be or not to be", "你好 to 世界"] * 20),
        model_prefix=str(path),
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return path.with_suffix(".model").read_bytes()


def test_a_foreign_model_that_loses_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="no bytes to fall back to"):
        SentencePieceTokenizer(_foreign(tmp_path, vocab_size=40))
    for content in (b"", b"no model"):
        with pytest.raises(InputError, match=r"sentencepiece\.model"):
            SentencePieceTokenizer(content)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_foreign_model_gives_the_ids_of_the_library(model_type, tmp_path):
    # As Llama 2's: a space goes before a text, and control tokens come after.
    model = _foreign(
        tmp_path,
        model_type=model_type,
        byte_fallback=True,
        vocab_size=320,
        normalization_rule_name="identity",
    )
    tokenizer = SentencePieceTokenizer(model, control_tokens={"<|end|>": 400})
    assert not tokenizer.is_ours
    assert tokenizer.vocabulary_size == 401
    assert len(tokenizer.token_bytes) == 401
    assert tokenizer.control_tokens == {
        "<unk>": 0,
        "<s>": 1,
        "</s>": 2,
        "<|end|>": 400,
    }
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    texts = ["to be or 你好", "", "<s>to</s><unk>", "x\u2581y 龘\n"]
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == library.encode(text)
        assert not set(ids) & set(tokenizer.control_tokens.values())
    ids = tokenizer.encode(texts[0])
    assert tokenizer.decode([1, *ids, 2, 400, 0]) == texts[0]
    tokenizer.save_files(tmp_path)
    loaded = SentencePieceTokenizer.load_files(tmp_path)
    assert loaded.control_tokens == tokenizer.control_tokens
    assert loaded.fingerprint() == tokenizer.fingerprint()
    alone = SentencePieceTokenizer(model)
    assert alone.fingerprint() != tokenizer.fingerprint()


def test_a_seed_that_is_set_later_leaves_the_tokenizer_alive():
    # TensorFlow drops all kernels when a seed is set, and TF Text lets a
    # kernel own the model.
    tokenizer = train_sentence_piece(["to be or not"] * 9, vocabulary_size=300)
    expected = tokenizer.encode("to be")
    try:
        tf.random.set_seed(0)
        gc.collect()
        assert tokenizer.encode("to be") == expected
    finally:
        tiny_sentence_piece.cache_clear()


def test_real_texts_have_the_ids_of_the_python_library():
    if not DEMO.is_dir():
        pytest.skip(f"{DEMO} is absent")
    texts = [
        row["output"]
        for name in ("alpaca_en_demo", "alpaca_zh_demo")
        for row in json.loads((DEMO / f"{name}.json").read_text())[:200]
    ]
    tokenizer = train_sentence_piece(texts, vocabulary_size=2048)
    # Words are cut, looked up and merged here; whole texts are merged there.
    assert tokenizer._merger is not None
    library = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    rows = tokenizer.encode_strings(tf.constant(texts)).to_list()
    assert rows == library.encode(texts)


def test_a_piece_of_two_words_is_merged_in_whole_texts(tmp_path):
    model = sentencepiece_model_pb2.ModelProto.FromString(
        tiny_sentence_piece().model
    )
    model.pieces.add(piece="to\u2581be", score=1.0)
    tokenizer = SentencePieceTokenizer(model.SerializeToString())
    library = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    assert tokenizer._merger is None
    for text in ("to be or not to be", " to  be", "你好 to be"):
        assert tokenizer.encode(text) == library.encode(text)
