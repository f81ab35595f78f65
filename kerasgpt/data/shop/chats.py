"""Owns the shop's tasks: training chats and held-out questions, from one code.

A task draws what it asks about until the world's split says "training" or
"held out", so no held-out key can reach a training chat. Each wording is
either seen in training or new; new ones appear in held-out questions only.
"""

import dataclasses
import random

from kerasgpt.config import InputError
from kerasgpt.data.questions import Question
from kerasgpt.data.shop import phrases, wordings
from kerasgpt.data.shop.documents import FACT_SENTENCES, fact_values
from kerasgpt.data.shop.world import (
    ATTRIBUTES,
    COLOURS,
    KINDS,
    LANGUAGES,
    PEOPLE,
    WARRANTY_YEARS,
    World,
)


@dataclasses.dataclass(frozen=True)
class _Draw:
    """Where a question comes from: random numbers, world and its two splits."""

    rng: random.Random
    world: World
    task: str
    language: str
    held_out: bool
    wording: str

    def key(self, make_key):
        """Returns the first drawn key on this side of the split."""
        for _ in range(10_000):
            key = make_key(self.rng)
            if self.world.is_held_out(*key) == self.held_out:
                return key
        raise InputError(
            "data.num_products: too few; no question is left on one side of "
            "the split into training and held-out ones."
        )

    def pick(self, table):
        """Returns a wording; each language has (seen ones, new ones)."""
        seen, new = table[self.language]
        return self.rng.choice(new if self.wording == "new" else seen)


def _fact(draw):
    product, attribute = _product_and_attribute(draw)
    return _question(
        draw,
        _fact_question(draw, product.name, attribute),
        _fact_answer(product, attribute, draw.language),
        (product.name, attribute),
    )


def _follow_up(draw):
    """The product is named in the first turn only; "it" stands for it then."""
    firsts = []
    while not firsts:
        product, attribute = _product_and_attribute(draw)
        # The first turn is shown with its answer: in a training chat it must
        # not ask what is held out either.
        firsts = [
            other
            for other in ATTRIBUTES
            if other != attribute
            and not draw.world.is_held_out(product.name, other)
        ]
    first = draw.rng.choice(firsts)
    seen = dataclasses.replace(draw, wording="seen")
    history = (
        _message("user", _fact_question(seen, product.name, first)),
        _message("assistant", _fact_answer(product, first, draw.language)),
    )
    return _question(
        draw,
        draw.pick(wordings.FOLLOW_UP[attribute]),
        _fact_answer(product, attribute, draw.language),
        (product.name, attribute),
        history=history,
    )


def _policy(draw):
    policy = draw.rng.choice(draw.world.policies)
    # Rules are few and asked by everyone: only their wording is held out.
    draw = dataclasses.replace(draw, wording="new" if draw.held_out else "seen")
    text = draw.pick(wordings.POLICY[policy.key])
    return _question(
        draw, text, getattr(policy, draw.language), ("policy", text)
    )


def _unknown(draw):
    names = draw.world.unknown_names
    key = draw.key(lambda rng: ("unknown", rng.choice(names)))
    attribute = draw.rng.choice(ATTRIBUTES)
    text = _fact_question(draw, key[1], attribute)
    return _question(draw, text, wordings.UNKNOWN_ANSWERS[draw.language], key)


def _arithmetic(draw):
    """The price is recalled and shown, then multiplied."""
    product, _ = _product_and_attribute(draw, ("price",))
    pieces = draw.rng.randint(2, 5)
    text = draw.pick(wordings.ARITHMETIC).format(m=pieces, n=product.name)
    total = pieces * product.price
    working = f"{pieces} × {product.price} = {total}"
    fact = _fact_answer(product, "price", draw.language)
    if draw.language == "en":
        answer = f"{fact} {working}. You pay {total} yuan."
    else:
        answer = f"{fact}{working}。一共 {total} 元。"
    return _question(draw, text, answer, (product.name, "price"))


