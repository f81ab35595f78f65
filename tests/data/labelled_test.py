import dataclasses
import json

import numpy as np
import pytest

from kerasgpt.config import InputError
from kerasgpt.data.labelled import (
    LabelledConfig,
    LabelledText,
    load_labelled,
    pack_labelled,
    read_labelled,
    text_rows,
)
from kerasgpt.tokenizers import ByteTokenizer


def write(path, rows, header="text,label"):
    lines = [header, *(f'"{text}",{label}' for text, label in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def some(count):
    return [(f"text {i}", ("好", "bad")[i % 2]) for i in range(count)]


def test_a_table_is_split_in_three_parts_without_overlap(tmp_path):
    rows = some(300)
    corpus = load_labelled(LabelledConfig(path=write(tmp_path / "a.csv", rows)))
    parts = [
        {(row.text, row.label) for row in part}
        for part in (corpus.train, corpus.validation, corpus.test)
    ]
    assert set.union(*parts) == set(rows)
    assert sum(map(len, parts)) == 300
    assert 40 <= len(parts[2]) <= 80 and 12 <= len(parts[1]) <= 40
    assert set(corpus.labels) == {"好", "bad"}


def test_equal_texts_are_on_one_side(tmp_path):
    rows = [(f"text {i % 20}", "ab"[i % 2]) for i in range(400)]
    corpus = load_labelled(LabelledConfig(path=write(tmp_path / "a.csv", rows)))
    texts = [
        {row.text for row in part}
        for part in (corpus.train, corpus.validation, corpus.test)
    ]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 20


def test_a_test_file_of_its_own_is_not_learned_from(tmp_path):
    config = LabelledConfig(
        path=write(tmp_path / "a.csv", some(60)),
        test_path=write(tmp_path / "b.csv", some(10)),
    )
    corpus = load_labelled(config)
    assert [row.text for row in corpus.test] == [t for t, _ in some(10)]
    learned = {row.text for row in corpus.train + corpus.validation}
    assert learned == {text for text, _ in some(60)[10:]}
    with pytest.raises(InputError, match=r"all its texts are in .*b\.csv"):
        load_labelled(dataclasses.replace(config, path=config.test_path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "review,Stars,sentiment\nfine,5,positive\n"),
        ("a.tsv", "正文\t标签\nfine\tpositive\n"),
        ("a.jsonl", '{"sentence": "fine", "label": "positive"}\n'),
        ("a.json", '[{"text": "fine", "class": "positive"}]'),
    ],
)
def test_columns_are_recognised(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    rows, _ = read_labelled(str(path), LabelledConfig())
    assert rows == [LabelledText("fine", "positive")]


def test_columns_may_be_named(tmp_path):
    path = write(tmp_path / "a.csv", [("x", "y")], header="label,text")
    config = LabelledConfig(text_column="label", label_column="text")
    rows, _ = read_labelled(path, config)
    assert rows == [LabelledText("x", "y")]


def test_labels_may_be_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": True}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows, _ = read_labelled(str(path), LabelledConfig())
    assert [row.label for row in rows] == ["0", "True"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("title,label\na,b\n", "no column of texts recognised"),
        ("text,stars\na,b\n", "name it with data.label_column"),
        ("text,label\n,b\n", "the text is empty"),
        ("text,label\na,\n", "the label is empty"),
        ("text,label\n", "holds no labelled text"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path, content, told):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        read_labelled(str(path), LabelledConfig())
    assert str(path) in str(error.value) and told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_named_column_that_is_not_there_is_told(tmp_path):
    path = write(tmp_path / "a.csv", some(2))
    with pytest.raises(InputError, match="no column 'stars' "):
        read_labelled(path, LabelledConfig(label_column="stars"))


def test_one_class_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", [(f"t{i}", "same") for i in range(50)])
    with pytest.raises(InputError, match="1 classes among"):
        load_labelled(LabelledConfig(path=path))


def test_a_test_file_alone_is_refused():
    with pytest.raises(InputError, match=r"data\.test_path: needs data\.path"):
        load_labelled(LabelledConfig(test_path="b.csv"))


@pytest.mark.parametrize("task", ["sentiment", "category"])
def test_the_shop_has_labelled_texts_that_share_nothing(task):
    corpus = load_labelled(
        LabelledConfig(task=task, num_texts=300, num_test_texts=100)
    )
    assert len(corpus.train) + len(corpus.validation) == 300
    assert len(corpus.test) == 100
    texts = [row.text for row in corpus.train + corpus.validation + corpus.test]
    assert len(set(texts)) == 400
    assert {row.label for row in corpus.test} <= set(corpus.labels)


def test_a_long_text_loses_its_end_only():
    tokenizer = ByteTokenizer()
    rows, num_cut = text_rows(["abcdefgh", "ab"], tokenizer, 6)
    assert num_cut == 1
    assert tokenizer.decode(rows[0].tolist()) == "abcd"
    assert [len(row) for row in rows] == [6, 4]
    assert rows[0][0] == rows[1][0] and rows[0][-1] == rows[1][-1]


def test_each_text_trains_its_class_and_nothing_else():
    tokenizer, labels = ByteTokenizer(), ("good", "bad", "odd")
    texts = [
        LabelledText(text, label)
        for text, label in (("a", "odd"), ("bcd", "good"), ("efghijkl", "bad"))
    ]
    rows, num_cut = pack_labelled(texts, labels, tokenizer, 8)
    assert num_cut == 1
    token_ids, _, segment_ids, targets, weights = rows.assemble(
        np.arange(len(rows))
    )
    found = {}
    for row, column in zip(*np.nonzero(weights), strict=True):
        own = segment_ids[row] == segment_ids[row, column]
        # It is the last position of its text.
        assert column == np.nonzero(own)[0][-1]
        text = tokenizer.decode(token_ids[row][own].tolist())
        found[text] = labels[targets[row, column]]
    assert found == {"a": "odd", "bcd": "good", "efghij": "bad"}
    assert weights.sum() == 3
