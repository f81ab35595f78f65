import json

import keras
import numpy as np
import pytest
import safetensors.numpy

from kerasgpt.checkpoints.exchange import (
    convert,
    load_pretrained,
    load_pretrained_config,
)
from kerasgpt.checkpoints.huggingface import load_huggingface, save_huggingface
from kerasgpt.checkpoints.model_folder import load_model, save_model
from kerasgpt.evaluation.mask_filling import MaskFiller
from kerasgpt.models import MaskedLM
from kerasgpt.tokenizers import ByteTokenizer
from kerasgpt.tokenizers.huggingface import (
    load_huggingface_tokenizer,
)
from tests.checkpoints.folders import (
    copier,
    golden_folders,
    refusal,
    rewrite_json,
    rewrite_tensors,
    tensors_of,
)
from tests.conftest import GOLDENS
from tests.descriptors import tiny_bert

FOLDERS = golden_folders("bert")
TEXTS = json.loads((GOLDENS / "bert" / "texts.json").read_text())
# Sums of float32 in another order; the outputs are of a size of 1 to 10.
TOLERANCE = 1e-4


def load(folder):
    return load_huggingface(
        folder, tokenizer=load_huggingface_tokenizer(folder)
    )


def outputs_of(model, golden):
    """Returns what a model makes of a golden's rows, without a head states."""
    inputs = {
        "token_ids": golden["token_ids"].astype("int32"),
        "segment_ids": golden["is_token"].astype("int32"),
    }
    has_head = model.config.output_transform
    return np.asarray((model if has_head else model.backbone)(inputs))


copy = copier(FOLDERS)


@pytest.mark.parametrize("name", FOLDERS)
def test_their_folder_gives_their_outputs_here_and_comes_out_again(
    name, tmp_path
):
    golden = safetensors.numpy.load_file(FOLDERS[name] / "expected.safetensors")
    model, tokenizer = load_pretrained(FOLDERS[name], kinds=("encoder",))
    assert model.config.num_parameters == model.count_params()
    is_token = golden["is_token"] == 1
    size = model.config.vocabulary_size
    expected = golden["outputs"][is_token]
    if model.config.output_transform:
        # Rows that no piece has are left out.
        expected = expected[:, :size]
    found = outputs_of(model, golden)[is_token]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
    # Large enough that the tolerance means something.
    assert np.abs(expected).max() > 1

    save_huggingface(tmp_path / "out", model, tokenizer)
    theirs, ours = tensors_of(FOLDERS[name]), tensors_of(tmp_path / "out")
    left_out = {
        tensor
        for tensor in theirs
        if "pooler" in tensor or "seq_relationship" in tensor
    }
    assert set(ours) == set(theirs) - left_out
    for tensor, array in ours.items():
        np.testing.assert_array_equal(
            array, theirs[tensor][: len(array)], err_msg=tensor
        )
    again, _ = load_pretrained(tmp_path / "out", kinds=("encoder",))
    assert again.config == model.config
    np.testing.assert_array_equal(outputs_of(again, golden)[is_token], found)


@pytest.mark.parametrize("name", FOLDERS)
def test_transformers_reads_what_we_write(name, tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="pip install 'kerasgpt[peers]'"
    )
    torch = pytest.importorskip("torch", reason="kerasgpt[peers]")
    golden = safetensors.numpy.load_file(FOLDERS[name] / "expected.safetensors")
    model, tokenizer = load_pretrained(FOLDERS[name], kinds=("encoder",))
    save_huggingface(tmp_path / "out", model, tokenizer)
    has_head = model.config.output_transform
    cls = (
        transformers.AutoModelForMaskedLM
        if has_head
        else (transformers.AutoModel)
    )
    peer, told = cls.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32
    )
    # Of a model without a head, the pooler is made up.
    told["missing_keys"] = [
        key for key in told["missing_keys"] if "pooler" not in key
    ]
    assert not any(told.values()), told
    with torch.no_grad():
        theirs = peer.eval()(
            torch.tensor(golden["token_ids"]),
            attention_mask=torch.tensor(golden["is_token"]),
            token_type_ids=torch.tensor(golden["token_types"]),
        )
    theirs = (theirs.logits if has_head else theirs.last_hidden_state).numpy()
    is_token = golden["is_token"] == 1
    np.testing.assert_allclose(
        outputs_of(model, golden)[is_token],
        theirs[is_token],
        atol=TOLERANCE,
        rtol=0,
    )
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = [
        reader.encode(text, add_special_tokens=False, split_special_tokens=True)
        for text in TEXTS["texts"]
    ]
    assert ids == TEXTS["ids"][name]
    mask = tokenizer.control_id("[MASK]")
    assert reader.mask_token_id == mask
    assert reader("the [MASK]")["input_ids"] == [
        tokenizer.control_id("[CLS]"),
        *tokenizer.encode("the"),
        mask,
        tokenizer.control_id("[SEP]"),
    ]


def test_old_names_twins_and_other_heads_are_read(copy):
    golden = safetensors.numpy.load_file(
        FOLDERS["masked"] / "expected.safetensors"
    )
    expected = outputs_of(load(FOLDERS["masked"]), golden)
    folder = copy("masked")

    def age(tensors):
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            old = old.replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(name)
        table = tensors["bert.embeddings.word_embeddings.weight"]
        bias = tensors["cls.predictions.bias"]
        tensors |= {
            "cls.predictions.decoder.weight": table,
            "cls.predictions.decoder.bias": bias,
            "cls.seq_relationship.weight": np.zeros((2, 12), "float32"),
            "bert.pooler.dense.bias": np.zeros(12, "float32"),
            "bert.embeddings.position_ids": np.arange(17)[None],
        }

    rewrite_tensors(folder, age)
    np.testing.assert_array_equal(outputs_of(load(folder), golden), expected)
    rewrite_tensors(
        folder,
        lambda t: t.update(
            {"cls.predictions.decoder.bias": t["cls.predictions.bias"] + 1}
        ),
    )
    told = refusal(load, folder)
    assert "cls.predictions.decoder.bias is not cls.predictions.bias" in told


