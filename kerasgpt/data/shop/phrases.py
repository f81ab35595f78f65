"""Owns wording that documents and chats of the shop share. Not: facts."""

from kerasgpt.data.shop.world import (
    CATEGORIES,
    COLOURS,
    KINDS,
    PEOPLE,
    PRICES_YUAN,
)

ZH_NUMBERS = {2: "两", 3: "三", 4: "四", 5: "五", 6: "六"}
EN_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
# English, Chinese: what a person does with products.
VERBS = (
    ("bought", "买了"),
    ("ordered", "订了"),
    ("returned", "退了"),
    ("found", "找到了"),
    ("lost", "丢了"),
)
# English at the end of the sentence, Chinese after the person.
TIMES = (
    ("today", "今天"),
    ("yesterday", "昨天"),
    ("on Monday", "周一"),
    ("on Friday", "周五"),
    ("last week", "上周"),
)
PRAISE = {
    "en": (
        "It works very well.",
        "I am very happy with it.",
        "The quality is excellent.",
        "It looks beautiful.",
        "It was worth every yuan.",
        "I would buy it again.",
        "Everyone at home loves it.",
        "It is easy to use.",
        "It arrived quickly.",
        "It feels strong and solid.",
    ),
    "zh": (
        "它很好用。",
        "我非常满意。",
        "质量非常好。",
        "样子很漂亮。",
        "这钱花得很值。",
        "我还会再买。",
        "全家人都喜欢它。",
        "它用起来很简单。",
        "它很快就送到了。",
        "它摸起来很结实。",
    ),
}
BLAME = {
    "en": (
        "It broke after a day.",
        "I am very disappointed.",
        "The quality is terrible.",
        "It looks ugly.",
        "It was a waste of money.",
        "I would never buy it again.",
        "Nobody at home likes it.",
        "It is hard to use.",
        "It arrived far too late.",
        "It feels cheap and weak.",
    ),
    "zh": (
        "它一天就坏了。",
        "我非常失望。",
        "质量非常差。",
        "样子很难看。",
        "这钱白花了。",
        "我再也不会买了。",
        "家里没人喜欢它。",
        "它用起来很麻烦。",
        "它很晚才送到。",
        "它摸起来很单薄。",
    ),
}


def opinion(sign, index, language):
    """Returns a sentence of praise ("+") or blame ("-")."""
    return (PRAISE if sign == "+" else BLAME)[language][index]


def review_text(review, language):
    """Returns the text of (signs, index, index), such as ("+-", 0, 3)."""
    signs, *indices = review
    sentences = [
        opinion(sign, index, language)
        for sign, index in zip(signs, indices, strict=True)
    ]
    return (" " if language == "en" else "").join(sentences)


def category_name(category, language):
    """Returns the category's name in `language`."""
    return category if language == "en" else CATEGORIES[category]


def years(count, language):
    """Returns a number of years in words: "1 year", "2 years", "2 年"."""
    if language == "zh":
        return f"{count} 年"
    return f"{count} year" if count == 1 else f"{count} years"


def random_price(rng):
    """Returns a price in yuan."""
    return rng.choice(PRICES_YUAN)


def random_sale(rng):
    """Returns (buyer, seller, colour, kind index): who bought what of whom."""
    buyer, seller = rng.sample(list(PEOPLE), 2)
    return buyer, seller, rng.choice(list(COLOURS)), rng.randrange(len(KINDS))


def item_name(colour, kind, language, *, article=True):
    """Returns "a red lamp", "red lamp", "一盏红色的台灯" or "红色的台灯"."""
    if language == "en":
        return f"a {colour} {kind.en}" if article else f"{colour} {kind.en}"
    bare = f"{COLOURS[colour]}的{kind.zh}"
    return f"一{kind.measure_word}{bare}" if article else bare


def sale_sentence(rng, sale, language):
    """Returns one of several sentences that tell of a sale."""
    buyer, seller, colour, kind_index = sale
    item = item_name(colour, KINDS[kind_index], language)
    if language == "en":
        wordings = (
            f"{buyer} bought {item} from {seller}.",
            f"{seller} sold {item} to {buyer}.",
            f"{seller} sold {buyer} {item}.",
            f"From {seller}, {buyer} bought {item}.",
        )
    else:
        buyer, seller = PEOPLE[buyer], PEOPLE[seller]
        wordings = (
            f"{buyer}从{seller}那里买了{item}。",
            f"{seller}把{item}卖给了{buyer}。",
            f"{seller}卖给{buyer}{item}。",
            f"{buyer}向{seller}买了{item}。",
        )
    return rng.choice(wordings)


def random_statement(rng):
    """Returns (person, verb, number, colour, kind, time) indices or names."""
    return (
        rng.choice(list(PEOPLE)),
        rng.randrange(len(VERBS)),
        rng.choice((1, 2, 3, 4, 5, 6)),
        rng.choice(list(COLOURS)),
        rng.randrange(len(KINDS)),
        rng.randrange(len(TIMES)),
    )


def statement_sentence(statement, language):
    """Returns the sentence for a `random_statement`, for translation."""
    person, verb, number, colour, kind_index, time = statement
    kind = KINDS[kind_index]
    if language == "en":
        if number == 1:
            item = item_name(colour, kind, "en")
        else:
            item = f"{EN_NUMBERS[number]} {colour} {kind.en_plural}"
        return f"{person} {VERBS[verb][0]} {item} {TIMES[time][0]}."
    if number == 1:
        item = item_name(colour, kind, "zh")
    else:
        item = f"{ZH_NUMBERS[number]}{kind.measure_word}{COLOURS[colour]}的{kind.zh}"
    return f"{PEOPLE[person]}{TIMES[time][1]}{VERBS[verb][1]}{item}。"