def _email(draw):
    people, problems = list(PEOPLE), list(wordings.EMAIL_PROBLEMS)
    key = draw.key(
        lambda rng: (
            "email",
            rng.choice(people),
            rng.choice(problems),
            rng.randint(1000, 9999),
        )
    )
    _, person, problem, order = key
    complaints, reply = wordings.EMAIL_PROBLEMS[problem][draw.language]
    complaint = draw.rng.choice(complaints).format(o=order)
    reply = reply.format(o=order)
    if draw.language == "en":
        mail = f"Dear shop, {complaint} Regards, {person}"
        answer = f"Dear {person}, {reply} Your shop team"
    else:
        mail = f"店家好，{complaint}{PEOPLE[person]}"
        answer = f"{PEOPLE[person]}您好，{reply}商店客服"
    return _question(
        draw, draw.pick(wordings.EMAIL).format(e=mail), answer, key
    )


def _sentiment(draw):
    def make_key(rng):
        signs = rng.choice(("++", "--", "+-", "-+"))
        opinions = rng.sample(range(len(phrases.PRAISE["en"])), 2)
        return ("sentiment", signs, *opinions)

    key = draw.key(make_key)
    review = phrases.review_text(key[1:], draw.language)
    label = {"++": "positive", "--": "negative"}.get(key[1], "mixed")
    text = draw.pick(wordings.SENTIMENT).format(r=review)
    return _question(
        draw, text, wordings.SENTIMENT_ANSWERS[label][draw.language], key
    )


def _classify(draw):
    key = draw.key(
        lambda rng: (
            "classify",
            rng.randrange(len(KINDS)),
            rng.choice(list(COLOURS)),
            phrases.random_price(rng),
        )
    )
    _, kind_index, colour, price = key
    slots = _page_slots(draw.language, kind_index, colour, price)
    description = draw.rng.choice(wordings.CLASSIFY_TEXTS[draw.language])
    text = draw.pick(wordings.CLASSIFY).format(d=description.format(**slots))
    category = phrases.category_name(KINDS[kind_index].category, draw.language)
    answer = {
        "en": f"It belongs to the {category} category.",
        "zh": f"它属于{category}类。",
    }[draw.language]
    return _question(draw, text, answer, key)


def _summary(draw):
    """The page is of no product of the world: its facts must be read there."""
    key = draw.key(
        lambda rng: (
            "summary",
            rng.randrange(len(KINDS)),
            rng.choice(list(COLOURS)),
            phrases.random_price(rng),
            rng.choice(WARRANTY_YEARS),
        )
    )
    _, kind_index, colour, price, warranty = key
    slots = _page_slots(draw.language, kind_index, colour, price, warranty)
    first, *rest = wordings.PAGE_SENTENCES[draw.language]
    rest = [draw.rng.choice(sentences) for sentences in rest]
    rest.append(draw.rng.choice(wordings.PAGE_FILLERS[draw.language]))
    draw.rng.shuffle(rest)
    sentences = [draw.rng.choice(first), *rest]
    page = (" " if draw.language == "en" else "").join(sentences)
    page = page.format(**slots)
    text = draw.pick(wordings.SUMMARY).format(t=page)
    answer = wordings.SUMMARY_ANSWERS[draw.language].format(**slots)
    return _question(draw, text, answer, key, source=page)


def _translation(draw):
    """The question's language is the language to translate from."""
    key = draw.key(lambda rng: ("translation", *phrases.random_statement(rng)))
    source, target = ("en", "zh") if draw.language == "en" else ("zh", "en")
    sentence = phrases.statement_sentence(key[1:], source)
    text = draw.pick(wordings.TRANSLATION).format(s=sentence)
    answer = phrases.statement_sentence(key[1:], target)
    return _question(draw, text, answer, key, source=sentence)


def _roles(draw):
    key = draw.key(lambda rng: ("roles", *phrases.random_sale(rng)))
    _, buyer, seller, colour, kind_index = key
    sentence = phrases.sale_sentence(draw.rng, key[1:], draw.language)
    item = phrases.item_name(
        colour, KINDS[kind_index], draw.language, article=False
    )
    if draw.language == "zh":
        buyer, seller = PEOPLE[buyer], PEOPLE[seller]
    answer = wordings.ROLE_ANSWERS[draw.language].format(
        b=buyer, i=item, s=seller
    )
    text = draw.pick(wordings.ROLE).format(s=sentence)
    return _question(draw, text, answer, key, source=sentence)


