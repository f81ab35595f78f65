from kerasgpt.tokenizers import CONTROL_TOKENS, ByteTokenizer


def test_a_byte_is_its_value_after_the_control_ids():
    tokenizer = ByteTokenizer()
    first = len(CONTROL_TOKENS)
    assert tokenizer.encode("Aé") == [first + b for b in (0x41, 0xC3, 0xA9)]
    assert tokenizer.vocabulary_size == first + 256
    every_byte = list(range(first, first + 128))
    assert tokenizer.decode(every_byte) == bytes(range(128)).decode()


def test_half_a_character_becomes_the_replacement_character():
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("é")
    assert tokenizer.decode(ids[:1]) == "\ufffd"
    assert tokenizer.decode([*tokenizer.encode("a"), ids[1]]) == "a\ufffd"


def test_every_id_after_the_control_ids_counts_one_byte():
    counts = ByteTokenizer().token_bytes
    assert counts == [0] * len(CONTROL_TOKENS) + [1] * 256


def test_nothing_has_to_be_saved(tmp_path):
    ByteTokenizer().save_files(tmp_path)
    assert list(tmp_path.iterdir()) == []
    loaded = ByteTokenizer.load_files(tmp_path)
    assert loaded.fingerprint() == ByteTokenizer().fingerprint()
