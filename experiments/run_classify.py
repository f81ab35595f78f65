"""Question  How well does a small GPT name the class of a text, beside naive
          Bayes: reviews and product pages of the shop, or your own table?
Command   python experiments/run_classify.py [data.path=my.csv]
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from kerasgpt.cli import run_script
from kerasgpt.evaluation.baselines import NaiveBayes, most_frequent
from kerasgpt.evaluation.classification import (
    class_probabilities,
    classification_table,
    write_classification_report,
)
from kerasgpt.training import classify

CONFIG = classify.ClassifyConfig()
TINY = CONFIG.override(
    [
        "model.depth=2",
        "model.model_dim=32",
        "model.context_length=64",
        "tokenizer.vocabulary_size=800",
        "data.num_products=20",
        "data.num_texts=60",
        "data.num_documents=300",
        "data.num_chats=300",
        "data.num_test_texts=20",
        "pretrain.steps=2",
        "train.steps=4",
        "train.evaluate_steps=2",
        "pretrain.batch_tokens=512",
        "train.batch_tokens=512",
    ]
)


def main(config):
    result = classify.run(config)
    tuned, corpus = result.classifier, result.corpus
    trained = [row.text for row in corpus.train]
    classes = [row.label for row in corpus.train]
    texts = [row.text for row in corpus.test]
    labels = tuned.model.config.labels
    found = class_probabilities(tuned.model, tuned.tokenizer, texts).argmax(1)
    predictions = {
        "majority": [most_frequent(classes)] * len(texts),
        "naive Bayes, words": NaiveBayes(trained, classes, orders=(1,)).predict(
            texts
        ),
        "naive Bayes, words and pairs": NaiveBayes(trained, classes).predict(
            texts
        ),
        "gpt": [labels[number] for number in found],
    }
    report = write_classification_report(
        tuned.folder,
        texts=corpus.test,
        predictions=predictions,
        labels=labels,
        metrics={"classifier on labels": tuned.metrics},
        curves={"classifier": tuned.folder / "metrics.jsonl"},
        facts={
            "training texts": len(corpus.train),
            "texts that lost their end": result.num_cut,
            "skipped rows": len(corpus.skipped),
            "config": config.to_dict(),
        },
    )
    print(
        f"""
{classification_table(report["scores"])}

report          {tuned.folder}/report.md
classify        kerasgpt classify {tuned.folder} "{texts[0]}"
your own data   python experiments/run_classify.py data.path=my.csv \
run_dir=experiments/runs/mine"""
    )


if __name__ == "__main__":
    run_script(
        main,
        CONFIG,
        stages=lambda config: (
            ({} if config.init else {"pretrain": config.pretrain})
            | {"train": config.train}
        ),
        document=__doc__,
    )
