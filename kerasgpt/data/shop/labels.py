"""Owns labelled texts of the shop: reviews and product pages.

Their split is the world's, by the same keys as in chats.py: no review or page
that is held out here is in a training chat, and none is in both splits.
"""

import random

from kerasgpt.config import InputError
from kerasgpt.data.shop import phrases, wordings
from kerasgpt.data.shop.world import CATEGORIES, COLOURS, KINDS, LANGUAGES

SENTIMENTS = ("positive", "negative", "mixed")
# {i} what was bought; {a} what is conceded, {b} what the customer concludes.
INTRODUCTIONS = {
    "en": ("", "I bought {i}. ", "This is about {i}. ", "My order: {i}. "),
    "zh": ("", "我买了{i}。", "说说{i}。", "我订的是{i}。"),
}
CONCESSIONS = {
    "en": ("Although {a}, {b}.", "{b}, although {a}."),
    "zh": ("虽然{a}，但是{b}。", "{b}，尽管{a}。"),
}


def generate_labelled_texts(world, *, task, count, held_out, seed=0):
    """Yields (text, label, language) with the true label, no two texts equal.

    - "sentiment": a review of two opinions: positive, negative, or mixed; in
      half of the positive and negative ones the other opinion is conceded, so
      that the words alone do not tell;
    - "category": a product page, and the product's category.

    Args:
        world: World.
        task: str, "sentiment" or "category".
        count: int, at most so many, half of them in each language.
        held_out: bool. Which side of the world's split.
        seed: int.

    Raises:
        InputError: for an unknown task.

    Example:
        >>> from kerasgpt.data.shop.world import build_world
        >>> texts = generate_labelled_texts(
        ...     build_world(), task="category", count=4, held_out=True)
        >>> [language for _, _, language in texts]
        ['en', 'zh', 'en', 'zh']
    """
    if task not in LABELLED_TASKS:
        raise InputError(
            f"data.task={task}: must be one of {', '.join(LABELLED_TASKS)}."
        )
    draw = LABELLED_TASKS[task]
    rng = random.Random(f"labels {world.seed} {task} {held_out} {seed}")
    seen = set()
    # Each may be drawn again a few times; then there are no more.
    for _ in range(20 * count):
        if len(seen) == count:
            return
        language = LANGUAGES[len(seen) % len(LANGUAGES)]
        key, text, label = draw(rng, language)
        if world.is_held_out(*key) == held_out and text not in seen:
            seen.add(text)
            yield text, label, language


def _review(rng, language):
    label = rng.choice(SENTIMENTS)
    first, second = rng.sample(range(len(phrases.PRAISE["en"])), 2)
    sign = {"positive": "+", "negative": "-"}.get(label)
    introduction = _introduction(rng, language)
    if sign and rng.random() < 0.5:
        form = rng.randrange(len(CONCESSIONS[language]))
        key = ("concession", form, sign, first, second)
        other = "-" if sign == "+" else "+"
        text = CONCESSIONS[language][form].format(
            a=_clause(other, first, language), b=_clause(sign, second, language)
        )
        # Not capitalize(): the rest of the sentence holds "I".
        text = text[0].upper() + text[1:]
    else:
        signs = 2 * sign if sign else rng.choice(("+-", "-+"))
        key = ("sentiment", signs, first, second)
        text = phrases.review_text(key[1:], language)
    return key, introduction + text, label


def _introduction(rng, language):
    item = phrases.item_name(
        rng.choice(list(COLOURS)), rng.choice(KINDS), language
    )
    return rng.choice(INTRODUCTIONS[language]).format(i=item)


def _clause(sign, index, language):
    sentence = phrases.opinion(sign, index, language)[:-1]
    is_name = language == "en" and sentence.startswith("I ")
    return sentence if is_name else sentence[0].lower() + sentence[1:]


def _page(rng, language):
    kind_index, colour, price = (
        rng.randrange(len(KINDS)),
        rng.choice(list(COLOURS)),
        phrases.random_price(rng),
    )
    kind = KINDS[kind_index]
    is_english = language == "en"
    text = rng.choice(wordings.CLASSIFY_TEXTS[language]).format(
        k=kind.en if is_english else kind.zh,
        o=colour if is_english else COLOURS[colour],
        p=price,
    )
    return ("classify", kind_index, colour, price), text, kind.category


LABELLED_TASKS = {"sentiment": _review, "category": _page}
LABELS = {"sentiment": SENTIMENTS, "category": tuple(CATEGORIES)}
