"""Owns the proof that edits remove what they name, in both languages."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasgpt.data import edits

CHINESE = "今天天气很好，我们去公园散步。"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("itâ€™s a naÃ¯ve idea", "it’s a naïve idea"),
        ("cafÃ©, crÃ©Ã©e", "café, créée"),
        (CHINESE.encode().decode("latin-1"), CHINESE),
        (CHINESE.encode("gb18030").decode("latin-1"), CHINESE),
        ("你好，世界！".encode().decode("gb18030"), "你好，世界！"),
    ],
)
def test_wrong_decoding_is_undone_line_by_line(wrong, right):
    text = f"A good line — naïve.\n{wrong}\n{CHINESE}"
    assert edits.repair_encoding(text) == (
        f"A good line — naïve.\n{right}\n{CHINESE}",
        1,
    )


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "naïve café, “quoted”…",
        "Ça va très bien à l’hôtel",
        "ÀÉÎÕÜ ÄÖÜß",
        CHINESE,
        "涓涓细流，鏄是一个生僻字",
        "这是銆字和锛字",
        "Ελληνικά и русский",
        "5 × 3 ÷ 2 ± 1 µm²",
    ],
)
def test_what_is_decoded_right_stays(text):
    assert edits.repair_encoding(text) == (text, 0)


@pytest.mark.parametrize(
    ("text", "clean", "count"),
    [
        ("<p>One</p><p>Two</p>", "One\nTwo\n", 4),
        ("a<br>b<BR/>c<br />d", "a\nb\nc\nd", 3),
        ('<a href="x?a=1&amp;b" target=_blank>链接</a>文字', "链接文字", 2),
        ("A &lt; B &amp;&nbsp;C&#8217;s &#x4F60;", "A < B &\xa0C’s 你", 5),
        ("x<script>alert('<b>')</script>y", "xy", 1),
        ("x<style type='a'>p {}</style><!-- no\n -->y", "xy", 2),
        ("<!-- a <script> b --> c", " c", 1),
    ],
)
def test_html_is_removed(text, clean, count):
    assert edits.remove_html(text) == (clean, count)


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "x < y and y > z",
        "if a <b and c> d: <user> <T> <你>",
        "x <a and y> z",
        "AT&T, R&D; a&b;",
        "`<b>` and `&amp;`",
        "```html\n<p>One</p>\n<!-- a -->\n```",
        "```\n<p>never closed",
        "Write <!-- to begin a comment",
    ],
)
def test_what_is_no_html_stays(text):
    assert edits.remove_html(text) == (text, 0)


def test_html_outside_code_goes_and_inside_stays():
    text = "<b>Bold</b> is `<b>`:\n```\n<b>\n```\n<i>Done</i>"
    assert edits.remove_html(text) == (
        "Bold is `<b>`:\n```\n<b>\n```\nDone",
        4,
    )


def test_unclosed_scripts_take_no_time_beyond_their_length():
    text = "<script>" * 20_000 + "<!--" * 20_000
    assert "<!--" in edits.remove_html(text)[0]


@pytest.mark.parametrize(
    ("text", "clean", "count"),
    [
        ("a\r\nb\rc\x0bd\x0ce\x85f\u2028g\u2029h", "a\nb\nc\nd\ne\nf\ng\nh", 7),
        ("\ufeffa\x00b\x07\u200bc\u202ed\u2066e", "abcde", 6),
        ("hy\u00adphen\ufffe", "hyphen", 2),
        ("i\U000e0067n\U000e007fvisible", "invisible", 2),
        ("lone \ud800 surrogate", "lone  surrogate", 1),
        ("tab\tand\nline", "tab\tand\nline", 0),
        (
            "👨\u200d👩\u200d👧 क्\u200dष ❤\ufe0f",
            "👨\u200d👩\u200d👧 क्\u200dष ❤\ufe0f",
            0,
        ),
    ],
)
def test_characters_nobody_sees_are_removed(text, clean, count):
    assert edits.remove_control_characters(text) == (clean, count)


def test_unicode_is_composed_and_full_width_signs_stay():
    assert edits.normalize_unicode("cafe\u0301") == ("café", 1)
    text = "“全角”，ＡＢＣ１２３　①㎡ﬁ、。！？"
    assert edits.normalize_unicode(text) == (text, 0)
    assert edits.normalize_unicode("a\xa0b\u2009c") == ("a b c", 2)


BOILERPLATE = [
    "Please enable JavaScript to view this page.",
    "JavaScript is disabled in your browser.",
    "This site uses cookies to improve your experience.",
    "We use cookies: accept all cookies",
    "Cookie Policy",
    "By signing up you agree to our Terms of Use and Privacy Policy.",
    "Privacy Policy | Terms of Service",
    "© 2024 Example Inc.",
    "Copyright 2019 The Example. All rights reserved.",
    "Click here to subscribe to our list",
    "Read more »",
    "Share this on Facebook",
    "Follow us on Twitter",
    "Subscribe to our newsletter",
    "Back to top",
    "版权所有：某某公司",
    "Copyright © 2020 某某网 京ICP备12345678号-1",
    "京公网安备 11010502030001号",
    "未经授权，不得转载或使用。",
    "转载请注明出处",
    "（责任编辑：王小明）",
    "责编：李四",
    "点击查看更多",
    ">> 点击下载",
    "上一篇：春天的故事",
    "下一页",
    "返回顶部",
    "扫描下方二维码关注我们",
    "欢迎关注我们的微信公众号",
    "分享到：微信 微博 QQ空间",
    "阅读原文",
    "登录后可以评论",
    "免责声明：本文仅代表作者个人观点",
    "本站使用 cookies 来改善您的体验",
]
STORIES = [
    "She clicked on the cookie jar and took two cookies.",
    "JavaScript is a programming language.",
    "The court ruled that the privacy policy was unlawful.",
    "Click, said the lock, and the door opened.",
    "Follow us to the court. Thou churl, for this time,",
    "Read more books, he said.",
    "Sign up",
    "Bake the cookies for ten minutes.",
    "他点击查看了邮件的内容，然后关上了电脑。",
    "版权是作者的权利，法律保护版权。",
    "她把消息分享到了群里，大家都很高兴。",
    "我返回首页去找那张照片。",
    "上一页写着他的名字，下一页是空白。",
    "他每天阅读原文，从不看译本。",
    "二维码是一种可以存储信息的图形。",
    "父母应该关注孩子的成长。",
]


@pytest.mark.parametrize("line", BOILERPLATE)
def test_lines_of_every_page_are_removed(line):
    text = f"The story begins.\n  {line} \n{CHINESE}"
    assert edits.remove_boilerplate(text) == (
        f"The story begins.\n{CHINESE}",
        1,
    )


@pytest.mark.parametrize(
    "line", [line for line in STORIES if line != "Sign up"]
)
def test_lines_of_a_story_stay(line):
    text = f"The story begins.\n{line}\n{CHINESE}"
    assert edits.remove_boilerplate(text) == (text, 0)


def test_a_long_line_about_cookies_is_no_notice():
    line = "The directive says that a site that uses cookies must say so. " * 4
    assert edits.remove_boilerplate(line) == (line, 0)
    line = (
        "按照法律，未经作者许可不得转载其作品，这一条在本案中如何适用，法院作了详细的说明，"
        * 2
    )
    assert edits.remove_boilerplate(line) == (line, 0)


@pytest.mark.parametrize(
    ("text", "clean", "count"),
    [
        ("a  \nb\t\n", "a\nb", 4),
        ("a\n\n\n\nb", "a\n\nb", 2),
        ("a\n \n\t\n \nb", "a\n\nb", 5),
        ("　　一段\n　　二段", "一段\n二段", 4),
        ("def f():\n    return 1", "def f():\n    return 1", 0),
        ("a\n\nb", "a\n\nb", 0),
        ("早上好　各位", "早上好　各位", 0),
        (" \n ", "", 3),
    ],
)
def test_white_space_is_tidied(text, clean, count):
    assert edits.tidy_white_space(text) == (clean, count)


@pytest.mark.parametrize(
    "edit",
    [
        edits.repair_encoding,
        edits.remove_html,
        edits.remove_control_characters,
        edits.normalize_unicode,
        edits.remove_boilerplate,
        edits.tidy_white_space,
    ],
)
@given(text=st.text())
def test_an_edit_counts_if_and_only_if_it_changes(edit, text):
    edited, count = edit(text)
    assert (count > 0) == (edited != text)
    # A few Indian letters have no composed form.
    composed = unicodedata.normalize("NFC", text)
    assert len(edited) <= max(len(text), len(composed))
