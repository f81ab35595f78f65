"""Owns edits of a text: encoding, HTML, notices, white space.

Not: their order, or which apply (cleaning.py).
"""

import html
import re
import unicodedata

import ftfy

from kerasgpt.data import languages

# UTF-8 read as Latin-1 or Windows-1252: a lead byte and a byte that follows.
# UTF-8 read as GB 18030: what “，。的是中” become. GB 18030 read as Latin-1.
TRACES = re.compile(
    "[Â-ô][\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|[锛銆鐨鏄涓]|[\xa1-\xfe]{4}"
)
# The first characters of traces: looked for first, in half the time.
TRACE_STARTS = re.compile("[\xa1-\xfe锛銆鐨鏄涓]")
LINE_END = re.compile("\r\n?|[\v\f\x85\u2028\u2029]")
UNSEEN = (
    "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\U000e0000-\U000e007f"
)
CONTROL = re.compile(f"[{UNSEEN}]")
LINE_END_OR_CONTROL = re.compile(f"[\r\v\f\x85\u2028\u2029{UNSEEN}]")
SPACES = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f]")
EMPTY_LINES = re.compile("\n{3,}")
# An attribute has a value: "x <a and y> 1" is no tag.
ATTRIBUTES = r"""(?:\s+[\w:-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>=`]+))*\s*/?>"""
LINE_TAG = re.compile(
    r"<(?:br|hr|/(?:p|div|li|tr|ul|ol|table|h[1-6]|title|section|article|"
    r"header|footer|nav|blockquote|pre|dd|dt))" + ATTRIBUTES,
    re.IGNORECASE,
)
TAG = re.compile(
    r"</?(?:a|abbr|article|aside|b|blockquote|body|br|button|center|code|dd|"
    r"div|dl|dt|em|fieldset|figcaption|figure|font|footer|form|h[1-6]|head|"
    r"header|hr|html|i|iframe|img|input|label|li|link|main|meta|nav|noscript|"
    r"ol|option|p|pre|s|script|section|select|small|span|strike|strong|style|"
    r"sub|sup|svg|table|tbody|td|textarea|tfoot|th|thead|time|title|tr|u|ul|"
    r"video)" + ATTRIBUTES,
    re.IGNORECASE,
)
ENTITY = re.compile(
    r"&(?:amp|lt|gt|quot|apos|nbsp|ensp|emsp|thinsp|ndash|mdash|hellip|middot|"
    r"bull|[lr][sd]quo|[lr]aquo|copy|reg|trade|times|deg|euro|pound|yen|shy|"
    r"#\d{2,6}|#[xX][0-9a-fA-F]{2,5});"
)
HIDDEN = re.compile(
    r"<script\b[^<>]*>|<style\b[^<>]*>|</script\s*>|</style\s*>|<!--|-->",
    re.IGNORECASE,
)
MARKDOWN_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)
ENGLISH_BOILERPLATE = re.compile(
    r"\b(?:uses?|use of|accept(?:ing)?|enable|our|all) cookies\b"
    r"|\bcookies? (?:policy|settings|preferences|notice|consent)\b"
    r"|^(?:our )?(?:privacy policy|terms (?:of (?:use|service)|and conditions)"
    r")[ .|&:]*$|\b(?:privacy policy|terms of (?:use|service))\b.*(?:\||agree)"
    r"|\b(?:agree|accept)\b.*\b(?:privacy policy|terms of (?:use|service))"
    r"|\b(?:enable|activate|requires?|needs?|turn on|without|disabled?)"
    r"\b.{0,30}\bjavascript\b"
    r"|\bjavascript\b.{0,30}\b(?:enabled?|disabled?|required|turned o)"
    r"|\ball rights reserved\b"
    r"|^(?:copyright\b|©|\(c\)) ?(?:©|\(c\))? ?(?:19|20)\d\d"
    r"|^(?:click (?:here|below|on the link)|share (?:this|on|via)|"
    r"follow us (?:on|at))\b.{0,60}$"
    r"|^(?:read more|sign up|log in|subscribe|back to top|skip to (?:main )?"
    r"content)[ .!:>»|…]*$|^(?:sign up|subscribe) (?:for|to) .{0,60}$",
    re.IGNORECASE,
)
CHINESE_BOILERPLATE = re.compile(
    r"版权所有|版权归.{0,20}所有|^(?:©|copyright\b)|ICP[备证]|公网安备"
    r"|未经.{0,12}(?:授权|许可|允许|同意).{0,12}(?:转载|复制|使用|摘编)"
    r"|转载(?:请|须|需)(?:注明|联系|标明)|^[(（\[【]?(?:责任编辑|责编)[:： ]"
    r"|^[>》【\[（(\s]*点击(?:查看|展开|下载|阅读|进入|收藏|关注|这里|此处)"
    r".{0,16}$|^(?:上一[篇页条章]|下一[篇页条章])(?:[:： |>].*)?$"
    r"|^(?:返回(?:顶部|首页|列表)|回到顶部)[ >|]*$"
    r"|(?:扫一扫|扫描|扫码|长按|识别).{0,16}(?:二维码|关注)"
    r"|^(?:欢迎|请|点击|扫码|敬请)?(?:关注|订阅).{0,16}(?:公众号|微信号|微博)"
    r"|^(?:一键)?分享(?:到|至|给好友)(?:[:： ]|朋友圈|微信|微博|QQ).{0,30}$"
    r"|^(?:点击)?阅读(?:原文|全文|更多)[>》…。 ]*$"
    r"|^(?:登录|注册|登录[/ |]注册|请?先?登录后.{0,10})$|^免责(?:声明|条款)"
    r"|(?:本站|本网站|本网页|我们|网站).{0,4}使用.{0,8}cookie",
    re.IGNORECASE,
)
# (words, pattern, length): one of the words is in every line that the pattern
# finds, looking for words is ten times as fast; a line with more characters is
# an article's own, and three letters say as much as a Chinese character.
BOILERPLATE = (
    (
        (
            *("javascript", "cookie", "privacy policy", "terms of", "click "),
            *("terms and", "rights reserved", "copyright", "©", "(c)"),
            *("read more", "share ", "sign up", "log in", "subscribe"),
            *("follow us", "back to top", "skip to"),
        ),
        ENGLISH_BOILERPLATE,
        180,
    ),
    (
        (
            *(
                "点击",
                "版权",
                "转载",
                "icp",
                "公网安备",
                "责任编辑",
                "责编",
                "上一",
            ),
            *(
                "下一",
                "返回",
                "回到顶部",
                "二维码",
                "关注",
                "订阅",
                "分享",
                "阅读",
            ),
            *("登录", "注册", "免责", "cookie", "©", "copyright", "未经"),
        ),
        CHINESE_BOILERPLATE,
        60,
    ),
)


