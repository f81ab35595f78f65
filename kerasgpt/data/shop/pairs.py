"""Owns the shop's parallel sentences, English and Chinese. Not: chats."""

import random

from kerasgpt.data.shop import phrases
from kerasgpt.data.shop.documents import FACT_SENTENCES, fact_values
from kerasgpt.data.shop.world import LANGUAGES

# Of the pairs, those that tell facts of a product; the rest tell what people
# did.
PRODUCT_SHARE = 0.75
MOST_SENTENCES = 3


def generate_pairs(world, *, count, is_held_out, seed=0):
    """Yields pairs of texts that say the same, half of them from English.

    A pair tells one to three facts of one product, or what somebody bought,
    lost or returned. What is read is worded in any of the ways that documents
    word it, its translation always in the first, so that there is one right
    answer.

    Args:
        world: World.
        count: int, pairs.
        is_held_out: bool. Of products, and of people's deeds, that are kept
            for evaluation, or only of others: the two never share one.
        seed: int.

    Yields:
        (source, target), str each.

    Raises:
        ValueError: if the world has no product of this side.
    """
    rng = random.Random(f"pairs {world.seed} {seed} {is_held_out}")
    products = [
        product
        for product in world.products
        if world.is_held_out("pair", product.name, fraction=0.1) == is_held_out
    ]
    if not products:
        raise ValueError(
            f"{len(world.products)} products are too few to hold some out."
        )
    for index in range(count):
        languages = LANGUAGES if index % 2 == 0 else LANGUAGES[::-1]
        if rng.random() < PRODUCT_SHARE:
            yield _facts(rng, rng.choice(products), *languages)
        else:
            facts = phrases.random_statement(rng)
            while world.is_held_out("translation", *facts) != is_held_out:
                facts = phrases.random_statement(rng)
            yield tuple(
                phrases.statement_sentence(facts, language)
                for language in languages
            )


def _facts(rng, product, source, target):
    attributes = rng.sample(
        list(FACT_SENTENCES[source]), rng.randint(1, MOST_SENTENCES)
    )

    def text(language, choose):
        values = fact_values(product, language)
        sentences = (
            choose(FACT_SENTENCES[language][attribute]).format(**values)
            for attribute in attributes
        )
        return (" " if language == "en" else "").join(sentences)

    return text(source, rng.choice), text(target, lambda wordings: wordings[0])
