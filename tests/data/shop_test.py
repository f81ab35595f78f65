"""The shop's world, its texts, and above all its split."""

import collections
import re

import pytest

from kerasgpt.config import InputError
from kerasgpt.data.shop import (
    LABELLED_TASKS,
    TASKS,
    build_world,
    generate_chats,
    generate_documents,
    generate_labelled_texts,
    generate_pairs,
    generate_questions,
    phrases,
    wordings,
)
from kerasgpt.data.shop import chats as shop_chats
from kerasgpt.data.shop.documents import FACT_SENTENCES, fact_values
from kerasgpt.data.shop.labels import LABELS
from kerasgpt.data.shop.world import ATTRIBUTES, LANGUAGES

NUM_CHATS = 4000


@pytest.fixture(scope="module")
def world():
    return build_world()


@pytest.fixture(scope="module")
def chats(world):
    return list(generate_chats(world, count=NUM_CHATS))


@pytest.fixture(scope="module")
def documents(world):
    return list(generate_documents(world, count=6000))


@pytest.fixture(scope="module")
def questions(world):
    return generate_questions(world, count_per_task=40)


def _contents(chats, role):
    return [m["content"] for chat in chats for m in chat if m["role"] == role]


def _facts(world):
    """Yields (product, attribute, every sentence that states the fact)."""
    for product in world.products:
        for attribute in ATTRIBUTES:
            yield (
                product,
                attribute,
                [
                    wording.format(**fact_values(product, language))
                    for language in LANGUAGES
                    for wording in FACT_SENTENCES[language][attribute]
                ],
            )


# The world.


def test_a_seed_describes_one_world():
    assert build_world(3) == build_world(3)
    assert build_world(3) != build_world(4)


def test_the_default_world_is_large_enough(world):
    assert len(world.products) >= 100
    names = [product.name for product in world.products]
    assert len({*names, *world.unknown_names}) == len(names) + 400
    assert len(world.policies) == 8


@pytest.mark.parametrize("other_seed", [1, 2, 3])
def test_another_seed_shares_no_fact(world, other_seed):
    def facts(world):
        return {
            (product.name, attribute, str(getattr(product, attribute)))
            for product in world.products
            for attribute in ("kind", "price", "colour", "stock", "warranty")
        }

    assert not facts(world) & facts(build_world(other_seed))


def test_a_larger_world_is_still_a_world():
    world = build_world(num_products=2000)
    assert len({product.name for product in world.products}) == 2000
    for count in (0, 2001):
        with pytest.raises(ValueError, match=f"received {count}"):
            build_world(num_products=count)


def test_the_split_is_a_fifth_and_does_not_depend_on_order(world):
    keys = [(p.name, a) for p in world.products for a in ATTRIBUTES]
    held_out = [key for key in keys if world.is_held_out(*key)]
    assert 0.15 < len(held_out) / len(keys) < 0.25
    again = [key for key in reversed(keys) if world.is_held_out(*key)]
    assert sorted(again) == sorted(held_out)
    other = build_world(1)
    assert held_out != [key for key in keys if other.is_held_out(*key)]


# Documents.


def test_documents_are_repeatable_and_differ_by_seed(world):
    def texts(seed):
        return list(generate_documents(world, count=50, seed=seed))

    assert texts(0) == texts(0)
    assert texts(0) != texts(1)


def test_documents_state_every_fact_in_both_languages(world, documents):
    text = "\n".join(documents)
    for product in world.products:
        for attribute in ATTRIBUTES:
            for language in LANGUAGES:
                values = fact_values(product, language)
                assert any(
                    wording.format(**values) in text
                    for wording in FACT_SENTENCES[language][attribute]
                ), (product.name, attribute, language)


def test_documents_ask_nothing(documents):
    assert not [text for text in documents if "?" in text or "？" in text]


def test_documents_state_no_wrong_price(world, documents):
    prices = {product.name: product.price for product in world.products}
    for text in documents:
        for name, price in prices.items():
            marker = f"The {name} costs "
            if marker in text:
                rest = text.split(marker, 1)[1]
                assert rest.startswith(f"{price} yuan.")


def test_documents_hold_no_held_out_sale_or_translation(questions, documents):
    text = "\n".join(documents)
    for question in questions:
        if question.task == "translation":
            source = question.messages[-1]["content"]
            assert question.answer not in text
            sentence = source.split(": ")[-1].split("？")[-1].split("：")[-1]
            assert sentence not in text.split("\n")


