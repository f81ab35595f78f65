import hashlib
import json
import threading

import pytest

from kerasgpt.config import InputError
from kerasgpt.files import (
    BackgroundWriter,
    atomic_folder,
    check_writable,
    clear_leftovers,
    file_hash,
    read_json,
    read_manifest,
    write_json,
    write_manifest,
    write_text,
)


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_when_the_block_has_succeeded(tmp_path):
    target = tmp_path / "deep" / "run"
    with atomic_folder(target) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a.txt").write_text("a")
        assert not target.exists()
    assert (target / "inner" / "a.txt").read_text() == "a"
    assert _names(tmp_path / "deep") == ["run"]


def test_a_failure_leaves_nothing(tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        atomic_folder(tmp_path / "run") as temporary,
    ):
        (temporary / "a.txt").write_text("a")
        raise ZeroDivisionError
    assert _names(tmp_path) == []


def test_an_existing_folder_is_kept(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old.txt").write_text("old")
    with (
        pytest.raises(InputError, match="exists already"),
        atomic_folder(tmp_path / "run"),
    ):
        pass
    assert _names(tmp_path / "run") == ["old.txt"]


def test_overwriting_keeps_the_old_folder_until_success(tmp_path):
    target = tmp_path / "run"
    with atomic_folder(target) as temporary:
        (temporary / "old.txt").write_text("old")
    with (
        pytest.raises(ZeroDivisionError),
        atomic_folder(target, overwrite=True) as temporary,
    ):
        (temporary / "new.txt").write_text("new")
        assert _names(target) == ["old.txt"]
        raise ZeroDivisionError
    assert _names(target) == ["old.txt"]

    with atomic_folder(target, overwrite=True) as temporary:
        (temporary / "new.txt").write_text("new")
    assert _names(target) == ["new.txt"]
    assert _names(tmp_path) == ["run"]


def test_a_place_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="cannot be written"),
        atomic_folder(tmp_path / "file" / "run"),
    ):
        pass
    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "a")


def test_whether_a_folder_can_be_written_is_tried(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    check_writable(str(tmp_path / "new" / "folder"))
    assert _names(tmp_path / "new" / "folder") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        check_writable(tmp_path / "file" / "folder")


def test_text_and_json_come_back(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "你好\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "你好\n".encode()
    value = {"b": [1, 2.5, None, True], "a": "你好"}
    write_json(tmp_path / "v.json", value)
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == value
    assert list(read_json(tmp_path / "v.json")) == ["b", "a"]
    assert _names(tmp_path) == ["new", "v.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", None])
def test_unreadable_json_is_an_input_error(tmp_path, content):
    path = tmp_path / "v.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"v\.json"):
        read_json(path)


def test_the_hash_is_sha_256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    expected = hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert file_hash(tmp_path / "a") == expected


def _folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.bin").write_bytes(bytes(range(256)))
    (tmp_path / "inner" / "b.txt").write_text("b")
    write_manifest(tmp_path, kind="example", rows=3)
    return tmp_path


def test_a_manifest_lists_every_file_and_the_given_values(tmp_path):
    manifest = read_manifest(_folder(tmp_path))
    assert manifest["kind"] == "example"
    assert manifest["rows"] == 3
    assert sorted(manifest["files"]) == ["a.bin", "inner/b.txt"]


@pytest.mark.parametrize("place", [0, 100, 255])
def test_a_flipped_bit_is_found(tmp_path, place):
    folder = _folder(tmp_path)
    content = bytearray((folder / "a.bin").read_bytes())
    content[place] ^= 1
    (folder / "a.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.bin: damaged"):
        read_manifest(folder)


def test_a_cut_file_is_found(tmp_path):
    folder = _folder(tmp_path)
    (folder / "a.bin").write_bytes(bytes(range(255)))
    with pytest.raises(InputError, match="damaged"):
        read_manifest(folder)


def test_a_missing_file_or_manifest_is_found(tmp_path):
    folder = _folder(tmp_path)
    (folder / "inner" / "b.txt").unlink()
    with pytest.raises(InputError, match=r"b\.txt: missing"):
        read_manifest(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="no such file"):
        read_manifest(folder)


def test_every_bit_of_a_manifest_counts(tmp_path):
    path = _folder(tmp_path) / "manifest.json"
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(InputError):
                read_manifest(tmp_path)
    path.write_bytes(content)
    read_manifest(tmp_path)


def test_a_file_that_is_needed_must_be_listed(tmp_path):
    folder = _folder(tmp_path)
    read_manifest(folder, required=["a.bin", "inner/b.txt"])
    (folder / "c.txt").write_text("c")
    with pytest.raises(InputError, match=r"does not list c\.txt"):
        read_manifest(folder, required=["c.txt"])


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "inner/../../x"])
def test_a_manifest_reads_nothing_outside_its_folder(
    tmp_path, name, monkeypatch
):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_text("s")
    content = {"files": {name: "0" * 64}}
    digest = hashlib.sha256(
        (json.dumps(content, indent=2) + "\n").encode()
    ).hexdigest()
    write_json(folder / "manifest.json", {**content, "sha256": digest})
    monkeypatch.setattr("kerasgpt.files.file_hash", None)
    with pytest.raises(InputError, match="is outside the folder"):
        read_manifest(folder)


