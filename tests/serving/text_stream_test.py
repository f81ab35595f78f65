import asyncio

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kerasgpt.serving.text_stream import TextStream, character_offsets
from kerasgpt.tokenizers import ByteTokenizer, train_sentence_piece

ESCAPE = "\U0010ffff"
ALPHABET = "ab \n你好é😀\u2581\ufffd" + ESCAPE
TEXTS = st.text(st.sampled_from(ALPHABET), max_size=24)
CUTS = st.lists(st.integers(1, 5), min_size=1, max_size=8)
STOPS = st.lists(
    st.text(st.sampled_from("ab \n你好😀"), min_size=1, max_size=4), max_size=4
)


class ByteDecoder:
    """Ids are bytes and text is spelled as SentencePieceTokenizer does."""

    def __init__(self):
        self.num_ids = 0

    async def __call__(self, rows):
        self.num_ids += sum(map(len, rows))
        texts = [bytes(row).decode(errors="replace") for row in rows]
        return [
            text.replace(ESCAPE + "1", "\u2581").replace(ESCAPE + "0", ESCAPE)
            for text in texts
        ]


def spelled(text):
    text = text.replace(ESCAPE, ESCAPE + "0").replace("\u2581", ESCAPE + "1")
    return list(text.encode())


def cut(text, stops):
    found = [text.find(stop) for stop in stops if stop in text]
    return text[: min(found, default=len(text))]


def streamed(decode, ids, sizes, stops=()):
    """Returns the pieces of ids that come in groups of the given sizes."""

    async def run():
        stream = TextStream(decode, stops=tuple(stops))
        pieces, start, turn = [], 0, 0
        while start < len(ids):
            size = sizes[turn % len(sizes)]
            pieces.append(await stream.push(ids[start : start + size]))
            start, turn = start + size, turn + 1
        return [*pieces, stream.finish()], stream

    return asyncio.run(run())


@given(TEXTS, CUTS, STOPS)
@example("abaabc", [1], ["abc", "b"])
@example("aab", [1], ["ab"])
@example("你好😀", [1], ["好"])
def test_joined_pieces_are_the_text_before_the_first_stop(text, sizes, stops):
    pieces, stream = streamed(ByteDecoder(), spelled(text), sizes, stops)
    assert "".join(pieces) == cut(text, stops)
    assert stream.is_stopped == any(stop in text for stop in stops)


@given(st.lists(st.integers(0, 255), max_size=24), CUTS)
def test_bytes_of_no_character_stream_as_they_decode(ids, sizes):
    decode = ByteDecoder()
    pieces, stream = streamed(decode, ids, sizes)
    (text,) = asyncio.run(decode([ids]))
    assert "".join(pieces) == text
    assert stream.num_characters == len(text)


def test_no_piece_ends_inside_a_character():
    pieces, _ = streamed(ByteDecoder(), spelled("a你😀\u2581b"), [1])
    assert [piece for piece in pieces if piece] == list("a你😀\u2581b")


def test_a_stop_that_began_earlier_wins_over_one_that_ends_earlier():
    for sizes in ([1], [2], [9]):
        pieces, _ = streamed(
            ByteDecoder(), spelled("xabc"), sizes, ["abc", "b"]
        )
        assert "".join(pieces) == "x"
    pieces, _ = streamed(ByteDecoder(), spelled("xabd"), [1], ["abc", "b"])
    assert "".join(pieces) == "xa"


def test_nothing_comes_after_a_stop():
    pieces, stream = streamed(ByteDecoder(), spelled("a.b.c"), [1], ["."])
    assert stream.is_stopped
    assert pieces == ["a", "", "", "", "", ""]


@pytest.mark.parametrize("text", ["word " * 400, "你好" * 400, "😀" * 400])
def test_a_long_answer_is_not_decoded_again_and_again(text):
    decode = ByteDecoder()
    ids = spelled(text)
    streamed(decode, ids, [1], ["nowhere"])
    assert decode.num_ids <= 4 * len(ids)


@given(TEXTS)
def test_offsets_point_at_the_character_of_each_id(text):
    expected = []
    for offset, character in enumerate(text):
        expected += [offset] * len(spelled(character))
    offsets = asyncio.run(character_offsets(ByteDecoder(), spelled(text), text))
    # An id of a character that is always open may be placed at the next one.
    if not set(text) & {"\ufffd", ESCAPE}:
        assert offsets == expected
    assert len(offsets) == len(expected)
    assert offsets == sorted(offsets)
    assert all(offset <= len(text) for offset in offsets)


def test_offsets_find_back_after_stray_bytes():
    decode = ByteDecoder()
    ids = [*b"a\xe4\xbd", *b"b\xff\xff", *"你c".encode()]
    (text,) = asyncio.run(decode([ids]))
    assert text == "a\ufffdb\ufffd\ufffd你c"
    offsets = asyncio.run(character_offsets(decode, ids, text))
    assert offsets == [0, 1, 2, 2, 3, 4, 5, 5, 5, 6]


@pytest.mark.parametrize("kind", ["byte", "sentence_piece"])
def test_the_tokenizers_of_the_house_stream(kind):
    corpus = "to be or not to be, 你好 吗"
    tokenizer = (
        ByteTokenizer()
        if kind == "byte"
        else train_sentence_piece([corpus] * 9, vocabulary_size=320)
    )

    async def decode(rows):
        return [tokenizer.decode(row) for row in rows]

    text = f"\ufeff{corpus} 😀\u2581{ESCAPE} not"
    ids = tokenizer.encode(text)
    for sizes in ([1], [3]):
        pieces, _ = streamed(decode, ids, sizes)
        assert "".join(pieces) == text
        pieces, _ = streamed(decode, ids, sizes, ["吗"])
        assert "".join(pieces) == cut(text, ["吗"])
