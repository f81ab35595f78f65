import pytest

from kerasgpt.config import InputError
from kerasgpt.tokenizers.kinds import (
    CLASSES,
    EXACT_KINDS,
    KINDS,
    train_tokenizer,
)

TEXTS = ["to be, or not to be, that is the question", "你好，世界"] * 10


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_trained_saved_and_loaded(kind, tmp_path):
    tokenizer = train_tokenizer(kind, TEXTS, vocabulary_size=310)
    assert tokenizer.vocabulary_size <= 310
    tokenizer.save_files(tmp_path)
    loaded = CLASSES[tokenizer.kind].load_files(tmp_path)
    assert loaded.fingerprint() == tokenizer.fingerprint()
    text = "not 你好"
    assert (loaded.decode(loaded.encode(text)) == text) == (kind in EXACT_KINDS)


def test_kinds_differ():
    found = {
        kind: train_tokenizer(kind, TEXTS, vocabulary_size=310).fingerprint()
        for kind in KINDS
    }
    assert len(set(found.values())) == len(KINDS)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "byte"])
def test_no_text_trains_nothing(kind):
    with pytest.raises(InputError, match="there is no text"):
        train_tokenizer(kind, [], vocabulary_size=310)
