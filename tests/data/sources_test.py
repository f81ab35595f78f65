import gzip
import json
import pathlib

import pytest

from kerasgpt.config import InputError
from kerasgpt.data.rows import DOCUMENT_CHARACTERS
from kerasgpt.data.sources import (
    Document,
    Skipped,
    SourceConfig,
    check_skipped,
    find_inputs,
    list_files,
    read_chats,
    read_documents,
    read_text,
    stream_documents,
    stream_input,
)

DEMO = pathlib.Path(__file__).parents[3] / "shared" / "data" / "demo"
needs_demo = pytest.mark.skipif(
    not DEMO.is_dir(), reason="the demo files are not beside this checkout"
)


def chat(question="Hi", answer="Hello."):
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]


def row(question="Hi", answer="Hello."):
    return json.dumps({"messages": chat(question, answer)}, ensure_ascii=False)


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            content = content.encode()
        path.write_bytes(content)
        return str(path)

    return write


def refusal(function, *arguments, **options):
    """Returns the one line with which an input is refused."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Chats.


def test_lines_of_a_jsonl_file_are_conversations(write):
    path = write("chats.jsonl", f"{row()}\n\n{row('你好', '您好。')}\n")
    assert read_chats(path) == ([chat(), chat("你好", "您好。")], [])


def test_items_of_a_json_list_are_conversations(write):
    path = write("chats.json", f"\n [{row()},\n {row('a', 'b')}]\n")
    assert read_chats(path) == ([chat(), chat("a", "b")], [])


def test_formats_may_be_mixed_in_a_file(write):
    alpaca = '{"instruction": "a", "output": "b"}'
    sharegpt = json.dumps(
        {
            "conversations": [
                {"from": "human", "value": "c"},
                {"from": "gpt", "value": "d"},
            ]
        }
    )
    path = write("chats.jsonl", "\n".join([row(), alpaca, sharegpt]))
    chats, _ = read_chats(path)
    assert chats == [chat(), chat("a", "b"), chat("c", "d")]


def test_windows_line_ends_and_a_byte_order_mark_are_no_content(write):
    content = "\ufeff" + row() + "\r\n" + row("a", "b\r\nc") + "\r\n"
    path = write("chats.jsonl", content)
    assert read_chats(path) == ([chat(), chat("a", "b\r\nc")], [])


def test_all_files_of_a_folder_are_read_in_the_order_of_their_names(write):
    write("in/b.jsonl", row("b"))
    write("in/deep/c.json", f"[{row('c')}]")
    write("in/a.jsonl", row("a"))
    folder = pathlib.Path(write("in/notes.txt", "left out")).parent
    chats, _ = read_chats(str(folder))
    assert [one[0]["content"] for one in chats] == ["a", "b", "c"]


def test_the_files_of_a_path_are_the_known_ones_of_a_folder(write):
    names = ("in/b.txt", "in/a.jsonl", "in/deep/c.json", "in/d.md")
    paths = [pathlib.Path(write(name, "x")) for name in names]
    write("in/picture.png", "x")
    write("in/.hidden.txt", "x")
    folder = paths[0].parent
    (folder / "folder.txt").mkdir()
    assert list_files(str(folder)) == sorted(paths)
    assert list_files(str(paths[0])) == [paths[0]]


def test_hidden_files_of_a_folder_are_not_read(write):
    write("in/.a.jsonl", "not even JSON")
    folder = pathlib.Path(write("in/b.jsonl", row())).parent
    assert read_chats(str(folder)) == ([chat()], [])


def test_a_line_separator_inside_a_text_does_not_end_the_row(write):
    path = write("chats.jsonl", row("a\u2028b\x85c"))
    assert read_chats(path)[0] == [chat("a\u2028b\x85c")]


def test_unusable_rows_are_skipped_and_told_with_file_and_line(write):
    rows = [row()] * 40
    rows[4] = '{"messages": [{"role": "narrator", "content": "x"}]}'
    rows[9] = '{"messages": [{"role": "user", "content": "\\ud800"}]}'
    path = write("chats.jsonl", "\n".join(rows))
    chats, skipped = read_chats(path)
    assert len(chats) == 38
    assert skipped == [
        Skipped(f"{path}, line 5", "unknown role 'narrator'"),
        Skipped(
            f"{path}, line 10", "the content of a user turn is no valid Unicode"
        ),
    ]


def test_unusable_items_of_a_list_are_told_by_their_number(write):
    items = ",".join([row()] * 30 + ['{"text": "a document"}'])
    path = write("chats.json", f"[{items}]")
    _, skipped = read_chats(path)
    assert [one.location for one in skipped] == [f"{path}, item 31"]


def test_more_than_five_percent_skipped_is_an_error(write):
    path = write("chats.jsonl", "\n".join([row()] * 18 + ['{"a": 1}'] * 2))
    line = refusal(read_chats, path)
    assert "2 of 20 rows cannot be used" in line
    assert "data.max_skipped_fraction=0.05" in line
    assert f"{path}, line 19" in line
    chats, skipped = read_chats(path, max_skipped_fraction=0.1)
    assert (len(chats), len(skipped)) == (18, 2)


def test_exactly_the_allowed_share_may_be_skipped():
    skipped = [Skipped("a, line 1", "no")]
    check_skipped("a", skipped, 20, 0.05)
    with pytest.raises(InputError, match="1 of 19"):
        check_skipped("a", skipped, 19, 0.05)


def test_a_file_of_nothing_but_unusable_rows_is_an_error(write):
    path = write("chats.jsonl", '{"a": 1}')
    line = refusal(read_chats, path, max_skipped_fraction=1.0)
    assert "holds no conversation" in line


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"messages": [', "malformed JSON at column"),
        ("{'messages': []}", "malformed JSON at column 2"),
        ("hello", "malformed JSON at column 1"),
        ('{"a": 1} {"a": 2}', "Extra data"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_malformed_json_names_the_line(write, line, reason):
    path = write("chats.jsonl", f"{row()}\n{row()}\n\n{line}\n{row()}")
    told = refusal(read_chats, path)
    assert f"{path}, line 4: " in told
    assert reason in told


def test_malformed_json_in_a_list_names_the_line(write):
    path = write("chats.json", f"[{row()},\n{row()}\n{row()}]")
    assert f"{path}, line 3: malformed JSON" in refusal(read_chats, path)


def test_a_list_that_never_ends_is_malformed(write):
    path = write("chats.json", "[" * 100_000)
    assert "nested too deeply" in refusal(read_chats, path)


@pytest.mark.parametrize("read", [read_chats, read_documents])
class TestUnreadable:
    def test_missing(self, read, tmp_path):
        path = tmp_path / "none.jsonl"
        assert refusal(read, str(path)) == f"{path}: no such file."

    def test_below_a_regular_file(self, read, write):
        path = write("file.jsonl", row()) + "/below.jsonl"
        assert path in refusal(read, path)

    @pytest.mark.parametrize("content", [b"", b" \r\n\t\n"])
    def test_empty(self, read, write, content):
        assert "is empty" in refusal(read, write("a.jsonl", content))

    def test_binary(self, read, write):
        path = write("a.jsonl", b"PK\x03\x04\x00\x00abc")
        assert "is a binary file" in refusal(read, path)

    def test_invalid_utf8_names_the_line(self, read, write):
        start = f"{row()}\n{row()}\n".encode()
        path = write("a.jsonl", start + b'{"text": "caf\xe9"}\n')
        told = refusal(read, path)
        assert f"{path}, line 3: invalid UTF-8 at byte {len(start) + 13}" in (
            told
        )

    def test_unknown_suffix(self, read, write):
        told = refusal(read, write("a.docx", "some text"))
        assert "unknown kind of file" in told
        assert ".jsonl" in told

    def test_folder_without_a_file_of_the_kind(self, read, write):
        folder = pathlib.Path(write("in/a.docx", "x")).parent
        assert "has no file that ends in" in refusal(read, str(folder))

    def test_unknown_tfds_name(self, read):
        told = refusal(read, "tfds:no_such_dataset_here")
        assert told.startswith("tfds:no_such_dataset_here: ")


def test_a_text_file_given_as_chats_says_where_it_belongs(write):
    told = refusal(read_chats, write("story.txt", "Once upon a time."))
    assert "run_pretrain.py data.documents_path=" in told


# Documents.


def test_a_text_file_is_one_document_if_it_is_short(write):
    text = "\ufeffOnce\r\nupon\r\n\r\na time\n"
    path = write("story.txt", text)
    assert read_documents(path) == ([text[1:]], [])


@pytest.mark.parametrize(
    "text",
    [
        "0123456789 line\n" * 3000,
        "x" * (3 * DOCUMENT_CHARACTERS + 7),
        "短句。\u2028长句\r\n" * 4000,
    ],
)
def test_a_long_text_is_cut_into_documents_and_loses_nothing(write, text):
    documents, _ = read_documents(write("story.md", text))
    assert "".join(documents) == text
    assert len(documents) > 1
    assert max(map(len, documents)) <= DOCUMENT_CHARACTERS


def test_rows_with_text_are_documents_and_conversations_give_contents(write):
    path = write("rows.jsonl", '{"text": "a\\nb"}\n' + row("c", "d"))
    assert read_documents(path) == (["a\nb", "c\nd"], [])


@pytest.mark.parametrize("text", [3, None, ["a"], "\ud800"])
def test_a_text_that_is_none_is_skipped(write, text):
    rows = ['{"text": "a"}'] * 30 + [json.dumps({"text": text})]
    path = write("rows.jsonl", "\n".join(rows))
    documents, skipped = read_documents(path)
    assert documents == ["a"] * 30
    assert skipped == [
        Skipped(f"{path}, line 31", "text is no valid Unicode text")
    ]


def test_blank_texts_are_no_documents(write):
    path = write("rows.jsonl", '{"text": " \\n"}')
    assert "holds no text" in refusal(read_documents, path)


def test_a_folder_may_mix_texts_and_rows(write):
    write("in/a.txt", "one")
    folder = pathlib.Path(write("in/b.jsonl", '{"text": "two"}')).parent
    assert read_documents(str(folder))[0] == ["one", "two"]


def test_one_bad_file_of_a_folder_is_named(write):
    write("in/a.txt", "one")
    path = write("in/b.txt", b"\xff\xfe")
    told = refusal(read_documents, str(pathlib.Path(path).parent))
    assert f"{path}, line 1: invalid UTF-8" in told


def test_a_text_is_read_as_it_is(write):
    assert read_text(write("a", "ROMEO:\r\n 你好")) == "ROMEO:\r\n 你好"


# TensorFlow Datasets, with random examples instead of a download.


def test_texts_come_from_tensorflow_datasets():
    import tensorflow_datasets

    with tensorflow_datasets.testing.mock_data(num_examples=3):
        documents, skipped = read_documents("tfds:tiny_shakespeare")
    assert len(documents) == 3
    assert all(isinstance(text, str) and text for text in documents)
    assert skipped == []


# Streams, for inputs that may be damaged.


def stream(*paths, **options):
    """Returns (documents, skipped) of a stream."""
    items = list(stream_documents(paths, SourceConfig(**options)))
    return (
        [item for item in items if isinstance(item, Document)],
        [item for item in items if isinstance(item, Skipped)],
    )


def test_documents_say_where_they_come_from(write):
    first = write("in/a.txt", "one\n")
    second = write("in/b.jsonl", '{"text": "two"}\n' + row("c", "d"))
    third = write("c.csv", "id,正文\n1,三\n")
    folder = str(pathlib.Path(first).parent)
    documents, skipped = stream(folder, third)
    assert skipped == []
    assert documents == [
        Document("one\n", folder, f"{first}, line 1"),
        Document("two", folder, f"{second}, line 1"),
        Document("c\nd", folder, f"{second}, line 2", chat("c", "d")),
        Document("三", third, f"{third}, row 1"),
    ]


def test_damage_is_skipped_and_the_rest_is_read(write):
    good = write("in/a.jsonl", '{"text": "a"}\n{"text"\n{"id": 1}')
    empty = write("in/b.txt", "")
    other = write("in/c.csv", "x,y\n1,2\n3,4\n")
    write("in/d.txt", "d")
    documents, skipped = stream(str(pathlib.Path(good).parent))
    assert [document.text for document in documents] == ["a", "d"]
    assert [one.location for one in skipped] == [
        f"{good}, line 2",
        f"{good}, line 3",
        empty,
        other,
    ]
    assert "keys: x, y" in skipped[-1].reason


def test_a_named_column_is_read_and_missed_by_name(write):
    first = write("a.jsonl", '{"abstract": "a", "text": "no"}')
    second = write("b.csv", "text\nno\n")
    documents, skipped = stream(first, second, text_column="abstract")
    assert [document.text for document in documents] == ["a"]
    assert skipped == [Skipped(second, "no column 'abstract' (columns: text)")]


def test_a_glob_stands_for_its_files_in_order(write, tmp_path):
    for name in ("b.txt", "a.txt", "x/c.txt"):
        write(name, name)
    pattern = str(tmp_path / "**" / "*.txt")
    documents, _ = stream(pattern)
    assert [one.text for one in documents] == ["a.txt", "b.txt", "x/c.txt"]
    assert {one.source for one in documents} == {pattern}


def test_no_file_is_read_twice(write, tmp_path):
    path = write("in/a.txt", "a")
    folder = pathlib.Path(path).parent
    (folder / "0.txt").symlink_to("a.txt")
    (folder / "deep").mkdir()
    documents, _ = stream(str(folder), path, str(tmp_path / "in" / "*.txt"))
    assert [one.location for one in documents] == [f"{path}, line 1"]


def test_links_end_wherever_they_lead(write, tmp_path):
    folder = pathlib.Path(write("in/deep/a.txt", "a")).parent.parent
    write("elsewhere/b.txt", "b")
    (folder / "up").symlink_to(".")
    (folder / "deep" / "top").symlink_to("../..")
    (folder / "self.txt").symlink_to("self.txt")
    (folder / "gone.txt").symlink_to("nowhere.txt")
    (folder / "there").symlink_to("../elsewhere")
    documents, skipped = stream(str(folder))
    assert sorted(one.text for one in documents) == ["a", "b"]
    nowhere = "a link that leads nowhere"
    back = "a link to a folder that is read already"
    told = {
        str(pathlib.Path(one.location).relative_to(folder)): one.reason
        for one in skipped
    }
    assert told["self.txt"] == told["gone.txt"] == nowhere
    assert told["up"] == back


def test_a_folder_that_may_not_be_read_is_told(write, monkeypatch):
    folder = pathlib.Path(write("in/closed/a.txt", "a")).parent.parent
    write("in/b.txt", "b")
    listed = pathlib.Path.iterdir

    def refuse(path):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(pathlib.Path, "iterdir", refuse)
    documents, skipped = stream(str(folder))
    assert [one.text for one in documents] == ["b"]
    assert skipped == [
        Skipped(str(folder / "closed"), "cannot be read: Permission denied")
    ]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("none.txt", "none.txt: no such file."),
        ("*.txt", "*.txt: matches no file."),
        ("a.docx", "a.docx: unknown kind of file; use .txt, .md,"),
        ("empty", "empty: has no file that ends in .txt, .md,"),
    ],
)
def test_inputs_that_stand_for_nothing_are_refused(write, tmp_path, name, told):
    write("a.docx", "a")
    write("empty/.hidden.txt", "a")
    write("empty/.git/b.txt", "a")
    assert told in refusal(stream, str(tmp_path / name))


def test_inputs_can_be_read_one_by_one(write, tmp_path):
    write("in/a.txt", "a")
    write("in/b.txt", "b")
    inputs, _ = find_inputs([tmp_path / "in"])
    one_by_one = [item for one in inputs for item in stream_input(one)]
    assert one_by_one == stream(str(tmp_path / "in"))[0]


def test_training_reads_tables_and_compressed_files_too(write):
    content = gzip.compress(f"{row()}\n{row('a', 'b')}".encode())
    assert read_chats(write("a.jsonl.gz", content))[0] == [
        chat(),
        chat("a", "b"),
    ]
    table = write("b.csv", "question,answer\nHi,Hello.\n")
    assert read_chats(table)[0] == [chat()]


def test_training_refuses_what_is_damaged(write):
    path = write("a.csv", "text\na\nb,c\n")
    assert refusal(read_documents, path) == (
        f"{path}, line 3: expected 1 fields, saw 2."
    )


# The demo files of LLaMA-Factory, as they are.


@needs_demo
@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("alpaca_en_demo.json", {"user", "assistant"}),
        ("alpaca_zh_demo.json", {"user", "assistant"}),
        (
            "glaive_toolcall_en_demo.json",
            {"system", "user", "assistant", "tool"},
        ),
        ("dpo_en_demo.json", {"user", "assistant"}),
        ("dpo_zh_demo.json", {"user", "assistant"}),
    ],
)
def test_demo_chats_work_as_they_are(name, roles):
    rows = json.loads((DEMO / name).read_text())
    chats, skipped = read_chats(str(DEMO / name))
    assert len(chats) + len(skipped) == len(rows)
    assert len(skipped) <= 0.05 * len(rows)
    found = {message["role"] for chat in chats for message in chat}
    assert roles <= found
    for chat in chats:
        assert any(m["role"] == "assistant" and m["content"] for m in chat)


@needs_demo
@pytest.mark.parametrize("name", ["c4_demo.jsonl", "wiki_demo.txt"])
def test_demo_documents_work_as_they_are(name):
    documents, skipped = read_documents(str(DEMO / name))
    assert skipped == []
    assert len(documents) >= 50
    assert all(text.strip() for text in documents)
