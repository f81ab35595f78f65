"""Owns the proof that cleaning keeps what is good, twice the same."""

import json
import multiprocessing
import pathlib
import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasgpt.config import InputError
from kerasgpt.data.cleaning import (
    DROPS,
    EDITS,
    Cleaned,
    CleaningConfig,
    clean,
    clean_chat,
    has_listed_word,
)
from kerasgpt.data.formats import is_unicode
from kerasgpt.data.sources import read_documents

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the shared files are not beside this checkout"
)
CONFIG = CleaningConfig()
PAGE = """\
<html><body><p>Itâ€™s  late.&nbsp;Write to bob@example.com</p>
<p>or ring 555-234-5678.</p>   

Cookie Policy
© 2024 Example Inc.</body></html>"""
CHINESE_PAGE = """\
<div>　　今天\u200b天气很好，我们去公园散步。</div>
<div>联系电话：13800138000</div>

点击查看更多
版权所有 © 某某网"""


def off(*rules):
    settings = CONFIG.to_dict()
    for rule in rules:
        section = settings["privacy"] if "mask" in rule else settings
        section[rule] = False
    return CleaningConfig.from_dict(settings)


def test_a_page_becomes_its_text():
    cleaned = clean(PAGE, CONFIG)
    assert cleaned == Cleaned(
        "It’s  late. Write to [EMAIL]\n\nor ring [PHONE].",
        "",
        cleaned.counts,
        "en",
    )
    assert set(cleaned.counts) == {
        "repair_encoding",
        "remove_html",
        "normalize_unicode",
        "remove_boilerplate",
        "tidy_white_space",
        "mask_emails",
        "mask_phones",
    }
    assert cleaned.counts["remove_boilerplate"] == 2


def test_a_chinese_page_becomes_its_text():
    cleaned = clean(CHINESE_PAGE, CONFIG)
    assert cleaned.text == (
        "今天天气很好，我们去公园散步。\n\n联系电话：[PHONE]"
    )
    assert (cleaned.dropped_by, cleaned.language) == ("", "zh")
    assert cleaned.counts["remove_control_characters"] == 1
    assert cleaned.counts["remove_boilerplate"] == 2


@pytest.mark.parametrize("rule", EDITS)
def test_an_edit_can_be_switched_off(rule):
    text = f"{PAGE}\n{CHINESE_PAGE}\n8.8.8.8 11010519491231002X " + (
        "4111111111111111"
    )
    assert set(clean(text, CONFIG).counts) == set(EDITS)
    without = clean(text, off(rule))
    assert rule not in without.counts
    assert without.text != clean(text, CONFIG).text


def test_with_all_switched_off_a_text_stays_as_it_is():
    assert clean(PAGE, off(*EDITS)).text == PAGE


def test_what_an_edit_uncovers_is_edited_too():
    cleaned = clean(
        "&amp;lt;b&amp;gt;x&lt;/b&gt; a&#64;b.cn <\u200bi>y", CONFIG
    )
    assert cleaned.text == "x [EMAIL] y"
    assert clean("138<b>0013</b>8000", CONFIG).text == "[PHONE]"


def test_turns_of_a_conversation_keep_what_people_say():
    text = "Use <b>bold</b> &amp; co.\nCookie Policy\nitâ€™s mine: a@b.cn  "
    cleaned = clean(text, CONFIG, is_chat=True)
    assert cleaned.text == (
        "Use <b>bold</b> &amp; co.\nCookie Policy\nit’s mine: [EMAIL]"
    )
    assert cleaned.dropped_by == ""
    lists = "- yes\n" * 300
    assert clean(lists, CONFIG).dropped_by
    assert not clean(lists, CONFIG, is_chat=True).dropped_by


def message(role, content):
    return {"role": role, "content": content}


def test_a_conversation_is_cleaned_turn_by_turn():
    chat = [
        message("system", ""),
        message("user", "你好，我的电话是13800138000 "),
        message("assistant", "好的。\r\n"),
    ]
    messages, cleaned = clean_chat(chat, CONFIG)
    assert messages == [
        message("system", ""),
        message("user", "你好，我的电话是[PHONE]"),
        message("assistant", "好的。"),
    ]
    assert cleaned.text == "\n你好，我的电话是[PHONE]\n好的。"
    assert (cleaned.dropped_by, cleaned.language) == ("", "zh")
    assert cleaned.counts["mask_phones"] == 1
    assert chat[1]["content"].endswith("13800138000 ")


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("\u200b\u200b", "min_characters"),
        ("a \ufffd\ufffd\ufffd", "max_lost_fraction"),
    ],
)
def test_a_conversation_is_dropped_for_one_turn(content, rule):
    chat = [message("user", "Hi"), message("assistant", content)]
    assert clean_chat(chat, CONFIG)[1].dropped_by == rule


def test_other_languages_are_dropped_if_some_are_named():
    config = CleaningConfig(languages="en, zh")
    french = "Il était une fois une petite fille que tout le monde aimait."
    assert clean(french, config).dropped_by == "languages"
    assert clean(french, CONFIG).dropped_by == ""
    for text in ("This is the one that we keep.", "这个我们留下。", "42"):
        assert clean(text, config).dropped_by == ""
    # Of a conversation the whole counts: a turn may quote.
    quoting = [
        message("user", "请把下面这句话翻译成中文，谢谢你帮助我学习法语："),
        message("user", french),
        message(
            "assistant", "从前有一个小女孩，大家都很喜欢她，她也喜欢大家。"
        ),
    ]
    assert clean_chat(quoting, config)[1].dropped_by == ""
    assert clean_chat([message("user", french)], config)[1].dropped_by == (
        "languages"
    )


