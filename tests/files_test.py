import hashlib

import pytest

from kerasgpt.config import InputError
from kerasgpt.files import (
    atomic_folder,
    check_writable,
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
