"""Owns labelled texts: files or the shop -> three splits -> token rows.

Not: the model that learns them, or how good it is.
"""

import collections
import dataclasses
import pathlib

import numpy as np

from kerasgpt.config import Config, InputError, setting
from kerasgpt.data import shop
from kerasgpt.data.formats import TEXT_COLUMNS, is_unicode
from kerasgpt.data.packing import pack
from kerasgpt.data.prepare import held_out
from kerasgpt.data.rows import (
    ROW_SUFFIXES,
    TABLE_SUFFIXES,
    TFDS_PREFIX,
    Skipped,
    read_rows,
    tfds_rows,
)
from kerasgpt.data.sources import check_skipped, find_inputs
from kerasgpt.tokenizers.chat_template import ChatTemplate

MORE_TEXT_COLUMNS = ("review", "sentence", "comment", "评论", "句子")
LABEL_COLUMNS = (
    *("label", "labels", "class", "category", "sentiment", "intent", "topic"),
    *("标签", "类别", "分类", "情感"),
)
# More classes are no classes, but a column of numbers or of texts.
MOST_LABELS = 200


@dataclasses.dataclass(frozen=True)
class LabelledConfig(Config):
    """Texts and their classes: your file, or the embedded shop's."""

    path: str = setting(
        "",
        "texts with labels: .csv, .tsv, .jsonl, .json, .parquet, a folder, or "
        "tfds:NAME; empty = the embedded shop",
    )
    test_path: str = setting(
        "", "texts that only the report is about; empty = a share of path"
    )
    text_column: str = setting(
        "", "column or key of texts; empty = recognised: text, review, 正文, …"
    )
    label_column: str = setting(
        "", "column or key of labels; empty = recognised: label, class, 标签, …"
    )
    test_fraction: float = setting(
        0.2,
        "share of path held out for the report, chosen by a hash of the text",
        minimum=0.0,
        maximum=0.9,
    )
    validation_fraction: float = setting(
        0.1,
        "share of the rest by which the best step is chosen",
        minimum=0.0,
        maximum=0.9,
    )
    task: str = setting(
        "sentiment",
        "of the shop: reviews, or product pages",
        choices=tuple(shop.LABELLED_TASKS),
    )
    num_texts: int = setting(4000, "training texts of the shop", minimum=20)
    num_test_texts: int = setting(
        1000, "held-out texts of the shop", minimum=20
    )
    num_documents: int = setting(
        40_000, "documents of the shop, for pretraining", minimum=2
    )
    num_chats: int = setting(
        24_000,
        "chats of the shop, for the tokenizer of pretraining",
        minimum=2,
    )
    world_seed: int = setting(0, "which shop; another seed, another world")
    num_products: int = setting(
        100, "products of the shop", minimum=20, maximum=2000
    )
    max_skipped_fraction: float = setting(
        0.05,
        "largest share of unusable rows that is only reported",
        minimum=0.0,
        maximum=1.0,
    )


@dataclasses.dataclass(frozen=True)
class LabelledText:
    """A text and its class.

    Attributes:
        text: str.
        label: str.
        language: str, for the report: "en", "zh" or "any".
    """

    text: str
    label: str
    language: str = "any"


@dataclasses.dataclass(frozen=True)
class LabelledCorpus:
    """Labelled texts of a run; no text is in two splits.

    Attributes:
        train, validation, test: lists of LabelledText.
        labels: tuple of str, the classes, most frequent in training first.
        skipped: list of Skipped.
    """

    train: list
    validation: list
    test: list
    labels: tuple
    skipped: list


def load_labelled(config):
    """Returns the LabelledCorpus that a LabelledConfig names.

    Raises:
        InputError: for files that cannot be used, or fewer than two classes.
    """
    skipped = []
    if not config.path:
        if config.test_path:
            raise InputError(
                "data.test_path: needs data.path, texts to learn from."
            )
        world = shop.build_world(config.world_seed, config.num_products)
        trained, test = (
            [
                LabelledText(*row)
                for row in shop.generate_labelled_texts(
                    world, task=config.task, count=count, held_out=is_test
                )
            ]
            for count, is_test in (
                (config.num_texts, False),
                (config.num_test_texts, True),
            )
        )
    else:
        trained, more = read_labelled(config.path, config)
        skipped += more
        if config.test_path:
            test, more = read_labelled(config.test_path, config)
            skipped += more
            tested = {row.text for row in test}
            trained = [row for row in trained if row.text not in tested]
            if not trained:
                raise InputError(
                    f"{config.path}: all its texts are in {config.test_path}, "
                    f"too; none is left to learn from."
                )
        else:
            trained, test = _split(trained, "test", config.test_fraction)
    train, validation = _split(
        trained, "validation", config.validation_fraction
    )
    counts = collections.Counter(row.label for row in train)
    if not 2 <= len(counts) <= MOST_LABELS:
        found = ", ".join(list(counts)[:3])
        raise InputError(
            f"{config.path}: {len(counts)} classes among {len(train)} training "
            f"texts ({found}, …); 2 to {MOST_LABELS} are needed; is "
            f"data.label_column the right one?"
        )
    labels = tuple(label for label, _ in counts.most_common())
    # What is never trained cannot tell which step is best.
    validation = [row for row in validation if row.label in counts]
    return LabelledCorpus(train, validation, test, labels, skipped)


