"""Owns which documents repeat what a model will be asked. Not: dropping them.

An item of an evaluation file and a document overlap if they share a run of
words, or of Chinese characters.
"""

import dataclasses

import numpy as np

from kerasgpt.config import Config, InputError, setting
from kerasgpt.data.shingles import hash_shingles, read_units
from kerasgpt.data.sources import Document, stream_documents

# Documents named in the report for each item.
MAX_NAMED = 5


@dataclasses.dataclass(frozen=True)
class ContaminationConfig(Config):
    """What evaluation is kept out of the training data."""

    paths: str = setting(
        "",
        "evaluation files or folders, commas between; documents that share a "
        "run of words with an item are dropped; empty = none",
    )
    word_run_length: int = setting(
        13, "of text with spaces (GPT-3: 13)", unit="words", minimum=2
    )
    character_run_length: int = setting(
        20, "of Chinese and the like", unit="characters", minimum=2
    )
    is_dropped: bool = setting(
        True, "drop what overlaps; false = report it only"
    )


class Evaluation:
    """The items of evaluation files, and what overlaps with them.

    An item that is shorter than a run is found where it is a whole document,
    for yes and no stand everywhere.

    Args:
        config: ContaminationConfig.

    Attributes:
        items: list of (location, text).
        found: dict of item number to [share of its runs that were found in
            documents, number of documents, locations of some].

    Raises:
        InputError: for a file that is missing or holds no item.

    Reference: Brown et al. 2020, "Language models are few-shot learners",
    appendix C (13-grams).
    """

    def __init__(self, config):
        self.config = config
        paths = [p.strip() for p in config.paths.split(",") if p.strip()]
        read = stream_documents(paths) if paths else ()
        self.items = [
            (item.location, item.text)
            for item in read
            if isinstance(item, Document) and item.text.strip()
        ]
        if paths and not self.items:
            raise InputError(
                f"contamination.paths={config.paths}: holds no item."
            )
        rows, hashes = self._runs([text for _, text in self.items])
        # Pairs of (run, item), sorted by run.
        order = np.lexsort((rows, hashes))
        self._hashes, self._rows = hashes[order], rows[order]
        self._num_runs = np.bincount(rows, minlength=len(self.items))
        self._is_found = np.zeros(len(hashes), bool)
        self.found = {}

    def check(self, texts, locations):
        """Returns which documents overlap with an item, bool (num_texts,).

        Args:
            texts: list of str.
            locations: list of str, for the report.
        """
        overlaps = np.zeros(len(texts), bool)
        if not len(self._hashes):
            return overlaps
        rows, hashes = self._runs(texts)
        first = np.searchsorted(self._hashes, hashes, "left")
        last = np.searchsorted(self._hashes, hashes, "right")
        is_hit = first < last
        overlaps[rows[is_hit]] = True
        seen = set()
        for row, start, end in zip(
            rows[is_hit].tolist(),
            first[is_hit].tolist(),
            last[is_hit].tolist(),
            strict=True,
        ):
            self._is_found[start:end] = True
            for item in self._rows[start:end].tolist():
                if (row, item) not in seen:
                    seen.add((row, item))
                    documents = self.found.setdefault(item, [0, []])
                    documents[0] += 1
                    if len(documents[1]) < MAX_NAMED:
                        documents[1].append(locations[row])
        return overlaps

    def report(self):
        """Returns a dict for each item with overlap, the largest share first.

        Keys are item, text, share (of its runs), num_documents, documents.
        """
        counts = np.bincount(
            self._rows[self._is_found], minlength=len(self.items)
        )
        rows = [
            {
                "item": self.items[number][0],
                "text": self.items[number][1][:200],
                "share": float(counts[number] / self._num_runs[number]),
                "num_documents": num_documents,
                "documents": locations,
            }
            for number, (num_documents, locations) in self.found.items()
        ]
        return sorted(rows, key=lambda row: (-row["share"], row["item"]))

    def _runs(self, texts):
        """Returns (rows, hashes) of all runs, each once a text."""
        all_rows, all_hashes = [np.zeros(0, np.int64)], [np.zeros(0, "uint64")]
        for numbers, units in read_units(texts):
            rows, hashes = hash_shingles(
                units,
                word_length=self.config.word_run_length,
                character_length=self.config.character_run_length,
            )
            all_rows.append(numbers[rows])
            all_hashes.append(hashes)
        rows, hashes = np.concatenate(all_rows), np.concatenate(all_hashes)
        order = np.lexsort((hashes, rows))
        rows, hashes = rows[order], hashes[order]
        is_new = np.ones(len(rows), bool)
        is_new[1:] = (rows[1:] != rows[:-1]) | (hashes[1:] != hashes[:-1])
        return rows[is_new], hashes[is_new]
