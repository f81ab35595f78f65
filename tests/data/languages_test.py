"""Owns the proof that English, Chinese and others are told apart."""

import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasgpt.data.languages import (
    CODES,
    SCRIPTS,
    count_scripts,
    identify,
    is_everyday_chinese,
)

DEMO = pathlib.Path(__file__).parents[3] / "shared" / "data" / "demo"
TEXTS = {
    "en": "It was the best of times, it was the worst of times.",
    "zh": "从前有一座山，山上有一座庙，庙里有一个老和尚在讲故事。",
    "ja": "昔々、あるところにおじいさんとおばあさんが住んでいました。",
    "ko": "옛날 옛적에 할아버지와 할머니가 살고 있었습니다.",
    "ru": "Жили-были старик со старухой у самого синего моря.",
    "de": "Es war einmal ein König, der hatte eine Tochter und sie war schön.",
    "fr": "Il était une fois une petite fille que tout le monde aimait.",
    "es": "En un lugar de la Mancha, de cuyo nombre no quiero acordarme.",
    "it": "C'era una volta un pezzo di legno che non era di lusso.",
    "pt": "Era uma vez um rei que tinha uma filha muito bonita e não falava.",
    "nl": "Er was eens een koning die een dochter had en het was mooi.",
    "sv": "Det var en gång en kung som hade en dotter och hon var vacker.",
    "pl": "Dawno temu był sobie król, który nie miał córki i był to zły pan.",
    "tr": "Bir varmış bir yokmuş, çok eski zamanda bir padişah ve kızı var.",
    "vi": "Ngày xửa ngày xưa có một ông vua và không có người con trai nào.",
    "id": "Pada zaman dahulu ada seorang raja yang tinggal di istana ini.",
    "ar": "كان يا ما كان في قديم الزمان ملك له ابنة جميلة",
    "el": "Μια φορά κι έναν καιρό ήταν ένας βασιλιάς",
    "he": "היה היה פעם מלך אחד שהייתה לו בת יפה",
    "hi": "एक समय की बात है एक राजा था",
    "th": "กาลครั้งหนึ่งนานมาแล้ว มีพระราชาองค์หนึ่ง",
}


@pytest.mark.parametrize("language", TEXTS)
def test_a_sentence_is_in_its_language(language):
    assert identify(TEXTS[language]) == language
    assert language in CODES


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n",
        "42",
        "3.14 + 2.72 = 5.86",
        "😀😀",
        "iPhone 15 Pro Max",
        "???",
    ],
)
def test_without_words_of_a_language_it_is_unknown(text):
    assert identify(text) == "und"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (
            "使用 Python 的 requests 库发送 HTTP 请求，然后解析返回的 JSON。",
            "zh",
        ),
        ("The word 茶 is tea in Chinese, and it came with the trade.", "en"),
        ("這是繁體中文，與簡體中文不同，但是同一種語言。", "zh"),
        (
            "宫崎骏的《となりのトトロ》是一部很有名的动画电影，大家都喜欢看。",
            "zh",
        ),
        ("def f(x):\n    return x\n\n# 这个函数返回它的参数，什么也不做", "zh"),
        ("HE WAS THE FIRST OF THE KINGS AND IT WAS NOT FOR LONG", "en"),
    ],
)
def test_a_mixed_text_is_in_the_language_with_more_words(text, language):
    assert identify(text) == language


def test_a_menu_at_the_start_does_not_decide_about_a_long_page():
    page = "Home About us The shop and the blog of the day " * 5
    assert identify(page + TEXTS["zh"] * 200) == "zh"


def test_scripts_are_counted_by_letters():
    assert count_scripts("a b1, é 你好\U00020000 あ 글 я") == {
        "latin": 3,
        "han": 3,
        "ja": 1,
        "ko": 1,
        "ru": 1,
    }
    assert count_scripts("12 +-*/") == {}


@given(st.text())
def test_any_text_has_a_language_and_no_more_letters_than_characters(text):
    assert identify(text) in (*CODES, "und")
    assert sum(count_scripts(text).values()) <= len(text)


@given(st.text(st.sampled_from("的一是在不了有和人这中大为上个国我以要他")))
def test_chinese_is_chinese_whatever_it_says(text):
    assert identify(text) == ("zh" if text else "und")


@pytest.mark.parametrize("text", ["你好，世界！", "abc 中文", "2024年5月"])
def test_everyday_chinese_is_known(text):
    assert is_everyday_chinese(text)
    wrong = text.encode("utf-8").decode("gb18030", "replace")
    assert not is_everyday_chinese(wrong)


@pytest.mark.parametrize("text", ["", "plain", "café", "Ŀ¼", "囧囗囝"])
def test_other_characters_are_no_everyday_chinese(text):
    assert not is_everyday_chinese(text)


@pytest.mark.skipif(not DEMO.is_dir(), reason="the demo files are not here")
@pytest.mark.parametrize(
    ("name", "key", "language", "share"),
    [
        ("alpaca_zh_demo.json", "output", "zh", 0.96),
        ("alpaca_en_demo.json", "output", "en", 0.9),
    ],
)
def test_nearly_all_demo_answers_are_in_their_language(
    name, key, language, share
):
    answers = [row[key] for row in json.loads((DEMO / name).read_text())]
    found = [identify(answer) for answer in answers]
    assert found.count(language) >= share * len(found)
    # Single words, numbers and code are in none.
    others = len(found) - sum(map(found.count, ("en", "zh", "und")))
    assert others <= 0.002 * len(found)


def test_blocks_of_scripts_do_not_overlap():
    blocks = sorted(
        (ord(first), ord(last))
        for letters in SCRIPTS.values()
        for first, last in zip(letters[::2], letters[1::2], strict=True)
    )
    for (first, last), (following, _) in zip(
        blocks, blocks[1:] + [(0x110000, 0)], strict=True
    ):
        assert first <= last < following