def test_gaps_are_filled_by_a_converted_model(tmp_path):
    told = []
    convert(FOLDERS["masked"], tmp_path / "ours", tell=told.append)
    assert told[0].endswith("with its tokenizer.")
    model, tokenizer = load_model(tmp_path / "ours", kinds=("encoder",))
    assert model.config.mark_ids == (28, 9, 27)
    filled = MaskFiller(model, tokenizer).fill(
        "the [MASK] café!", count=2, most_tokens=1
    )
    # What stands there by their outputs, of one piece.
    row = [9, 2, 28, 10, 14, 27]
    logits = np.asarray(model({"token_ids": np.array([row], "int32")}))[0, 2]
    scores = np.where(np.array(tokenizer.token_bytes) > 0, logits, -np.inf)
    best = tokenizer.decode([2, int(scores.argmax()), 10, 14])
    assert filled[0].text == best
    # And out again, the same.
    convert(tmp_path / "ours", tmp_path / "back", tell=told.append)
    theirs = tensors_of(FOLDERS["masked"])
    for name, array in tensors_of(tmp_path / "back").items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_training_learns_through_the_transform_and_the_biases():
    model = MaskedLM(tiny_bert())
    model.build()
    states = model.read({"token_ids": np.array([[1, 2, 3]], "int32")})
    np.testing.assert_allclose(
        model.project(states),
        states @ keras.ops.transpose(model.output_kernel()),
        atol=1e-6,
    )
    before = model.project(states)
    model.output_transform.bias.assign(np.arange(10.0))
    np.testing.assert_allclose(
        model.project(states), before + np.arange(10.0), atol=1e-5
    )


def test_a_missing_tensor_is_named(copy):
    folder = copy("masked")
    rewrite_tensors(folder, lambda t: t.pop("cls.predictions.bias"))
    assert refusal(load, folder) == (
        f"{folder}: tensor cls.predictions.bias is missing."
    )


def test_an_unknown_tensor_is_named(copy):
    folder = copy("masked")
    extra = np.zeros(3, np.float32)
    rewrite_tensors(folder, lambda t: t.update({"classifier.weight": extra}))
    assert refusal(load, folder) == (
        f"{folder}: tensor bert.classifier.weight is unknown."
    )


def test_a_misshapen_tensor_is_named_with_both_shapes(copy):
    folder = copy("masked")
    rewrite_json(folder / "config.json", max_position_embeddings=19)
    told = refusal(load, folder)
    assert "position_embeddings.weight has shape (17, 12)" in told
    assert "config.json asks for (19, 12)" in told


def test_a_head_that_is_there_and_not_named_is_refused(copy):
    folder = copy("masked")
    rewrite_json(folder / "config.json", architectures=["BertModel"])
    assert "tensor cls.predictions.bias is unknown" in refusal(load, folder)


def test_a_vocabulary_that_does_not_fit_is_refused(copy):
    folder = copy("masked_float16")
    path = folder / "vocab.txt"
    lines = path.read_text()
    path.write_text(f"{lines}more\n")
    assert "has 45 ids and the tokenizer 46: it is not" in refusal(load, folder)
    path.write_text(lines.replace("[MASK]\n", "mask\n"))
    assert "the tokenizer has no [MASK]" in refusal(load, folder)
    path.write_text(lines.replace("[UNK]\n", "unknown\n"))
    assert refusal(load, folder) == f"{path}: the pieces lack '[UNK]'."
    path.write_text(lines.replace("caf\n", "cafe\n"))
    assert f"{path}: the id 10 is missing, or there twice." == (
        refusal(load, folder)
    )
    path.write_bytes(b"\xff\n")
    assert f"{path}: cannot be read" in refusal(load, folder)
    path.unlink()
    told = refusal(load_pretrained, folder, kinds=("encoder",))
    assert "brings no vocabulary (tokenizer.json or vocab.txt)" in told


def test_what_continues_texts_is_not_made_of_a_bert(copy):
    folder = copy("masked")
    for function in (load_pretrained, load_pretrained_config):
        told = refusal(function, folder)
        assert f"{folder}: describes a model of kind 'encoder'" in told


def test_what_transformers_lacks_is_told_and_nothing_is_written(tmp_path):
    model = MaskedLM(tiny_bert(mark_ids=()))
    model.build()
    out = tmp_path / "out"
    assert "mark_ids is empty" in refusal(save_huggingface, out, model)
    model = MaskedLM(tiny_bert(vocabulary_size=45))
    model.build()
    tokenizer = load_huggingface_tokenizer(FOLDERS["masked"])
    told = refusal(save_huggingface, out, model, tokenizer)
    assert "are [28, 9, 27] and the model's [4, 2, 3]" in told
    told = refusal(save_huggingface, out, model, ByteTokenizer())
    assert "the tokenizer has no [MASK]" in told
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_ours_keeps_the_marks(tmp_path):
    model = MaskedLM(tiny_bert())
    model.build()
    save_model(tmp_path, model, None)
    loaded, _ = load_model(tmp_path, kinds=("encoder",), needs_tokenizer=False)
    assert loaded.config == model.config
    assert loaded.config.mark_id("[SEP]") == 3