def test_a_link_in_a_folder_is_not_followed(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_text("s")
    (folder / "a.txt").symlink_to(tmp_path / "secret")
    write_manifest(folder)
    with pytest.raises(InputError, match=r"a\.txt: is a link"):
        read_manifest(folder)


def test_json_that_is_nested_too_deep_is_an_input_error(tmp_path):
    (tmp_path / "v.json").write_text("[" * 200_000)
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path / "v.json")


def test_leftovers_of_a_killed_process_are_cleared(tmp_path):
    (tmp_path / ".model.abc").mkdir()
    aside = tmp_path / ".model.old.xyz" / "model"
    aside.mkdir(parents=True)
    (aside / "a.txt").write_text("a")
    (tmp_path / ".other.abc").mkdir()
    clear_leftovers(tmp_path, "model")
    assert _names(tmp_path) == [".other.abc", "model"]
    assert (tmp_path / "model" / "a.txt").read_text() == "a"


def test_of_two_whole_folders_the_new_one_stays(tmp_path):
    (tmp_path / ".model.old.xyz" / "model").mkdir(parents=True)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "new.txt").write_text("new")
    clear_leftovers(tmp_path, "model")
    assert _names(tmp_path) == ["model"]
    assert _names(tmp_path / "model") == ["new.txt"]


def test_writing_goes_on_in_the_background_one_at_a_time():
    is_free, running, most = threading.Event(), [], []

    def write():
        running.append(1)
        most.append(len(running))
        is_free.wait(10)
        running.pop()

    with BackgroundWriter() as writer:
        writer.start(write)
        writer.check()
        is_free.set()
        writer.start(write)
        writer.start(write)
    assert most == [1, 1, 1]
    assert running == []


def _fail():
    raise InputError("the disk is full")


def test_an_error_in_the_background_is_raised_once_where_it_is_asked_for():
    for ask in ("wait", "start"):
        with BackgroundWriter() as writer:
            writer.start(_fail)
            with pytest.raises(InputError, match="the disk is full"):
                writer.start(print) if ask == "start" else writer.wait()
            writer.check()


def test_an_error_in_the_background_is_never_lost():
    with (
        pytest.raises(InputError, match="the disk is full"),
        BackgroundWriter() as writer,
    ):
        writer.start(_fail)
    # Nor does it hide what went wrong before.
    with pytest.raises(ZeroDivisionError), BackgroundWriter() as writer:
        writer.start(_fail)
        raise ZeroDivisionError
