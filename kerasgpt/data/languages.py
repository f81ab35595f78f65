"""Owns text -> its script and language. Not: what is done with the answer."""

import functools
import string

import numpy as np

# One letter of a script, as its blocks in the Unicode Character Database. A
# script that one language uses above all stands for that language.
SCRIPTS = {
    "latin": "AZazÀÖØöøɏḀỿ",
    "han": "〇〇㐀䶿一\u9fff\uf900\ufaff",
    "ja": "ぁゟァヿㇰㇿｦﾟ",
    "ko": "가\ud7afᄀᇿ\u3130\u318f",
    "ru": "Ѐԯ",
    "el": "Ͱϡ",
    "ar": "\u0600ۿݐݿ\ufb50\ufdff\ufe70\ufefe",
    "he": "\u0590\u05ff",
    "hi": "\u0900\u097f",
    "bn": "\u0980\u09ff",
    "ta": "\u0b80\u0bff",
    "te": "\u0c00\u0c7f",
    "th": "\u0e00\u0e7f",
    "my": "\u1000\u109f",
    "ka": "\u10a0\u10ff",
    "hy": "\u0530\u058f",
    "km": "\u1780\u17ff",
}
# Languages that write no spaces between words.
UNSPACED = frozenset({"zh", "ja", "th", "my", "km"})
# A Chinese word has about this many characters.
CHARACTERS_PER_WORD = 1.5
# An English word has about this many letters.
LETTERS_PER_WORD = 5.0
# Words that carry grammar: few, frequent, and of one language. What two
# languages share decides nothing and is left out where it can be.
FUNCTION_WORDS = {
    "en": "the of and to is that it was for you with as are this not have be "
    "your what on by from at which or an can his they we has but will i he she "
    "my in its her do does did had if were their so",
    "de": "der das und nicht ist ein eine zu den mit von sich auf für dem auch "
    "es wie wird sind oder aber wir sie ich",
    "fr": "le la les des et est une du que pour dans pas qui sur par plus avec "
    "au ce sont il nous vous je",
    "es": "el la los las de que en y un una es por con para del se su más pero "
    "al lo qué",
    "it": "il di che la è un una per non con sono del della gli le si da alla "
    "anche più perché",
    "pt": "os de que em um uma não é para com da se por mais ao dos das você "
    "como são foi",
    "nl": "de het een van en dat niet te zijn voor met aan er maar ook als bij "
    "ik je wordt",
    "sv": "och att det som på är av för med den inte till ett jag har men en "
    "var hon",
    "pl": "na się nie że jest jak po ale za od przez czy tak w z i to był",
    "tr": "ve bir bu için ile çok ne daha olarak gibi ama var olan",
    "vi": "và của là có không được cho một trong những các người với này đã",
    "id": "yang dan di ini itu dengan untuk tidak dari dalam akan pada ke",
}
# Every answer of `identify` but "und".
CODES = tuple(sorted({*FUNCTION_WORDS, "zh", *SCRIPTS} - {"latin", "han"}))
# A text is in a language if at least this share of its words, and two of
# them, carry its grammar; English prose has 0.4, lists of names have none.
# Other languages share such words with English names and code: more is asked.
MIN_ENGLISH_SHARE = 0.1
MIN_OTHER_SHARE = 0.15
# Characters looked at, in three pieces: start, middle and end. A page may
# begin with a menu in another language.
SAMPLE_CHARACTERS = 1500
ASCII_LETTERS = string.ascii_letters.encode()