# Chats.


def test_chats_are_repeatable_and_differ_by_seed(world):
    def some(seed):
        return list(generate_chats(world, count=30, seed=seed))

    assert some(0) == some(0)
    assert some(0) != some(1)


def test_chats_alternate_between_user_and_assistant(chats):
    for chat in chats:
        roles = [message["role"] for message in chat]
        assert roles == ["user", "assistant"] * (len(chat) // 2)
        assert all(message["content"].strip() for message in chat)


def test_half_of_the_chats_are_chinese(chats):
    chinese = [
        chat
        for chat in chats
        if any("\u4e00" <= c <= "\u9fff" for m in chat for c in m["content"])
    ]
    # Translations into Chinese add some to the half of them.
    assert NUM_CHATS // 2 <= len(chinese) < 0.75 * NUM_CHATS


# The split between training chats and held-out questions.


def test_held_out_keys_are_held_out_and_the_others_are_not(world, questions):
    for question in questions:
        if question.task != "policy":
            assert world.is_held_out(*question.key), question


@pytest.mark.parametrize("seed", [0, 1])
def test_training_draws_no_held_out_key(world, monkeypatch, seed):
    drawn = []
    original = shop_chats._question

    def record(draw, text, answer, key, **further):
        drawn.append((draw.task, key))
        return original(draw, text, answer, key, **further)

    monkeypatch.setattr(shop_chats, "_question", record)
    list(generate_chats(world, count=1000, seed=seed))
    assert {task for task, _ in drawn} == set(TASKS)
    leaks = [
        (task, key)
        for task, key in drawn
        if task != "policy" and world.is_held_out(*key)
    ]
    assert not leaks


def test_no_training_chat_states_a_held_out_fact(world, chats):
    text = "\n".join(m["content"] for chat in chats for m in chat)
    held_out = 0
    for product, attribute, sentences in _facts(world):
        if world.is_held_out(product.name, attribute):
            held_out += 1
            for sentence in sentences:
                assert sentence not in text
    assert held_out > 50


def test_training_chats_state_most_other_facts(world, chats):
    text = "\n".join(m["content"] for chat in chats for m in chat)
    stated = [
        any(sentence in text for sentence in sentences)
        for product, attribute, sentences in _facts(world)
        if not world.is_held_out(product.name, attribute)
    ]
    assert sum(stated) / len(stated) > 0.9


def test_no_held_out_question_is_asked_in_training(chats, questions):
    asked = set(_contents(chats, "user"))
    for question in questions:
        # A follow-up ("How much does it cost?") names its product before.
        if question.task != "follow_up":
            assert question.messages[-1]["content"] not in asked


def test_no_held_out_follow_up_has_its_conversation_in_training(
    chats, questions
):
    answers = set(_contents(chats, "assistant"))
    for question in questions:
        if question.task == "follow_up":
            assert question.answer not in answers


# The tasks whose every answer tells the key; others have few answers.
TELLING = ("fact", "follow_up", "arithmetic", "email", "translation", "roles")


def test_no_held_out_answer_is_given_in_training(chats, questions):
    given = set(_contents(chats, "assistant"))
    for question in questions:
        if question.task in TELLING:
            assert question.answer not in given, question


def _constant_parts(pairs):
    """Yields the longest piece of each new wording that has no slot."""
    for language in LANGUAGES:
        for wording in pairs[language][1]:
            if not wording:
                continue
            pieces = wording
            for slot in "nmesdrt":
                pieces = pieces.replace(f"{{{slot}}}", "\x00")
            yield language, wording, pieces


NEW_WORDINGS = {
    "openers": wordings.OPENERS,
    "arithmetic": wordings.ARITHMETIC,
    "email": wordings.EMAIL,
    "sentiment": wordings.SENTIMENT,
    "classify": wordings.CLASSIFY,
    "summary": wordings.SUMMARY,
    "translation": wordings.TRANSLATION,
    "roles": wordings.ROLE,
    **{f"fact {k}": v for k, v in wordings.FACT.items()},
    **{f"follow_up {k}": v for k, v in wordings.FOLLOW_UP.items()},
    **{f"policy {k}": v for k, v in wordings.POLICY.items()},
}


@pytest.mark.parametrize("name", NEW_WORDINGS)
def test_no_training_turn_has_a_new_wording(chats, name):
    users = [text.lower() for text in _contents(chats, "user")]
    for _, wording, pattern in _constant_parts(NEW_WORDINGS[name]):
        pieces = [p.lower() for p in pattern.split("\x00") if p.strip()]
        for text in users:
            place = 0
            for piece in pieces:
                place = text.find(piece, place)
                if place < 0:
                    break
                place += len(piece)
            assert place < 0, (wording, text)


@pytest.mark.parametrize("name", NEW_WORDINGS)
def test_seen_and_new_wordings_are_disjoint(name):
    for language in LANGUAGES:
        seen, new = NEW_WORDINGS[name][language]
        assert new
        # The empty opener is no wording.
        assert not (set(seen) & set(new)) - {""}


def test_no_seen_wording_holds_a_new_one():
    seen = [
        wording.lower()
        for pairs in NEW_WORDINGS.values()
        for language in LANGUAGES
        for wording in pairs[language][0]
    ]
    for pairs in NEW_WORDINGS.values():
        for _, new, _ in _constant_parts(pairs):
            assert not [wording for wording in seen if new.lower() in wording]


# Questions.


def test_every_task_is_asked_in_both_languages_and_wordings(questions):
    counts = collections.Counter(
        (q.task, q.language, q.wording) for q in questions
    )
    for task in TASKS:
        for language in LANGUAGES:
            if task == "policy":
                # There are only so many of them.
                assert 8 <= counts[task, language, "new"] <= 40
                assert counts[task, language, "seen"] == 0
            else:
                new = counts[task, language, "new"]
                # Half, but for the few that were drawn twice.
                assert 18 <= new <= 22
                assert new + counts[task, language, "seen"] == 40


def test_questions_are_repeatable_and_differ_by_seed(world):
    def some(seed):
        return generate_questions(world, count_per_task=4, seed=seed)

    assert some(0) == some(0)
    assert some(0) != some(1)


def test_questions_end_with_the_user_and_have_an_answer(questions):
    for question in questions:
        assert question.messages[-1]["role"] == "user"
        assert question.answer.strip()


def test_answers_are_the_facts_of_the_world(world, questions):
    products = {product.name: product for product in world.products}
    for question in questions:
        if question.task in ("fact", "follow_up"):
            name, attribute = question.key
            values = fact_values(products[name], question.language)
            sentence = FACT_SENTENCES[question.language][attribute][0]
            assert question.answer == sentence.format(**values)
        if question.task == "arithmetic":
            price = products[question.key[0]].price
            product, total = question.answer.split("×")[1].split("=")[:2]
            assert int(product) == price
            assert int("".join(filter(str.isdigit, total))) % price == 0
        if question.task == "unknown":
            assert question.key[1] not in products
            assert question.key[1] in question.messages[-1]["content"]


def test_the_name_of_a_follow_up_stands_in_the_first_turn_only(questions):
    for question in questions:
        if question.task == "follow_up":
            name = question.key[0]
            assert name in question.messages[0]["content"]
            assert name not in question.messages[-1]["content"]


def _conversation(question):
    return tuple(message["content"] for message in question.messages)


@pytest.mark.parametrize("count", [40, 150])
def test_no_two_questions_are_equal(world, count):
    questions = generate_questions(world, count_per_task=count)
    counts = collections.Counter((q.task, q.language) for q in questions)
    assert set(counts) == {(t, lang) for t in TASKS for lang in LANGUAGES}
    assert max(counts.values()) <= count
    assert len(set(map(_conversation, questions))) == len(questions)


@pytest.mark.parametrize("seed", range(5))
def test_the_world_of_questions_may_be_small(seed):
    world = build_world(seed, num_products=20)
    questions = generate_questions(world, count_per_task=4)
    assert len(questions) == len(TASKS) * 2 * 4
    assert len(list(generate_chats(world, count=500))) == 500


def test_a_world_too_small_to_hold_anything_out_is_refused():
    world = build_world(num_products=1)
    with pytest.raises(InputError, match=r"^data\.num_products: too few;"):
        generate_questions(world, count_per_task=1)


def _labelled(world, task, held_out, count=600):
    return list(
        generate_labelled_texts(
            world, task=task, count=count, held_out=held_out
        )
    )


@pytest.mark.parametrize("task", LABELLED_TASKS)
def test_labelled_texts_are_split_by_what_they_say(world, task):
    trained = _labelled(world, task, False)
    tested = _labelled(world, task, True)
    assert len(trained) == len(tested) == 600

    def sayings(rows):
        # Without the introduction, which is drawn anew each time.
        return {
            tuple(
                sorted(
                    sentence
                    for table in (phrases.PRAISE, phrases.BLAME)
                    for sentence in table[language]
                    if sentence[1:-1] in text
                )
            )
            + (text.find("lthough") > 0, text.find("虽然") >= 0, label)
            if task == "sentiment"
            else text
            for text, label, language in rows
        }

    assert len(sayings(tested)) > 50
    if task == "category":
        assert not sayings(trained) & sayings(tested)
    assert len({text for text, _, _ in trained + tested}) == 1200
    assert {label for _, label, _ in tested} == set(LABELS[task])


def test_no_held_out_review_is_in_a_training_chat(world, chats):
    asked = "\n".join(_contents(chats, "user"))
    for task in LABELLED_TASKS:
        for text, _, _ in _labelled(world, task, True):
            # In chats a review has no introduction.
            for start in ("I bought", "This is about", "My order"):
                if text.startswith(start):
                    text = text.partition(". ")[2]
            for start in ("我买了", "说说", "我订的是"):
                if text.startswith(start):
                    text = text.partition("。")[2]
            if "although" not in text.lower() and "虽然" not in text:
                assert text not in asked


def test_labels_are_what_the_reviews_say(world):
    for text, label, language in _labelled(world, "sentiment", False):
        praised, blamed = (
            [s for s in table[language] if s[1:-1].lower() in text.lower()]
            for table in (phrases.PRAISE, phrases.BLAME)
        )
        conceded = None
        if language == "en" and "although" in text.lower():
            before, _, after = text.lower().partition("although ")
            is_first = before.rstrip().endswith(".") or not before.strip()
            conceded = after.split(",")[0] if is_first else after
        if language == "zh" and "虽然" in text:
            conceded = text.partition("虽然")[2].split("，但是")[0]
        if language == "zh" and "尽管" in text:
            conceded = text.partition("尽管")[2]
        if conceded is None:
            expected = "mixed" if praised and blamed else None
            expected = expected or ("positive" if praised else "negative")
        else:
            assert len(praised) == len(blamed) == 1
            is_praise_conceded = praised[0][1:-1].lower() in conceded
            expected = "negative" if is_praise_conceded else "positive"
        assert label == expected, text


def test_an_unknown_labelled_task_is_refused(world):
    with pytest.raises(InputError, match=r"data\.task=mood: must be one of"):
        _labelled(world, "mood", False)


def test_a_question_about_a_text_names_it(questions):
    for question in questions:
        is_about_text = question.task in ("summary", "translation", "roles")
        assert bool(question.source) == is_about_text
        assert question.source in question.messages[-1]["content"]


def test_pairs_of_the_two_sides_share_no_product_and_no_deed():
    world = build_world(seed=3, num_products=200)
    sides = {
        is_held_out: list(
            generate_pairs(world, count=600, is_held_out=is_held_out)
        )
        for is_held_out in (False, True)
    }
    names = {product.name for product in world.products}

    def words(pairs):
        return {
            word
            for pair in pairs
            for text in pair
            for word in re.findall("[A-Za-z]+", text)
        }

    told = {side: names & words(pairs) for side, pairs in sides.items()}
    assert len(told[False]) > 100
    assert len(told[True]) > 8
    assert not told[False] & told[True]
    # Nor a sentence about people, in either language.
    assert not {t for pair in sides[True] for t in pair} & {
        t for pair in sides[False] for t in pair
    }


def test_pairs_are_of_both_directions_and_have_one_right_answer():
    world = build_world(seed=0, num_products=60)
    pairs = list(generate_pairs(world, count=400, is_held_out=False))

    def is_chinese(text):
        return any("\u4e00" <= letter <= "\u9fff" for letter in text)

    assert [is_chinese(source) for source, _ in pairs] == [False, True] * 200
    assert [is_chinese(target) for _, target in pairs] == [True, False] * 200
    answers = {}
    for source, target in pairs:
        assert answers.setdefault(source, target) == target
    assert pairs == list(generate_pairs(world, count=400, is_held_out=False))


def test_a_world_too_small_to_hold_products_out_is_refused():
    world = build_world(seed=0, num_products=1)
    sides = [
        world.is_held_out("pair", product.name, fraction=0.1)
        for product in world.products
    ]
    with pytest.raises(ValueError, match="1 products are too few"):
        next(generate_pairs(world, count=1, is_held_out=not sides[0]))