def read_labelled(path, config):
    """Returns (list of LabelledText, list of Skipped) of a labelled file.

    Args:
        path: str. A table, JSON lines, a folder of such, or "tfds:NAME".
        config: LabelledConfig, of which the columns are used.

    Raises:
        InputError: for a file that is missing, damaged or of another kind,
            without these columns, or with too many unusable rows.
    """
    rows, skipped = [], []
    inputs, links = find_inputs([path], suffixes=ROW_SUFFIXES + TABLE_SUFFIXES)
    skipped.extend(links)
    for one in inputs:
        found = (
            tfds_rows(one.path.removeprefix(TFDS_PREFIX))
            if one.path.startswith(TFDS_PREFIX)
            else read_rows(
                pathlib.Path(one.path),
                lambda columns: _columns(columns, config),
            )
        )
        for item in found:
            if isinstance(item, Skipped):
                raise InputError(f"{item.location}: {item.reason}.")
            location, row = item
            try:
                rows.append(_understand(row, config))
            except ValueError as error:
                skipped.append(Skipped(location, str(error)))
    check_skipped(
        path, skipped, len(rows) + len(skipped), config.max_skipped_fraction
    )
    if not rows:
        raise InputError(f"{path}: holds no labelled text.")
    return rows, skipped


def text_rows(texts, tokenizer, context_length):
    """Returns the ids of texts as a classifier reads them.

    A text is a document, begun and ended as in pretraining; one that is longer
    than the context loses its end.

    Args:
        texts: list of str.
        tokenizer: Tokenizer.
        context_length: int, tokens.

    Returns:
        list of int32 arrays, and int: how many texts were cut.

    Example:
        >>> from kerasgpt.tokenizers import ByteTokenizer
        >>> rows, num_cut = text_rows(["ab", "abcd"], ByteTokenizer(), 5)
        >>> [len(row) for row in rows], num_cut
        ([4, 5], 1)
    """
    template = ChatTemplate(tokenizer)
    start, end = [template.document_id], [template.document_end_id]
    encoded = tokenizer.encode_batch(list(texts))
    room = context_length - 2
    rows = [
        np.concatenate([start, ids[:room], end]).astype(np.int32)
        for ids in encoded
    ]
    return rows, sum(len(ids) > room for ids in encoded)


def pack_labelled(texts, labels, tokenizer, context_length):
    """Returns the PackedRows that train a classifier, and how many were cut.

    A label is the number of its class, in the place of the token after the
    text: it is predicted, with weight 1, at the text's last token only.

    Args:
        texts: list of LabelledText, each of one of the labels.
        labels: tuple of str.
        tokenizer: Tokenizer.
        context_length: int, tokens.

    Example:
        >>> from kerasgpt.tokenizers import ByteTokenizer
        >>> rows, _ = pack_labelled([LabelledText("a", "bad")],
        ...     ("good", "bad"), ByteTokenizer(), 4)
        >>> *_, targets, sample_weight = rows.assemble([0])
        >>> int(targets[0, 2]), sample_weight[0]
        (1, array([0., 0., 1., 0.], dtype=float32))
    """
    numbers = {label: number for number, label in enumerate(labels)}
    rows, num_cut = text_rows(
        [row.text for row in texts], tokenizer, context_length
    )
    runs = [
        np.append(ids, numbers[row.label]).astype(np.int32)
        for ids, row in zip(rows, texts, strict=True)
    ]
    ends = np.cumsum([0, *map(len, runs)])
    loss_mask = np.zeros(ends[-1], np.uint8)
    loss_mask[ends[1:] - 1] = 1
    token_ids = np.concatenate(runs) if runs else np.zeros(0, np.int32)
    return pack(token_ids, loss_mask, ends, row_length=context_length), num_cut


def _split(rows, name, fraction):
    """Returns (rows kept, rows held out), by a hash of the texts."""
    sides = held_out([f"{name}\x1f{row.text}" for row in rows], fraction)
    pairs = list(zip(rows, sides, strict=True))
    return (
        [row for row, is_out in pairs if not is_out],
        [row for row, is_out in pairs if is_out],
    )


def _columns(columns, config):
    """Returns the columns of text and label.

    Raises:
        ValueError: naming what is missing.
    """
    chosen = []
    for name, given, known in (
        ("text", config.text_column, (*TEXT_COLUMNS, *MORE_TEXT_COLUMNS)),
        ("label", config.label_column, LABEL_COLUMNS),
    ):
        wanted = (given,) if given else known
        column = next((one for one in wanted if one in columns), None)
        if column is None:
            shown = ", ".join(map(str, columns))
            raise ValueError(
                f"no column {given!r} (columns: {shown})"
                if given
                else f"no column of {name}s recognised (columns: {shown}); "
                f"name it with data.{name}_column"
            )
        chosen.append(column)
    return chosen


def _understand(row, config):
    if not isinstance(row, dict):
        raise ValueError("no object")
    text_column, label_column = _columns(row, config)
    text, label = row[text_column], row[label_column]
    if not isinstance(text, str) or not is_unicode(text) or not text.strip():
        raise ValueError("the text is empty or no valid Unicode text")
    if isinstance(label, (bool, int)):
        label = str(label)
    if not isinstance(label, str) or not is_unicode(label):
        raise ValueError("the label is no text and no whole number")
    if not label.strip():
        raise ValueError("the label is empty")
    return LabelledText(text, label.strip())
