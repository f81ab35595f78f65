"""Writes rouge.json with Google's package.

pip install rouge-score==0.1.2 && python tests/goldens/make_rouge.py
"""

import importlib.metadata
import json
import pathlib
import random

from rouge_score.rouge_scorer import RougeScorer

NAMES = ("rouge1", "rouge2", "rougeL")
PAIRS = [
    ("A red hat for 10 yuan.", "A red hat for 20 yuan."),
    ("A red hat.", "a RED hat"),
    ("one two three four", "four three two one"),
    ("the the the", "the cat"),
    ("It's 3.5 metres", "its 35 metres"),
    ("word", ""),
    ("police killed the gunman", "the gunman kill police"),
]


def main():
    rng = random.Random(0)
    words = list("abcdefg12")
    pairs = PAIRS + [
        tuple(
            " ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(2)
        )
        for _ in range(20)
    ]
    scorer = RougeScorer(NAMES, use_stemmer=False)
    rows = []
    for answer, reply in pairs:
        scores = scorer.score(answer, reply)
        rows.append(
            {
                "answer": answer,
                "reply": reply,
                "scores": {name: scores[name].fmeasure for name in NAMES},
            }
        )
    version = importlib.metadata.version("rouge-score")
    path = pathlib.Path(__file__).with_name("rouge.json")
    origin = f"rouge-score {version}, tests/goldens/make_rouge.py"
    text = json.dumps({"origin": origin, "rows": rows}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
