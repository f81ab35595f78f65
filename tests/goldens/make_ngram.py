"""Writes ngram.json with NLTK: pip install nltk==3.10.4; python make_ngram.py.

Texts begin with grams that come again, since NLTK counts no token before the
first ones. One discount for all lengths but the first, as NLTK has it.
"""

import json
import pathlib

import nltk
from nltk.lm import MLE, KneserNeyInterpolated, Lidstone
from nltk.util import everygrams

TEXTS = {
    "abracadabra": "abracadabra abracadabra",
    "sea": "she sells sea shells, she sees",
    "zh": "你好你们好，你好他们好，你们",
}
ORDER, DISCOUNT, GAMMA = 3, 0.1, 0.5


def measure(text):
    vocabulary = sorted(set(text))
    models = {
        "kneser_ney": KneserNeyInterpolated(ORDER, discount=DISCOUNT),
        "add_k": Lidstone(GAMMA, ORDER),
        "mle": MLE(ORDER),
    }
    scores = {}
    for name, model in models.items():
        model.fit([list(everygrams(text, max_len=ORDER))], text)
        scores[name] = [
            # NLTK's vocabulary has one token more, <UNK>: it is given none of
            # the counts, and a share of what is added.
            [model.score(token, tuple(context)) for token in vocabulary]
            for context in (text[i : i + 2] for i in range(len(text) - 2))
        ]
    return {"text": text, "vocabulary": vocabulary, "scores": scores}


if __name__ == "__main__":
    value = {
        "origin": f"tests/goldens/make_ngram.py, nltk {nltk.__version__}",
        "value": {
            "order": ORDER,
            "discount": DISCOUNT,
            "k": GAMMA,
            "texts": {name: measure(text) for name, text in TEXTS.items()},
        },
    }
    path = pathlib.Path(__file__).with_suffix("").with_name("ngram.json")
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n")
