import json

import pytest
import tensorflow as tf
import tensorflow_text as tf_text

from kerasgpt.config import InputError
from kerasgpt.tokenizers import CONTROL_TOKENS, WordPieceTokenizer
from kerasgpt.tokenizers.word_piece import MASK, train_word_piece
from tests.descriptors import tiny_word_piece

# As BERT's vocabulary begins.
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["un", "##aff", "##able", "want", "##ed", "!", "你", "the", "runn"]


def bert(**options):
    return WordPieceTokenizer(
        [*BERT, *WORDS],
        num_control_tokens=len(BERT),
        unknown="[UNK]",
        **options,
    )


def test_the_example_of_the_paper():
    tokenizer = bert()
    names = [*BERT, *WORDS]
    pieces = [names[i] for i in tokenizer.encode("unwanted unaffable!")]
    # "want" is a word, not an ending: the longest piece that fits fails.
    assert pieces == ["[UNK]", "un", "##aff", "##able", "!"]


def test_ids_equal_those_of_the_plain_algorithm():
    tokenizer = bert(lower_case=True)
    slow = tf_text.BertTokenizer(
        tf.lookup.StaticVocabularyTable(
            tf.lookup.KeyValueTensorInitializer(
                [*BERT, *WORDS], tf.range(len(BERT) + len(WORDS), dtype="int64")
            ),
            1,
        ),
        lower_case=True,
        token_out_type=tf.int64,
        unknown_token="[UNK]",
    )
    texts = [
        "The unaffable!  WANTED",
        "你the你 want!want",
        "Thé\tthe\nx",
        "",
        "running the",
    ]
    expected = slow.tokenize(tf.constant(texts)).merge_dims(1, 2).to_list()
    assert tokenizer.encode_strings(tf.constant(texts)).to_list() == expected


def test_chinese_characters_are_words():
    tokenizer = tiny_word_piece()
    alone = [tokenizer.encode(one)[0] for one in "你好世界"]
    assert tokenizer.encode("你好世界") == alone
    assert tokenizer.unknown_id not in alone
    assert tokenizer.decode(alone) == "你 好 世 界"


def test_what_cannot_be_spelled_is_unknown():
    tokenizer = tiny_word_piece()
    assert tokenizer.encode("to zzz 龘") == [
        *tokenizer.encode("to"),
        tokenizer.unknown_id,
        tokenizer.unknown_id,
    ]
    assert tokenizer.encode("a" * 500) == [tokenizer.unknown_id]
    assert tokenizer.decode([tokenizer.unknown_id]) == ""


def test_control_tokens_are_ours_and_a_mask():
    tokenizer = tiny_word_piece()
    for name in CONTROL_TOKENS:
        if name != "<|unknown|>":
            assert tokenizer.control_id(name) == CONTROL_TOKENS.index(name)
    assert tokenizer.mask_id == tokenizer.control_id(MASK) == 9
    assert tokenizer.unknown_id == 1
    assert bert().mask_id == 4
    assert "[UNK]" not in bert().control_tokens


def test_a_control_token_that_is_a_word_is_not_found_in_text():
    tokenizer = WordPieceTokenizer(
        ["MASK", "[UNK]", "to"], num_control_tokens=2, unknown="[UNK]"
    )
    assert tokenizer.encode("to MASK") == [2, 1]
    assert tokenizer.decode([2, 0]) == "to"


def test_training_learns_whole_words_and_every_character():
    tokenizer = train_word_piece(
        ["the theory of the thing", "你好吗"] * 20, vocabulary_size=100
    )
    assert len(tokenizer.encode("the theory of the thing")) == 5
    assert tokenizer.unknown_id not in tokenizer.encode("oyr 吗")
    assert tokenizer.vocabulary_size <= 100
    lower = train_word_piece(
        ["The Thing"] * 20, vocabulary_size=60, lower_case=True
    )
    assert lower.encode("THE thing") == lower.encode("the Thing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pieces": ["a", "a", "[UNK]"]}, "two pieces are equal"),
        ({"pieces": ["a", ""]}, "one is empty"),
        ({"pieces": ["a"]}, "lack '\\[UNK\\]'"),
        ({"pieces": 3}, "no list of pieces"),
        ({"more": 3}, "no list of pieces"),
    ],
)
def test_damaged_files_are_refused(change, message, tmp_path):
    bert().save_files(tmp_path)
    path = tmp_path / "word_piece.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message) as caught:
        WordPieceTokenizer.load_files(tmp_path)
    assert str(path) in str(caught.value)


def test_common_characters_leave_room_for_words():
    texts = ["".join(map(chr, range(0x4E00, 0x4E00 + 200)))]
    texts += ["the theory of the 你好"] * 50
    tokenizer = train_word_piece(texts, vocabulary_size=100)
    assert tokenizer.vocabulary_size <= 100
    ids = tokenizer.encode("the theory 你好 \u4e55")
    assert ids.index(tokenizer.unknown_id) == len(ids) - 1
    assert tokenizer.token_bytes[ids[0]] == 3


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(InputError, match="at least 14 ids"):
        train_word_piece(["to be"], vocabulary_size=13)
    with pytest.raises(InputError, match="there is no text"):
        train_word_piece(["", " \n"], vocabulary_size=100)
