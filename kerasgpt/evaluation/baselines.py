"""Owns what a model must beat without a network: the cheapest predictors.

Not: n-gram language models, which score texts (models).
"""

import collections

import numpy as np

from kerasgpt.evaluation.words import ngrams, words


def most_frequent(values):
    """Returns the value that occurs most often, the first such one.

    Example:
        >>> most_frequent(["b", "a", "a", "b"])
        'b'
    """
    return collections.Counter(values).most_common(1)[0][0]


# N-grams that a baseline keeps: of 200 classes, 320 MB.
MOST_GRAMS = 200_000


class NaiveBayes:
    """Multinomial naive Bayes on words and pairs of words, add-one smoothed.

    log P(c | text) = log P(c) + sum over n-grams of log P(n-gram | c) + const;
    n-grams that training never saw, or not among its 200,000 most frequent,
    are left out. scikit-learn has it, and is
    no dependency: 30 MB for these lines.

    Args:
        texts: list of str.
        labels: list of str, one a text.
        orders: tuple of int. (1,) = bag of words, (1, 2) = and pairs.

    Example:
        P(good) = P(bad) = 1/2; "fine" was seen with good only:

        >>> model = NaiveBayes(["so fine", "so so"], ["good", "bad"])
        >>> model.predict(["fine", "so"])
        ['good', 'bad']

    Reference: Manning, Raghavan and Schütze 2008, Introduction to Information
    Retrieval, section 13.2.
    """

    def __init__(self, texts, labels, *, orders=(1, 2)):
        self.orders = orders
        self.labels = sorted(set(labels))
        numbers = {label: number for number, label in enumerate(self.labels)}
        grams = [self._grams(text) for text in texts]
        frequency = collections.Counter()
        for row in grams:
            frequency.update(row)
        self.columns = {
            gram: column
            for column, (gram, _) in enumerate(
                frequency.most_common(MOST_GRAMS)
            )
        }
        counts = np.ones((len(self.labels), len(self.columns)))
        for row, label in zip(grams, labels, strict=True):
            for gram, count in row.items():
                if gram in self.columns:
                    counts[numbers[label], self.columns[gram]] += count
        self.log_likelihood = np.log(counts / counts.sum(1, keepdims=True))
        found = collections.Counter(labels)
        self.log_prior = np.log(
            [found[label] / len(labels) for label in self.labels]
        )

    def predict(self, texts):
        """Returns the likeliest label of each text."""
        chosen = []
        for text in texts:
            scores = self.log_prior.copy()
            for gram, count in self._grams(text).items():
                if gram in self.columns:
                    scores += count * self.log_likelihood[:, self.columns[gram]]
            chosen.append(self.labels[int(np.argmax(scores))])
        return chosen

    def _grams(self, text):
        found = words(text)
        return collections.Counter(
            gram for order in self.orders for gram in ngrams(found, order)
        )


class NearestAnswers:
    """Answers as the training prompt did that shares most words and pairs.

    Shared n-grams are weighed by how rare they are (TF-IDF, cosine).

    Args:
        prompts, answers: lists of str, one answer a prompt.

    Example:
        >>> nearest = NearestAnswers(["red hat", "blue pan"], ["hat", "pan"])
        >>> nearest.predict(["the blue pan"])
        ['pan']
    """

    def __init__(self, prompts, answers):
        self.answers = list(answers)
        rows = [self._grams(prompt) for prompt in prompts]
        frequency = collections.Counter(gram for row in rows for gram in row)
        self.weights = {
            gram: np.log((1 + len(rows)) / (1 + count)) + 1
            for gram, count in frequency.items()
        }
        # Gram -> the rows that hold it, and what it adds to their cosine.
        self.places = collections.defaultdict(list)
        for number, row in enumerate(rows):
            weighed = self._weigh(row)
            for gram, weight in weighed.items():
                self.places[gram].append((number, weight))

    def predict(self, prompts):
        """Returns the answer of the nearest training prompt, of each."""
        chosen = []
        for prompt in prompts:
            scores = np.zeros(len(self.answers))
            for gram, weight in self._weigh(self._grams(prompt)).items():
                for number, other in self.places.get(gram, ()):
                    scores[number] += weight * other
            chosen.append(self.answers[int(np.argmax(scores))])
        return chosen

    def _weigh(self, row):
        weighed = {
            gram: count * self.weights[gram]
            for gram, count in row.items()
            if gram in self.weights
        }
        length = np.sqrt(sum(weight**2 for weight in weighed.values())) or 1.0
        return {gram: weight / length for gram, weight in weighed.items()}

    def _grams(self, prompt):
        found = words(prompt)
        return collections.Counter([*ngrams(found, 1), *ngrams(found, 2)])
