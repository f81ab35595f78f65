"""Owns the shop's pretraining documents. Not: questions, or how they are asked.

Documents state facts; none of them asks. What a chat model knows about a fact
that no chat asked for, it read here.
"""

import itertools
import random

from kerasgpt.data.shop import phrases
from kerasgpt.data.shop.world import COLOURS, LANGUAGES

# Of all documents, those that are the page of one product.
PRODUCT_SHARE = 0.75
# The first wording of each is also the chat model's answer: it names the
# attribute, so that an answer is of the right kind from its first words on.
# {n} name, {k} kind, {c} category, {p} price, {o} colour, {s} stock,
# {w} warranty in years with its noun.
FACT_SENTENCES = {
    "en": {
        "kind": (
            "The {n} is a {k}.",
            "{n} is the name of a {k}.",
            "Our {k} {n} is well liked.",
            "As a {k}, the {n} does its job.",
        ),
        "category": (
            "The {n} belongs to the {c} category.",
            "You find the {n} in the {c} section.",
            "We list {n} under {c}.",
            "Category of {n}: {c}.",
            "The category of the {n} is {c}.",
        ),
        "price": (
            "The {n} costs {p} yuan.",
            "The price of the {n} is {p} yuan.",
            "You pay {p} yuan for the {n}.",
            "{n} sells for {p} yuan.",
            "Price of {n}: {p} yuan.",
        ),
        "colour": (
            "The colour of the {n} is {o}.",
            "The {n} is {o}.",
            "The {n} comes in {o}.",
            "{n} has a {o} finish.",
            "Colour of {n}: {o}.",
        ),
        "stock": (
            "There are {s} pieces of the {n} in stock.",
            "We have {s} pieces of the {n} left.",
            "The stock of the {n} is {s} pieces.",
            "{s} pieces of {n} are available.",
            "Stock of {n}: {s} pieces.",
        ),
        "warranty": (
            "The {n} has a warranty of {w}.",
            "The warranty of the {n} lasts {w}.",
            "We guarantee the {n} for {w}.",
            "{n} is covered for {w}.",
            "Warranty of {n}: {w}.",
        ),
    },
    "zh": {
        "kind": (
            "商品 {n} 是一款{k}。",
            "{n} 是{k}。",
            "我们的{k} {n} 很受欢迎。",
            "作为{k}，{n} 很好用。",
        ),
        "category": (
            "商品 {n} 属于{c}类。",
            "{n} 放在{c}区。",
            "我们把 {n} 归入{c}。",
            "{n} 的类别：{c}。",
            "{n} 的类别是{c}。",
        ),
        "price": (
            "商品 {n} 的价格是 {p} 元。",
            "{n} 卖 {p} 元。",
            "买一件 {n} 要付 {p} 元。",
            "{n} 的售价为 {p} 元。",
            "{n} 的价格：{p} 元。",
        ),
        "colour": (
            "商品 {n} 的颜色是{o}。",
            "{n} 是{o}的。",
            "{n} 的外观为{o}。",
            "{n} 只有{o}款。",
            "{n} 的颜色：{o}。",
        ),
        "stock": (
            "商品 {n} 有 {s} 件库存。",
            "{n} 还剩 {s} 件。",
            "{n} 的库存是 {s} 件。",
            "现有 {s} 件 {n}。",
            "{n} 的库存：{s} 件。",
        ),
        "warranty": (
            "商品 {n} 保修 {w}。",
            "{n} 的保修期是 {w}。",
            "我们为 {n} 提供 {w} 保修。",
            "{n} 享有 {w} 质保。",
            "{n} 的保修期：{w}。",
        ),
    },
}


