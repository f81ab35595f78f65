"""Owns the proof that each rule of quality drops what it names, no more."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasgpt.data.languages import identify
from kerasgpt.data.quality import RULES, TURN_RULES, QualityConfig, judge

ENGLISH = """\
The old lighthouse stood at the end of a narrow road that few people ever
walked. In summer, children came to look at the boats, and they told stories
of storms which had thrown whole ships upon the rocks. The keeper was a quiet
man with grey hair; he had lived there for thirty years, and he knew every
bird by its call. Each evening he climbed the iron stairs, cleaned the great
lens and lit the lamp. Nobody had asked him to write a diary, but he did so,
because he believed that small days deserve to be remembered as well. When he
died, his niece found forty notebooks under the bed. She read them through
one long winter, and in spring she moved into the tower herself.
"""
CHINESE = """\
小镇的尽头有一座老灯塔，平时很少有人走到那里去。夏天的时候，孩子们跑来看船，
互相讲着从前暴风雨的故事，说有些大船就是在礁石上撞碎的。看守灯塔的是一位头发
花白的老人，他不爱说话，在这里住了三十年，听声音就能分辨每一种海鸟。每天傍晚，
他沿着铁梯爬上去，擦干净巨大的透镜，然后点亮灯火。没有谁要求他写日记，可是他
一直在写，因为他相信平凡的日子也值得被记住。老人去世以后，他的侄女在床底下找到
四十本笔记。她用一个漫长的冬天把它们读完，第二年春天自己搬进了灯塔。
"""
PROSE = {"en": ENGLISH, "zh": CHINESE}


def judged(text, **settings):
    return judge(text, identify(text), QualityConfig(**settings))


def only(rule):
    """Returns a config with one rule."""
    settings = dict.fromkeys(RULES)
    settings[rule] = getattr(QualityConfig(), rule)
    return QualityConfig(**settings)


def words(language, count, seed=0):
    """Returns so many words, most of them different, in sentences."""
    generator = random.Random(seed)
    if language == "en":
        letters = "bcdfghjklmnprst"
        chosen = [
            "".join(generator.choices(letters, k=5)) for _ in range(count)
        ]
        grammar = ("the", "and", "of", "that") * count
        chosen[::7] = grammar[: len(chosen[::7])]
        return " ".join(chosen) + "."
    return "".join(
        chr(generator.randrange(0x4E00, 0x9FA5)) for _ in range(count)
    )


@pytest.mark.parametrize("language", PROSE)
def test_prose_is_kept_by_every_rule(language):
    text = PROSE[language]
    assert identify(text) == language
    assert judged(text) == ""
    assert judged(text, judged_from_words=1) == ""
    # With every figure of the papers that is off by default.
    assert judged(text, min_words=50, min_sentences=3, max_words=100_000) == ""


DROPPED = {
    ("min_characters", "en"): " \n ",
    ("min_characters", "zh"): "　\n",
    ("max_lost_fraction", "en"): "A page with \ufffd\ufffd signs " * 5,
    ("max_lost_fraction", "zh"): "锟斤拷" + CHINESE[:60],
    ("max_placeholders", "en"): ENGLISH + "Lorem ipsum dolor sit amet.",
    ("max_placeholders", "zh"): CHINESE + "（此处填写内容）",
    ("max_word_length", "en"): ENGLISH + "x" * 1001,
    ("max_word_length", "zh"): CHINESE + "A1b2" * 300,
    ("min_mean_word_length", "en"): "a b of it to I am x y the " * 12,
    ("max_mean_word_length", "en"): "the and internationalisation " * 2
    + "counterrevolutionaries " * 100,
    ("max_symbol_fraction", "en"): ENGLISH + "#tag " * 30,
    ("max_symbol_fraction", "zh"): CHINESE + "#好看" * 40,
    ("max_bullet_fraction", "en"): "".join(
        f"- {line}\n" for line in ENGLISH.splitlines()
    ),
    ("max_bullet_fraction", "zh"): "".join(
        f"●{line}\n" for line in CHINESE.splitlines()
    ),
    ("max_ellipsis_fraction", "en"): ENGLISH.replace("\n", "...\n"),
    ("max_ellipsis_fraction", "zh"): CHINESE.replace("\n", "……\n"),
    ("min_alphabetic_fraction", "en"): ENGLISH + "12 + 7 = 19\n" * 20,
    ("min_alphabetic_fraction", "zh"): CHINESE + "12 + 7 = 19\n" * 20,
    ("min_grammar_words", "en"): "Oak tables, beech chairs, pine beds. " * 30,
    ("min_grammar_words", "zh"): "红木家具、实木餐桌、布艺沙发、" * 20,
    ("min_ended_fraction", "en"): "\n".join(
        f"The shop of the town number {n} and the price" for n in range(30)
    ),
    ("min_ended_fraction", "zh"): "\n".join(
        f"这是小镇上的第{n}家商店和它的价格" for n in range(30)
    ),
    ("max_short_line_fraction", "en"): "\n".join(
        f"the blue shoes {n} of men" for n in range(40)
    ),
    ("max_short_line_fraction", "zh"): "\n".join(
        f"男鞋{n}的价格" for n in range(60)
    ),
    ("max_duplicate_line_fraction", "en"): ENGLISH * 2,
    ("max_duplicate_line_fraction", "zh"): CHINESE * 2,
    ("max_duplicate_line_characters", "en"): ENGLISH
    + ENGLISH.replace("\n", " ")
    + "\n"
    + ENGLISH.replace("\n", " "),
    ("max_duplicate_paragraph_fraction", "en"): f"{ENGLISH}\n{ENGLISH}",
    ("max_duplicate_paragraph_fraction", "zh"): f"{CHINESE}\n{CHINESE}",
    ("max_duplicate_paragraph_characters", "en"): f"{ENGLISH}\n{ENGLISH}",
    ("max_duplicate_paragraph_characters", "zh"): f"{CHINESE}\n{CHINESE}",
    ("max_top_2gram", "en"): words("en", 200) + " buy now" * 40,
    ("max_top_3gram", "en"): words("en", 200) + " buy it now" * 30,
    ("max_top_4gram", "en"): words("en", 200) + " buy it here now" * 20,
    ("max_top_2gram", "zh"): CHINESE + "立即购买" * 40,
    ("max_top_4gram", "zh"): CHINESE + "请您立即点击购买" * 20,
    **{
        (f"max_duplicate_{length}gram", language): PROSE[language] * 2
        for length in range(5, 11)
        for language in PROSE
    },
    ("min_words", "en"): "Too short for the web.",
    ("min_sentences", "zh"): "只有一句话。",
    ("max_words", "en"): "and so on " * 40_000,
    ("max_curly_brackets", "en"): "function () { return 1; }",
}
PAPERS = {
    "min_words": 50,
    "min_sentences": 3,
    "max_words": 100_000,
    "max_curly_brackets": 0,
}


@pytest.mark.parametrize(("rule", "language"), DROPPED)
def test_a_rule_drops_what_it_names(rule, language):
    text = DROPPED[rule, language]
    config = only(rule)
    if rule in PAPERS:
        config = QualityConfig(**{**dict.fromkeys(RULES), rule: PAPERS[rule]})
    assert judge(text, language, config) == rule
    # And off it is off.
    off = QualityConfig(**dict.fromkeys(RULES))
    assert judge(text, language, off) == ""


def test_every_rule_has_an_example():
    assert {rule for rule, _ in DROPPED} == set(RULES)


@pytest.mark.parametrize("language", PROSE)
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_alone_keeps_prose(rule, language):
    assert judge(PROSE[language], language, only(rule)) == ""


@pytest.mark.parametrize(
    "text",
    [
        "Yes.",
        "好的，谢谢！",
        "We open at nine and close at five.",
        "1. 苹果\n2. 香蕉\n3. 橙子",
        "- milk\n- eggs\n- bread",
        "the the the the the the",
    ],
)
def test_short_texts_are_kept(text):
    assert judged(text) == ""


def test_verse_and_dialogue_are_kept():
    poem = """\
        Shall I compare thee to a summer's day?
        Thou art more lovely and more temperate:
        Rough winds do shake the darling buds of May,
        And summer's lease hath all too short a date:
        Sometime too hot the eye of heaven shines,
        And often is his gold complexion dimm'd;"""
    assert judged(poem, judged_from_words=1) == ""
    play = "".join(
        f"{'ROMEO' if n % 2 else 'JULIET'}:\n{line}\n\n"
        for n, line in enumerate(ENGLISH.splitlines())
    )
    assert judged(play, judged_from_words=1) == ""
    chinese = "春眠不觉晓，\n处处闻啼鸟。\n夜来风雨声，\n花落知多少？\n" + (
        "床前明月光，\n疑是地上霜。\n举头望明月，\n低头思故乡。\n"
    )
    assert judged(chinese, judged_from_words=1, min_grammar_words=None) == ""