TASKS = {
    "fact": _fact,
    "follow_up": _follow_up,
    "policy": _policy,
    "unknown": _unknown,
    "arithmetic": _arithmetic,
    "email": _email,
    "sentiment": _sentiment,
    "classify": _classify,
    "summary": _summary,
    "translation": _translation,
    "roles": _roles,
}


# How often a task is drawn for training chats: recalling one of many facts and
# telling buyer from seller need more practice than the rest.
TRAINING_WEIGHTS = {task: 1 for task in TASKS} | {
    "fact": 2,
    "follow_up": 2,
    "arithmetic": 3,
    "roles": 3,
}


def generate_chats(world, *, count, seed=0):
    """Yields training chats: lists of {"role", "content"} messages.

    Each holds one to three tasks of one language, none of a held-out key and
    none in a new wording.

    Args:
        world: World.
        count: int, chats.
        seed: int. Another seed draws other chats from the same split.

    Example:
        >>> from kerasgpt.data.shop.world import build_world
        >>> chat = next(generate_chats(build_world(), count=1))
        >>> [message["role"] for message in chat][:2]
        ['user', 'assistant']
    """
    rng = random.Random(f"chats {world.seed} {seed}")
    names, weights = list(TASKS), list(TRAINING_WEIGHTS.values())
    for index in range(count):
        language = LANGUAGES[index % 2]
        messages = []
        if rng.random() < 0.05:
            user, assistant = rng.choice(wordings.GREETINGS[language])
            messages += [
                _message("user", user),
                _message("assistant", assistant),
            ]
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
            task = rng.choices(names, weights)[0]
            question = TASKS[task](
                _Draw(rng, world, task, language, False, "seen")
            )
            messages += [
                *question.messages,
                _message("assistant", question.answer),
            ]
        yield messages


def generate_questions(world, *, count_per_task, seed=0, held_out=True):
    """Returns held-out questions of every task and language, no two equal.

    Half of them are worded as in training, half in a new wording (all of
    those about policies, of which there are only so many).

    Args:
        world: World.
        count_per_task: int, for each task and language. At most so many.
        seed: int.
        held_out: bool. False = of training instead, in its wordings, for
            baselines to learn from.

    Returns:
        list of Question.

    Raises:
        InputError: if the world is too small to hold anything out.
    """
    side = "questions" if held_out else "training questions"
    rng = random.Random(f"{side} {world.seed} {seed}")
    questions = {}
    for task, ask in TASKS.items():
        for language in LANGUAGES:
            drawn = {}
            # Each may be drawn again a few times; then there are no more.
            for index in range(20 * count_per_task):
                if len(drawn) == count_per_task:
                    break
                wording = ("seen", "new")[index % 2 if held_out else 0]
                question = ask(
                    _Draw(rng, world, task, language, held_out, wording)
                )
                texts = [message["content"] for message in question.messages]
                drawn.setdefault(tuple(texts), question)
            questions[task, language] = list(drawn.values())
    return [question for group in questions.values() for question in group]


def _question(draw, text, answer, key, *, history=(), source=""):
    return Question(
        task=draw.task,
        language=draw.language,
        messages=(*history, _message("user", text)),
        answer=answer,
        key=key,
        wording=draw.wording,
        source=source,
    )


def _message(role, content):
    return {"role": role, "content": content}


def _product_and_attribute(draw, attributes=ATTRIBUTES):
    products = {product.name: product for product in draw.world.products}
    names = list(products)
    name, attribute = draw.key(
        lambda rng: (rng.choice(names), rng.choice(attributes))
    )
    return products[name], attribute


def _fact_question(draw, name, attribute):
    text = draw.pick(wordings.OPENERS) + draw.pick(wordings.FACT[attribute])
    text = text.format(n=name)
    # Not capitalize(): the rest of the sentence holds names.
    return text[0].upper() + text[1:]


def _fact_answer(product, attribute, language):
    wording = FACT_SENTENCES[language][attribute][0]
    return wording.format(**fact_values(product, language))


def _page_slots(language, kind_index, colour, price, warranty=1):
    kind = KINDS[kind_index]
    is_english = language == "en"
    return {
        "k": kind.en if is_english else kind.zh,
        "o": colour if is_english else COLOURS[colour],
        "p": price,
        "w": phrases.years(warranty, language),
    }