def generate_documents(world, *, count, seed=0):
    """Yields `count` documents about the shop, half of them in each language.

    Most describe one product (`PRODUCT_SHARE`), its facts in random order and
    wording; the rest tell policies, sales, reviews, price lists and parallel
    sentences, which is where the model meets the language of the other tasks.

    Args:
        world: World.
        count: int, documents.
        seed: int. Another seed is another choice of the same facts' wordings.

    Yields:
        str.
    """
    rng = random.Random(f"documents {world.seed} {seed}")
    other = (
        _policies_document,
        _prices_document,
        _sales_document,
        _reviews_document,
        _parallel_document,
        _parallel_document,
        _catalogue_document,
    )
    order = []
    for index in range(count):
        language = LANGUAGES[index % 2]
        if rng.random() < PRODUCT_SHARE:
            if not order:
                # Each product once before any comes again.
                order = list(itertools.product(world.products, LANGUAGES))
                rng.shuffle(order)
            yield _product_document(rng, *order.pop())
        else:
            yield rng.choice(other)(rng, world, language)


def fact_values(product, language):
    """Returns the words for a product's facts, by the letter of its slot."""
    is_english = language == "en"
    return {
        "n": product.name,
        "k": product.kind.en if is_english else product.kind.zh,
        "c": phrases.category_name(product.kind.category, language),
        "p": product.price,
        "o": product.colour if is_english else COLOURS[product.colour],
        "s": product.stock,
        "w": phrases.years(product.warranty, language),
    }


def _product_document(rng, product, language):
    values = fact_values(product, language)
    sentences = [
        rng.choice(wordings).format(**values)
        for wordings in FACT_SENTENCES[language].values()
    ]
    rng.shuffle(sentences)
    return _join(sentences, language)


def _catalogue_document(rng, world, language):
    """Several products, one attribute each: facts outside their own page."""
    sentences = []
    for _ in range(rng.randint(3, 5)):
        values = fact_values(rng.choice(world.products), language)
        wordings = FACT_SENTENCES[language]
        attribute = rng.choice(list(wordings))
        sentences.append(rng.choice(wordings[attribute]).format(**values))
    return _join(sentences, language)


def _policies_document(rng, world, language):
    chosen = rng.sample(world.policies, rng.randint(2, 5))
    return _join([getattr(policy, language) for policy in chosen], language)


def _prices_document(rng, world, language):
    lines = []
    for _ in range(rng.randint(3, 6)):
        price, pieces = phrases.random_price(rng), rng.randint(2, 5)
        lines.append(f"{pieces} × {price} = {pieces * price}")
    heading = "Price table" if language == "en" else "价格表"
    return "\n".join([heading, *lines])


def _sales_document(rng, world, language):
    sales = [
        _training_draw(rng, world, "roles", phrases.random_sale)
        for _ in range(rng.randint(2, 3))
    ]
    return _join(
        [phrases.sale_sentence(rng, sale, language) for sale in sales], language
    )


def _reviews_document(rng, world, language):
    good = rng.sample(range(len(phrases.PRAISE["en"])), 2)
    bad = rng.sample(range(len(phrases.BLAME["en"])), 2)
    praise = [phrases.PRAISE[language][i] for i in good]
    blame = [phrases.BLAME[language][i] for i in bad]
    if language == "en":
        return (
            f"A positive review says: {praise[0]} {praise[1]} "
            f"A negative review says: {blame[0]} {blame[1]}"
        )
    return f"好评说：{praise[0]}{praise[1]}差评说：{blame[0]}{blame[1]}"


def _parallel_document(rng, world, language):
    facts = _training_draw(rng, world, "translation", phrases.random_statement)
    english = phrases.statement_sentence(facts, "en")
    chinese = phrases.statement_sentence(facts, "zh")
    pair = (english, chinese) if language == "en" else (chinese, english)
    return "\n".join(pair)


def _training_draw(rng, world, task, draw):
    """Returns a draw that is not kept for held-out questions of `task`."""
    drawn = draw(rng)
    while world.is_held_out(task, *drawn):
        drawn = draw(rng)
    return drawn


def _join(sentences, language):
    return (" " if language == "en" else "").join(sentences)