def repair_encoding(text):
    r"""Returns (text, lines repaired) with wrong decoding undone.

    UTF-8 read as Latin-1 or Windows-1252 is ftfy's work; UTF-8 read as
    GB 18030 and GB 18030 read as Latin-1 are ours, for ftfy leaves them. All
    only in lines that show the traces: ftfy takes 25 us for 100 characters.

    Example:
        >>> repair_encoding("itâ€™s\n浣犲ソ锛屼笘鐣\ue0a2\nnaïve")
        ('it’s\n浣犲ソ锛屼笘鐣\ue0a2\nnaïve', 1)
    """
    if text.isascii() or not TRACE_STARTS.search(text):
        return text, 0
    lines = text.split("\n")
    repaired = [_repair_line(line) for line in lines]
    count = sum(map(str.__ne__, lines, repaired))
    return "\n".join(repaired), count


def remove_html(text):
    r"""Returns (text, places) without tags, comments, scripts and entities.

    A tag that ends a line on a page ends one here. What stands in Markdown
    code is kept, and so are angle brackets that are no tag of HTML.

    Example:
        >>> remove_html("<b>1 &lt; 2</b><br/>a<b; `<br>` <user>")
        ('1 < 2\na<b; `<br>` <user>', 4)
    """
    if not ("<" in text or "&" in text):
        return text, 0
    if not (TAG.search(text) or ENTITY.search(text)):
        return text, 0
    count = 0
    pieces = MARKDOWN_CODE.split(text) if "`" in text else [text]
    # Every second piece is code.
    for index in range(0, len(pieces), 2):
        piece, hidden = _remove_hidden(pieces[index])
        piece, lines = LINE_TAG.subn("\n", piece)
        piece, tags = TAG.subn("", piece)
        piece, entities = ENTITY.subn(_unescape, piece)
        pieces[index] = piece
        count += hidden + lines + tags + entities
    return "".join(pieces), count


