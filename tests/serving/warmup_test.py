import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from kerasgpt.config import InputError
from kerasgpt.models.gpt import GPTCausalLM, GPTConfig
from kerasgpt.serving import warmup
from kerasgpt.serving.saved_model import export_saved_model
from kerasgpt.serving.warmup import (
    FILE,
    replay_warmup,
    warmup_examples,
    write_warmup,
)
from kerasgpt.tokenizers import ByteTokenizer


class Doubler(tf.Module):
    def __init__(self):
        super().__init__()
        # Requests of 0, 1 and 2 rows: added to, for they run in threads.
        self.counts = tf.Variable([0, 0, 0])

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32, name="x"),
            tf.TensorSpec([None, None], tf.string, name="names"),
        ]
    )
    def double(self, x, names):
        positive = tf.debugging.Assert(tf.reduce_all(x > 0), ["x is not > 0"])
        with tf.control_dependencies([positive]):
            self.counts.assign_add(tf.one_hot(tf.size(x), 3, dtype=tf.int32))
        return {"y": 2 * x, "names": names}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "1"
    module = Doubler()
    tf.saved_model.save(module, str(folder), signatures=module.double)
    return folder


@pytest.fixture
def loaded(saved):
    return tf.saved_model.load(str(saved))


def example(*values):
    return (
        "serving_default",
        {
            "x": np.array(values, np.float32),
            "names": np.array([["a", "好"]] * len(values), object),
        },
    )


def test_records_are_the_requests(tmp_path):
    write_warmup(tmp_path, [example(1.0), example(2.0, 3.0)])
    assert [path.name for path in (tmp_path / FILE).parent.iterdir()] == [
        "tf_serving_warmup_requests"
    ]
    records = [
        prediction_log_pb2.PredictionLog.FromString(data)
        for data in tf.data.TFRecordDataset(
            str(tmp_path / "assets.extra" / "tf_serving_warmup_requests")
        ).as_numpy_iterator()
    ]
    assert len(records) == 2
    request = records[1].predict_log.request
    assert request.model_spec.signature_name == "serving_default"
    assert set(request.inputs) == {"x", "names"}
    x, names = (tf.make_ndarray(request.inputs[one]) for one in ("x", "names"))
    assert (x.dtype, x.tolist()) == (np.float32, [2.0, 3.0])
    assert names.tolist() == [[b"a", "好".encode()]] * 2


def test_every_record_is_run(loaded, tmp_path):
    assert replay_warmup(loaded, tmp_path) == 0
    write_warmup(tmp_path, [example(1.0), example(2.0, 3.0)])
    assert replay_warmup(loaded, tmp_path) == 2
    assert loaded.counts.numpy().tolist() == [0, 1, 1]


def test_a_record_that_fails_is_told(loaded, tmp_path):
    def refused(*examples):
        write_warmup(tmp_path, list(examples))
        with pytest.raises(InputError) as error:
            replay_warmup(loaded, tmp_path)
        assert "\n" not in str(error.value)
        return str(error.value)

    name, inputs = example(1.0)
    told = refused(example(1.0), example(-1.0))
    assert "warm-up record 2 fails: " in told
    assert "x is not > 0" in told
    assert "no signature other" in refused(("other", inputs))
    assert "record 1 fails: " in refused((name, {"x": inputs["x"]}))
    wrong = {**inputs, "x": np.array(["a"], object)}
    assert "record 1 fails: " in refused((name, wrong))


def test_a_damaged_file_is_told(loaded, tmp_path):
    write_warmup(tmp_path, [example(1.0)])
    file = tmp_path / FILE
    whole = file.read_bytes()
    for data in (
        whole[:-3],
        whole[:20] + b"\0" + whole[21:],
        b"these are not records",
    ):
        file.write_bytes(data)
        with pytest.raises(InputError, match="warm-up record 0 fails"):
            replay_warmup(loaded, tmp_path)
    with tf.io.TFRecordWriter(str(file)) as writer:
        writer.write(b"\xff\xff")
    with pytest.raises(InputError, match="warm-up record 1 fails"):
        replay_warmup(loaded, tmp_path)
    with tf.io.TFRecordWriter(str(file)) as writer:
        writer.write(b"")
    with pytest.raises(InputError, match="not of a predict request"):
        replay_warmup(loaded, tmp_path)


def test_there_are_not_too_many(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(warmup, "MAX_RECORDS", 3)
    write_warmup(tmp_path, [example(1.0)] * 3)
    with pytest.raises(InputError, match="4 warm-up records: at most 3"):
        write_warmup(tmp_path, [example(1.0)] * 4)
    assert replay_warmup(loaded, tmp_path) == 3
    monkeypatch.setattr(warmup, "MAX_RECORDS", 2)
    with pytest.raises(InputError, match="record 3 fails: at most 2"):
        replay_warmup(loaded, tmp_path)


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "assets.extra").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_warmup(tmp_path, [])


def test_examples_fit_the_context():
    inputs = {"generate": ["prompt", "max_new_tokens"]}
    for context_length, lengths in ((9, {2}), (40, {16, 33}), (999, {16, 128})):
        examples = warmup_examples(inputs, context_length=context_length)
        found = {len(values["prompt"][0]) for _, values in examples}
        assert found == lengths
        assert {int(values["max_new_tokens"][0]) for _, values in examples} == {
            2
        }


def test_examples_run_on_an_export(tmp_path):
    config = GPTConfig.from_depth(
        1, vocabulary_size=265, context_length=32, model_dim=32, head_dim=8
    )
    folder = export_saved_model(
        GPTCausalLM(config), ByteTokenizer(), tmp_path, max_new_tokens=8
    )
    loaded = tf.saved_model.load(str(folder))
    signatures = {
        name: list(function.structured_input_signature[1])
        for name, function in loaded.signatures.items()
    }
    examples = warmup_examples(signatures, context_length=32)
    assert {name for name, _ in examples} == set(signatures)
    for name, inputs in signatures.items():
        sizes = [
            len(values[inputs[0]]) for one, values in examples if one == name
        ]
        is_default = name == "serving_default"
        assert set(sizes) == ({1} if is_default else {1, 2, 4, 8})
    write_warmup(folder, examples)
    assert replay_warmup(loaded, folder) == len(examples)
