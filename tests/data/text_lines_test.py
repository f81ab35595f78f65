"""Owns the proof that bytes become lines of text by the stated rule."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasgpt.data.text_lines import Lines, Place, Stopped, open_bytes

CHINESE = "这是一个用国标编码的文件，里面有很多汉字。\n"


@pytest.fixture
def lines(tmp_path):
    def lines(content, longest=1000):
        path = tmp_path / "a.txt"
        path.write_bytes(content)
        return list(Lines(Place(path)).pieces(longest))

    return lines


def texts(pieces):
    assert not any(fault for _, _, fault in pieces)
    return "".join(text for _, text, _ in pieces)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"]
)
def test_the_encodings_of_chinese_files_are_read(lines, encoding):
    text = f"目录\r\n{CHINESE}€ and \U0001f600\n"
    pieces = lines(text.encode(encoding))
    assert texts(pieces) == text
    assert [number for number, _, _ in pieces] == [1, 2, 3]


def test_both_byte_orders_of_utf16_are_read(lines):
    for mark, encoding in (
        (b"\xff\xfe", "utf-16-le"),
        (b"\xfe\xff", "utf-16-be"),
    ):
        assert texts(lines(mark + "你好\nab".encode(encoding))) == "你好\nab"


def test_short_words_of_a_gb18030_file_are_not_taken_for_utf8(lines):
    # The bytes of 目录 are valid UTF-8, of "Ŀ¼".
    content = CHINESE.encode("gb18030") + "目录\n联通\n".encode("gb18030")
    assert texts(lines(content)) == f"{CHINESE}目录\n联通\n"


def test_one_file_may_mix_utf8_and_gb18030(lines):
    for first, second in (("utf-8", "gb18030"), ("gb18030", "utf-8")):
        content = CHINESE.encode(first) * 3 + CHINESE.encode(second)
        assert texts(lines(content)) == CHINESE * 4


@pytest.mark.parametrize("text", ["Ein schöner Tag\n", "caf\xe9"])
def test_latin1_is_told_by_its_first_byte(lines, text):
    content = b"plain\n" + text.encode("latin-1")
    (_, _, none), (number, _, fault) = lines(content)
    assert not none
    assert number == 2
    position = 6 + next(i for i, sign in enumerate(text) if sign > "\x7f")
    assert fault == (
        f"invalid UTF-8 at byte {position}; convert the file to UTF-8"
    )


@pytest.mark.parametrize("content", [b"", b" \r\n\t\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_told(lines, content):
    with pytest.raises(Stopped, match="is empty"):
        lines(content)


@pytest.mark.parametrize("content", [b"PK\x03\x04\x00\x00abc", b"\x00" * 9])
def test_a_binary_file_is_told(lines, content):
    with pytest.raises(Stopped, match="is a binary file"):
        lines(content)


def test_a_place_says_what_is_known(tmp_path):
    place = Place("a.txt")
    assert str(place) == "a.txt"
    assert place.at("line", 3) == str(place) == "a.txt, line 3"


def test_a_compressed_file_is_opened_decompressed(tmp_path):
    path = tmp_path / "A.TXT.GZ"
    path.write_bytes(gzip.compress(b"hello"))
    with open_bytes(path) as file:
        assert file.read() == b"hello"


@given(
    text=st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    ),
    longest=st.integers(4, 40),
)
def test_utf8_comes_back_whole_whatever_the_size_of_pieces(
    tmp_path_factory, text, longest
):
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_bytes(text.encode())
    if not text.removeprefix("\ufeff").strip():
        return
    pieces = list(Lines(Place(path)).pieces(longest))
    assert texts(pieces) == text.removeprefix("\ufeff")