def identify(text):
    """Returns the language of a text: "en", "zh", …, or "und" if unknown.

    By script, and for the Latin script by words that carry grammar; a text in
    two languages is in the one with more words. Traditional and simplified
    Chinese are both "zh"; a script shared by several languages gives the
    largest (Cyrillic "ru", Arabic "ar", Devanagari "hi").

    Stands for fastText's lid.176 or CLD3: what they add is telling apart 100
    languages, for a model file of 126 MB (0.9 MB compressed) or a C++ build;
    here English and Chinese must be told from each other and from the rest, at
    some microseconds a document.

    Args:
        text: str.

    Example:
        >>> identify("The cat is on the mat and it was asleep.")
        'en'
        >>> identify("猫在垫子上睡着了。"), identify("猫がマットで寝ている。")
        ('zh', 'ja')
        >>> identify("Der Hund und die Katze schlafen nicht."), identify("42")
        ('de', 'und')
    """
    sample = _sample(text)
    words = {
        script: count / _letters_per_word(script)
        for script, count in count_scripts(sample).items()
    }
    if words.get("han"):
        # Japanese writes grammar in kana; Chinese quotes a name at most.
        kana = words.pop("ja", 0)
        is_japanese = kana > 0.25 * (kana + words["han"])
        words["ja" if is_japanese else "zh"] = words.pop("han") + kana
    total = sum(words.values())
    for script in sorted(words, key=lambda key: (-words[key], key)):
        if words[script] < 0.1 * total:
            break
        language = _latin_language(sample) if script == "latin" else script
        if language != "und":
            return language
    return "und"


def count_scripts(text):
    """Returns the number of letters of each script, a dict without zeros.

    Example:
        >>> count_scripts("GPT 模型, модель")
        {'latin': 3, 'han': 2, 'ru': 6}
    """
    if text.isascii():
        rest = text.encode().translate(None, ASCII_LETTERS)
        return {"latin": len(text) - len(rest)} if len(rest) < len(text) else {}
    points = np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)
    # Planes 2 and 3 hold rare Han characters; the others no script of ours.
    points = np.where(points >> 17 == 1, ord("一"), np.minimum(points, 0xFFFF))
    counts = np.bincount(_script_table()[points], minlength=len(SCRIPTS) + 1)
    return {
        script: int(count)
        for script, count in zip(SCRIPTS, counts[1:], strict=True)
        if count
    }


def is_everyday_chinese(text, *, min_fraction=0.7):
    """Returns whether most non-ASCII characters are everyday Chinese.

    That is, among the 3,755 characters of GB 2312's first level, which are
    nearly all of running text, or its punctuation. Bytes decoded by the wrong
    table give rare characters instead.

    Example:
        >>> is_everyday_chinese("你好，世界！")
        True
        >>> is_everyday_chinese("你好，世界！".encode().decode("gb18030"))
        False
    """
    strange = [character for character in text if character > "\x7f"]
    everyday = sum(character in _everyday() for character in strange)
    return bool(strange) and everyday >= min_fraction * len(strange)


def _letters_per_word(script):
    return CHARACTERS_PER_WORD if script in ("han", "ja") else LETTERS_PER_WORD


def _sample(text):
    if len(text) <= SAMPLE_CHARACTERS:
        return text
    third = SAMPLE_CHARACTERS // 3
    middle = (len(text) - third) // 2
    return " ".join(
        (text[:third], text[middle : middle + third], text[-third:])
    )


def _latin_language(sample):
    # What has a comma at its end is rarely grammar.
    words = sample.lower().split()
    counts = {}
    for language, function_words in _function_words().items():
        counts[language] = sum(map(function_words.__contains__, words))
        # Twice as many as asked for: no other language needs to be tried.
        if counts[language] > max(4, 2 * MIN_OTHER_SHARE * len(words)):
            return language
    best = max(counts, key=counts.get)
    share = MIN_ENGLISH_SHARE if best == "en" else MIN_OTHER_SHARE
    return best if counts[best] >= max(2, share * len(words)) else "und"


@functools.cache
def _function_words():
    return {
        language: frozenset(words.split())
        for language, words in FUNCTION_WORDS.items()
    }


@functools.cache
def _script_table():
    """Returns the script of each code point of the basic plane, from 1."""
    table = np.zeros(0x10000, np.uint8)
    for number, blocks in enumerate(SCRIPTS.values(), start=1):
        for first, last in zip(blocks[::2], blocks[1::2], strict=True):
            table[ord(first) : ord(last) + 1] = number
    return table


@functools.cache
def _everyday():
    """Returns the characters of GB 2312's first level and its punctuation."""
    rows = [0xA1, 0xA3, *range(0xB0, 0xD8)]
    cells = [
        bytes((row, cell)).decode("gb2312", "ignore")
        for row in rows
        for cell in range(0xA1, 0xFF)
    ]
    return frozenset("".join(cells))
