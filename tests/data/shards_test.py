import io
import json

import numpy as np
import pytest

from kerasgpt.config import InputError
from kerasgpt.data.shards import build_shard, load_shards, save_shards
from kerasgpt.files import write_manifest

ROWS = [[1, 2, 3], [], [4, 5]]
MASKS = [[0, 1, 1], [], [0, 1]]


def _shard(vocabulary_size=300):
    return build_shard(ROWS, MASKS, vocabulary_size=vocabulary_size)


def _save(folder):
    empty = build_shard([], [], vocabulary_size=300)
    shards = {"train": _shard(), "validation": empty}
    save_shards(folder, shards, tokenizer_fingerprint="abc", rows=7)


def test_a_shard_is_one_stream_with_offsets():
    shard = _shard()
    assert shard.token_ids.tolist() == [1, 2, 3, 4, 5]
    assert shard.loss_mask.tolist() == [0, 1, 1, 0, 1]
    assert shard.offsets.tolist() == [0, 3, 3, 5]
    assert shard.num_documents == 3
    assert shard.num_tokens == 5


@pytest.mark.parametrize(
    ("vocabulary_size", "dtype"),
    [(300, np.uint16), (1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)],
)
def test_ids_take_the_smallest_type_that_holds_them(vocabulary_size, dtype):
    shard = build_shard(
        [[vocabulary_size - 1]], [[1]], vocabulary_size=vocabulary_size
    )
    assert shard.token_ids.dtype == dtype
    assert shard.token_ids.tolist() == [vocabulary_size - 1]


def test_shards_come_back_from_disk(tmp_path):
    _save(tmp_path / "data")
    shards, manifest = load_shards(
        tmp_path / "data", tokenizer_fingerprint="abc"
    )
    assert sorted(shards) == ["train", "validation"]
    for name in ("token_ids", "loss_mask", "offsets"):
        np.testing.assert_array_equal(
            getattr(shards["train"], name), getattr(_shard(), name)
        )
    assert shards["validation"].num_documents == 0
    assert manifest["rows"] == 7
    assert manifest["splits"]["train"] == {
        "documents": 3,
        "tokens": 5,
        "trained_tokens": 3,
    }


def test_streams_stay_on_disk(tmp_path):
    _save(tmp_path / "data")
    shards, _ = load_shards(tmp_path / "data", tokenizer_fingerprint="abc")
    assert isinstance(shards["train"].token_ids, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        shards["train"].token_ids[0] = 9


def test_saving_again_replaces_the_folder(tmp_path):
    _save(tmp_path / "data")
    save_shards(
        tmp_path / "data", {"test": _shard()}, tokenizer_fingerprint="new"
    )
    shards, _ = load_shards(tmp_path / "data", tokenizer_fingerprint="new")
    assert list(shards) == ["test"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_flipped_bit_in_any_file_is_found(tmp_path):
    _save(tmp_path / "data")
    files = sorted((tmp_path / "data").glob("*.npy"))
    assert len(files) == 6
    for file in files:
        content = file.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            damaged = bytearray(content)
            damaged[place] ^= 1
            file.write_bytes(damaged)
            with pytest.raises(InputError, match="damaged"):
                load_shards(tmp_path / "data", tokenizer_fingerprint="abc")
        file.write_bytes(content)
    load_shards(tmp_path / "data", tokenizer_fingerprint="abc")


def test_a_cut_or_missing_file_is_found(tmp_path):
    _save(tmp_path / "data")
    file = tmp_path / "data" / "train.token_ids.npy"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged"):
        load_shards(tmp_path / "data", tokenizer_fingerprint="abc")
    file.unlink()
    with pytest.raises(InputError, match="missing"):
        load_shards(tmp_path / "data", tokenizer_fingerprint="abc")
    (tmp_path / "data" / "manifest.json").unlink()
    with pytest.raises(InputError, match="no such file"):
        load_shards(tmp_path / "data", tokenizer_fingerprint="abc")


@pytest.mark.parametrize("text", ["", "{", "\udcff"])
def test_an_unreadable_manifest_is_found(tmp_path, text):
    _save(tmp_path / "data")
    path = tmp_path / "data" / "manifest.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"manifest\.json"):
        load_shards(tmp_path / "data", tokenizer_fingerprint="abc")


def test_ids_of_another_tokenizer_are_refused(tmp_path):
    _save(tmp_path / "data")
    with pytest.raises(InputError, match=r"another tokenizer \(abc, not xyz\)"):
        load_shards(tmp_path / "data", tokenizer_fingerprint="xyz")


def test_the_manifest_is_plain_json(tmp_path):
    _save(tmp_path / "data")
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert manifest["format_version"] == 1
    assert manifest["tokenizer_fingerprint"] == "abc"


def _forge(folder, changes):
    """Changes files or manifest entries, as who can sign them may."""
    manifest = json.loads((folder / "manifest.json").read_text())
    values = {
        name: value
        for name, value in manifest.items()
        if name not in ("files", "sha256")
    }
    for name, value in changes.items():
        if isinstance(value, bytes):
            (folder / name).write_bytes(value)
        else:
            values[name] = value
    write_manifest(folder, **values)


def _npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


PICKLE = b"\x80\x04cos\nsystem\n(S'true'\ntR."
IDS = "train.token_ids.npy"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"splits": {"../other": {}}}, r"does not list \.\./other"),
        ({"splits": ["train"]}, "lists no splits"),
        ({"tokenizer_fingerprint": None}, r"another tokenizer \(None"),
        ({IDS: PICKLE}, r"train\.token_ids\.npy: is no array"),
        ({IDS: b"PK\x03\x04"}, "is no array"),
        ({IDS: b""}, "is no array"),
        # Of a shape that is not there.
        (
            {
                IDS: _npy(np.zeros(5, "uint16")).replace(
                    b"(5,)", b"(5000000000,)"
                )
            },
            "is no array",
        ),
        ({IDS: _npy(np.array([None] * 5))}, "is no array"),
        ({IDS: _npy(np.zeros(4, "uint16"))}, "do not fit together"),
        ({IDS: _npy(np.zeros(5, "float32"))}, "do not fit together"),
        ({IDS: _npy(np.zeros((5, 1), "uint16"))}, "do not fit together"),
        (
            {"train.offsets.npy": _npy(np.array([0, 9, 3, 5]))},
            "do not fit together",
        ),
        ({"train.offsets.npy": _npy(np.zeros(0, int))}, "do not fit together"),
    ],
)
def test_signed_files_that_are_no_shards_are_refused(tmp_path, changes, told):
    _save(tmp_path / "data")
    _forge(tmp_path / "data", changes)
    with pytest.raises(InputError, match=told) as raised:
        load_shards(tmp_path / "data", tokenizer_fingerprint="abc")
    assert "\n" not in str(raised.value)
