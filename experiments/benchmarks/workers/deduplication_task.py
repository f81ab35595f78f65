"""The texts that all contestants deduplicate, and what they should find.

Runs under the peers' Python too: standard library only.

A task is a dict: language ("en", "zh"), num_texts, threshold,
num_permutations, shingle_length, seed.
"""

import random
import re

# Zipf's law over so many words or characters, as a text has them.
NUM_WORDS, NUM_CHARACTERS = 20_000, 3_500
FIRST_CHARACTER = 0x4E00
# Units of a text: from a paragraph to some pages.
LENGTHS = (50, 100, 200, 400, 800)
# Edits of a copy, at most so many a unit: of shingles of five about two thirds
# then stay common, so that half of the copies lie on either side of 0.8.
MAX_EDIT_FRACTION = 0.04
UNIT = re.compile(r"[a-z0-9]+|[\u4e00-\u9fff]")


def build_texts(task):
    """Returns (texts, pairs): every third text is a copy of one before it.

    A copy has units replaced, removed, inserted or swapped, and some other
    cases and punctuation, which do not count.

    Returns:
        list of str, and list of (original's number, copy's number, true
        Jaccard similarity of their shingles).
    """
    rng = random.Random(f"{task['seed']} {task['language']}")
    draw = _drawer(rng, task["language"])
    texts, pairs, units_of = [], [], {}
    for number in range(task["num_texts"]):
        if number % 3 == 2:
            original = number - rng.choice((1, 2))
            units = _edited(rng, units_of[original], draw)
            texts.append(_render(rng, units, task["language"]))
            jaccard = _jaccard(
                shingles(texts[original], task["shingle_length"]),
                shingles(texts[number], task["shingle_length"]),
            )
            pairs.append((original, number, jaccard))
        else:
            units_of[number] = draw(rng.choice(LENGTHS))
            texts.append(_render(rng, units_of[number], task["language"]))
    return texts, pairs


def shingles(text, length):
    """Returns the set of runs of `length` words or Chinese characters."""
    units = UNIT.findall(text.lower())
    last = max(1, len(units) - length + 1)
    return {" ".join(units[i : i + length]) for i in range(last)}


def _drawer(rng, language):
    """Returns a function of a count that draws units as a text has them."""
    if language == "en":
        letters = "eeettaaooiinnsshhrrddlucmfwygpbvk"
        units = [
            "".join(rng.choices(letters, k=rng.choice((2, 3, 4, 5, 6, 7, 9))))
            for _ in range(NUM_WORDS)
        ]
    else:
        units = [chr(FIRST_CHARACTER + i) for i in range(NUM_CHARACTERS)]
    weights = [1 / (rank + 10) for rank in range(len(units))]

    return lambda count: rng.choices(units, weights, k=count)


def _edited(rng, units, draw):
    units = list(units)
    for _ in range(rng.randint(0, int(MAX_EDIT_FRACTION * len(units)))):
        place = rng.randrange(len(units) - 1)
        edit = rng.choice(("replace", "remove", "insert", "swap"))
        if edit == "replace":
            units[place] = draw(1)[0]
        elif edit == "remove":
            del units[place]
        elif edit == "insert":
            units[place:place] = draw(1)
        else:
            units[place : place + 2] = units[place : place + 2][::-1]
    return units


def _render(rng, units, language):
    """Returns a text of sentences; where they end is drawn anew."""
    space, comma, stop = (
        (" ", ", ", ". ") if language == "en" else ("", "，", "。")
    )
    pieces = []
    is_start = True
    for unit in units:
        pieces.append(unit.capitalize() if is_start else unit)
        mark = rng.choices((space, comma, stop), (14, 1, 1))[0]
        pieces.append(mark)
        is_start = mark == stop
    return "".join(pieces)


def _jaccard(left, right):
    return len(left & right) / len(left | right)