def test_code_in_a_text_is_not_judged_as_prose():
    code = "```python\n" + "x = [1, 2, 3] + [4]\n" * 60 + "```\n"
    for prose in PROSE.values():
        assert judged(prose + code) == ""
    assert judged(code) == ""
    assert judged(ENGLISH + code.replace("```", "")) != ""


@pytest.mark.parametrize("language", ["fr", "ja", "ko", "th", "ru"])
def test_other_languages_are_not_dropped_for_their_grammar(language):
    text = {
        "fr": "Il était une fois une petite fille que tout le monde aimait, "
        "et surtout sa grand-mère, qui ne savait plus quoi lui donner. ",
        "ja": "昔々、あるところにおじいさんとおばあさんが住んでいました。"
        "おじいさんは山へ行きました。",
        "ko": "옛날 옛적에 할아버지와 할머니가 살고 있었습니다. "
        "어느 날 할머니는 강으로 갔습니다. ",
        "th": "กาลครั้งหนึ่งนานมาแล้ว มีพระราชาองค์หนึ่ง ",
        "ru": "Жили-были старик со старухой у самого синего моря, "
        "они жили в ветхой землянке ровно тридцать лет и три года. ",
    }[language]
    assert identify(text) == language
    config = QualityConfig(
        judged_from_words=1,
        **{
            rule: None for rule in RULES if "gram" in rule and "min" not in rule
        },
    )
    assert judge(text, language, config) == ""


def test_turns_of_a_conversation_have_their_own_rules():
    for text in ("- a\n" * 200, "好" * 300, "12 + 7 = 19\n" * 50):
        language = identify(text)
        assert judge(text, language, QualityConfig(judged_from_words=1))
        assert not judge(text, language, QualityConfig(), rules=TURN_RULES)
    assert judge("", "und", QualityConfig(), rules=TURN_RULES)


@given(st.text(), st.sampled_from(["en", "zh", "ja", "und", "ko"]))
def test_any_text_is_judged(text, language):
    config = QualityConfig(judged_from_words=0)
    assert judge(text, language, config) in ("", *RULES)