def test_an_unknown_language_is_refused():
    with pytest.raises(InputError, match="cn is none of ar, bn, de"):
        CleaningConfig(languages="en,cn")


def test_documents_with_a_listed_word_are_dropped(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("spam\nbuy now\n\n赌博\n", encoding="utf-8")
    config = CleaningConfig(word_list=str(path))
    for text in ("Spam!", "you can BUY NOW", "网上赌博网站"):
        assert clean(text, config).dropped_by == "word_list"
        assert clean(text, config, is_chat=True).dropped_by == "word_list"
    for text in ("spammer", "buy it now", "赌一把"):
        assert not has_listed_word(text, str(path))
        assert clean(text, config).dropped_by == ""


def test_a_missing_word_list_is_told(tmp_path):
    config = CleaningConfig(word_list=str(tmp_path / "none.txt"))
    with pytest.raises(InputError, match="no such file"):
        clean("a", config)


def test_rules_have_the_names_of_their_settings():
    rows = {key.split(".")[-1] for key, *_ in CONFIG.describe()}
    assert {*EDITS, *DROPS} <= rows
    assert len({*EDITS, *DROPS}) == len(EDITS) + len(DROPS)
    assert rows - {*EDITS, *DROPS} == {"judged_from_words"}


def test_the_config_survives_json_and_overrides():
    again = CleaningConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict())))
    assert again == CONFIG
    changed = CONFIG.override(
        [
            "quality.min_words=50",
            "quality.max_top_2gram=none",
            "remove_html=false",
        ]
    )
    assert changed.quality.min_words == 50
    assert changed.quality.max_top_2gram is None
    assert not changed.remove_html
    assert changed.fingerprint() != CONFIG.fingerprint()


def _clean_default(text):
    return clean(text, CONFIG)


def test_another_process_gives_the_same():
    texts = [PAGE, CHINESE_PAGE, "你好", "", "<b>", "spam " * 300]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(_clean_default, texts)
    assert found == [clean(text, CONFIG) for text in texts]
    assert pickle.loads(pickle.dumps(CONFIG)) == CONFIG


# Pieces that rules look for, thrown together.
PIECES = st.sampled_from(
    [
        *("<p>", "</p>", "<br/>", "<script>", "</script>", "<!--", "-->"),
        *(
            "<a href='",
            "'>",
            "&amp;",
            "&lt;",
            "&#",
            "60;",
            "&nbsp;",
            "`",
            "```",
        ),
        *("â€™", "Ã©", "浣犲ソ", "锛", "\u0301", "\u200b", "\r", "\n", "\n\n"),
        *(" ", "\u3000", "\xa0", "\u2028", "\ufeff", "\ud800", "\ufffd"),
        *("a@b.cn", "138", "0013", "8000", "-", "8.8.8.8", "555", "4111"),
        *("1111", "11010519491231002", "X", "+86", "(", ")", ".", ":"),
        *("点击查看", "版权所有", "cookie policy", "© 2024", "Read more"),
        *("你好，", "世界。", "the ", "K", "e", "“", "…", "；", "<"),
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=5), max_size=25).map("".join)


@given(text=TEXTS, is_chat=st.booleans())
def test_cleaning_what_is_clean_changes_nothing(text, is_chat):
    once = clean(text, CONFIG, is_chat=is_chat)
    twice = clean(once.text, CONFIG, is_chat=is_chat)
    assert twice.text == once.text
    assert twice.counts == {}
    assert (twice.dropped_by, twice.language) == (
        once.dropped_by,
        once.language,
    )


@given(text=TEXTS, is_chat=st.booleans())
def test_what_comes_out_is_unicode_and_no_longer_than_its_masks(text, is_chat):
    cleaned = clean(text, CONFIG, is_chat=is_chat)
    assert is_unicode(cleaned.text)
    masks = sum(
        count for rule, count in cleaned.counts.items() if "mask" in rule
    )
    # A few Indian letters have no composed form.
    composed = unicodedata.normalize("NFC", text)
    longest = max(len(text), len(composed)) + len("[EMAIL]") * masks
    assert len(cleaned.text) <= longest
    assert set(cleaned.counts) <= set(EDITS)
    assert cleaned.dropped_by in ("", *DROPS)
    assert (cleaned.text != text) == bool(cleaned.counts)


# Real files: nothing good is dropped.


@needs_shared
def test_all_of_shakespeare_is_kept():
    documents, _ = read_documents(str(SHARED / "tinyshakespeare.txt"))
    for text in documents:
        cleaned = clean(text, CONFIG)
        assert cleaned.dropped_by == ""
        assert set(cleaned.counts) <= {"tidy_white_space"}
        assert cleaned.language == "en"


@needs_shared
@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("c4_demo.jsonl", 0.95),
        ("wiki_demo.txt", 0.98),
        ("alpaca_zh_demo.json", 0.97),
        ("alpaca_en_demo.json", 0.97),
    ],
)
def test_nearly_all_demo_documents_are_kept(name, kept):
    documents, _ = read_documents(str(SHARED / "demo" / name))
    dropped = [clean(text, CONFIG).dropped_by for text in documents]
    assert dropped.count("") >= kept * len(dropped)
    # And what is spam is seen: 20 lines of "Access All Records Of …".
    if name.startswith("c4"):
        assert dropped.count("") < len(dropped)