def remove_control_characters(text):
    r"""Returns (text, places) without characters that nobody sees.

    All line ends become line feeds. The joiners that emoji and Indian scripts
    need stay.

    Example:
        >>> remove_control_characters("a\r\nb\x00\u200bc")
        ('a\nbc', 3)
    """
    if not LINE_END_OR_CONTROL.search(text):
        return text, 0
    text, ends = LINE_END.subn("\n", text)
    text, count = CONTROL.subn("", text)
    return text, ends + count


def normalize_unicode(text):
    r"""Returns (text, places) composed, with one kind of space.

    NFC, not NFKC: the latter turns “，” into “,” and “①” into “1”. It counts
    as one place. The full-width space of Chinese stays.

    Example:
        >>> normalize_unicode("e\u0301，\xa01")
        ('é， 1', 2)
    """
    if text.isascii():
        return text, 0
    text, count = SPACES.subn(" ", text)
    if not unicodedata.is_normalized("NFC", text):
        text, count = unicodedata.normalize("NFC", text), count + 1
    return text, count


def remove_boilerplate(text):
    r"""Returns (text, lines removed) without lines that every page has.

    C4's notices about JavaScript, cookies and terms of use, and their Chinese
    kin; unlike in C4 only in short lines, for a long one is about them.

    Example:
        >>> remove_boilerplate("News.\nThis site uses cookies.\n版权所有 © A")
        ('News.', 2)

    Reference: Raffel et al. 2020, section 2.2.
    """
    lowered = text.lower()
    notices = [
        (pattern, longest)
        for words, pattern, longest in BOILERPLATE
        if any(word in lowered for word in words)
    ]
    if not notices:
        return text, 0
    lines = text.split("\n")
    kept = [line for line in lines if not _is_notice(line.strip(), notices)]
    return "\n".join(kept), len(lines) - len(kept)


def tidy_white_space(text):
    r"""Returns (text, characters saved, at least 1 if it changed).

    Ends of lines and of the text are stripped, so are the full-width spaces
    that begin a Chinese paragraph; more than one empty line becomes one.
    Indentation stays: it is code's grammar.

    Example:
        >>> tidy_white_space("　　从前 \n\n\n\n  x = 1  ")
        ('从前\n\n  x = 1', 7)
    """
    lines = text.split("\n")
    tidy = "\n".join([line.rstrip().lstrip("\u3000") for line in lines])
    tidy = EMPTY_LINES.sub("\n\n", tidy).strip()
    return tidy, max(len(text) - len(tidy), int(tidy != text))


def _is_notice(line, notices):
    return any(
        len(line) <= longest and pattern.search(line)
        for pattern, longest in notices
    )


def _repair_line(line):
    if not TRACES.search(line):
        return line
    # The last only for bytes that are no UTF-8: "Ã©Ã©" is éé, not 茅茅.
    for wrong, right in (
        ("gb18030", "utf-8"),
        ("latin-1", "utf-8"),
        ("latin-1", "gb18030"),
    ):
        try:
            repaired = line.encode(wrong).decode(right)
        except UnicodeError:
            continue
        if languages.is_everyday_chinese(repaired):
            return repaired
        if (wrong, right) == ("latin-1", "utf-8"):
            break
    return ftfy.fix_encoding(line)


def _remove_hidden(text):
    """Returns (text, pieces removed): scripts, styles and comments."""
    kept, start, closing, count = [], 0, "", 0
    for match in HIDDEN.finditer(text):
        found = match[0].lower()
        if closing:
            if found.startswith(closing):
                start, closing, count = match.end(), "", count + 1
        elif found == "<!--" or found.startswith(("<script", "<style")):
            kept.append(text[start : match.start()])
            start = match.start()
            closing = "-->" if found == "<!--" else f"</{found[1:4]}"
    # What is never closed is kept: it may be about HTML.
    return "".join(kept) + text[start:], count


def _unescape(match):
    return html.unescape(match[0])
