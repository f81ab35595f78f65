import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasgpt.checkpoints.model_folder import save_model
from kerasgpt.config import InputError
from kerasgpt.models import GPTCausalLM
from kerasgpt.tokenizers import ByteTokenizer
from kerasgpt.training import distill, pretrain
from kerasgpt.training.distill import DistillStep
from kerasgpt.training.step import TrainStep
from tests.descriptors import tiny_config


def build(**changes):
    model = GPTCausalLM(tiny_config(**changes))
    model.build()
    return model


def batch(rows=4):
    rng = np.random.default_rng(0)
    token_ids = rng.integers(0, 10, (rows, 8)).astype("int32")
    targets = np.roll(token_ids, -1, 1)
    return {"token_ids": token_ids}, targets, np.ones((rows, 8), "float32")


def trained(step, count=1):
    step.compile(keras.optimizers.Adam(0.01))
    step.fit(tf.data.Dataset.from_tensors(batch()).repeat(count), verbose=0)
    return step.model


def test_a_student_comes_near_its_teacher_and_leaves_it_as_it_was():
    teacher, student = build(), build(num_layers=1)
    # Far from even, unlike a fresh model.
    teacher.set_weights([3 * weight for weight in teacher.get_weights()])
    before = teacher.get_weights()
    inputs, *_ = batch()

    def distance():
        own, other = (
            keras.ops.log_softmax(model(inputs)) for model in (student, teacher)
        )
        return float(keras.ops.mean(keras.ops.abs(own - other)))

    far = distance()
    step = DistillStep(
        student, teacher=teacher, temperature=2.0, teacher_fraction=1.0
    )
    trained(step, 150)
    assert distance() < 0.4 * far
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_without_a_share_of_the_teachers_it_is_the_plain_step():
    teacher = build()
    weights = build(num_layers=1).get_weights()
    models = []
    for step in (
        TrainStep,
        functools.partial(
            DistillStep, teacher=teacher, temperature=3.0, teacher_fraction=0.0
        ),
    ):
        student = build(num_layers=1)
        student.set_weights(weights)
        models.append(trained(step(student), 3))
    for one, other in zip(*(m.get_weights() for m in models), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_micro_batches_add_up_to_the_batch():
    teacher = build()
    weights = build(num_layers=1).get_weights()
    found = []
    for count in (1, 2):
        student = build(num_layers=1)
        student.set_weights(weights)
        step = DistillStep(
            student,
            teacher=teacher,
            temperature=2.0,
            teacher_fraction=0.5,
            accumulate_steps=count,
        )
        step.compile(keras.optimizers.SGD(0.1))
        step.fit(tf.data.Dataset.from_tensors(batch()), verbose=0)
        found.append(student.get_weights())
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_evaluation_is_that_of_the_text_alone():
    teacher, student = build(), build(num_layers=1)
    results = []
    for step in (
        TrainStep(student),
        DistillStep(
            student, teacher=teacher, temperature=2.0, teacher_fraction=0.9
        ),
    ):
        step.compile(keras.optimizers.SGD(0.1))
        dataset = tf.data.Dataset.from_tensors(batch())
        results.append(step.evaluate(dataset, verbose=0, return_dict=True))
    assert results[0] == pytest.approx(results[1])


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    (folder / "texts").mkdir()
    for number in range(40):
        text = f"{number} and {number + 1} and so on. " * 4
        (folder / "texts" / f"{number}.txt").write_text(text)
    config = pretrain.PretrainConfig().override(
        [
            f"run_dir={folder}/run",
            f"data.documents_path={folder}/texts",
            "data.validation_fraction=0.2",
            "tokenizer.kind=byte",
            "model.depth=1",
            "model.model_dim=16",
            "model.context_length=32",
            "train.steps=4",
            "train.batch_tokens=256",
            "train.jit_compile=false",
        ]
    )
    return pretrain.run(config, tell=lambda _: None).folder


def config_of(run_dir, teacher, *more):
    return distill.DistillConfig().override(
        [
            f"run_dir={run_dir}",
            f"teacher.run={teacher}",
            "num_seeds=1",
            "model.depth=1",
            "model.model_dim=8",
            "model.head_dim=4",
            "train.steps=2",
            "train.batch_tokens=256",
            "train.jit_compile=false",
            *more,
        ]
    )


def test_both_students_begin_alike_and_end_differently(tmp_path, teacher_run):
    config = config_of(tmp_path / "run", teacher_run)
    result = distill.run(config, tell=lambda _: None)
    (alone,), (distilled,) = result.students.values()
    assert alone.metrics["before"] == pytest.approx(distilled.metrics["before"])
    assert alone.metrics["loss"] != distilled.metrics["loss"]
    assert alone.model.config == distilled.model.config
    assert {path.name for path in result.folder.iterdir()} == {
        "alone_0",
        "distilled_0",
        "config.json",
    }
    lines = []
    again = distill.run(config, tell=lines.append)
    assert sum("already trained" in line for line in lines) == 2
    assert again.students["alone"][0].metrics == alone.metrics


def test_a_teacher_without_its_data_is_refused(tmp_path):
    model = GPTCausalLM(
        tiny_config(vocabulary_size=ByteTokenizer().vocabulary_size),
        name="gpt",
    )
    model.build()
    save_model(tmp_path / "t" / "model", model, ByteTokenizer())
    with pytest.raises(InputError, match=r"holds no result\.json; name the"):
        distill.run(config_of(tmp_path / "run", tmp_path / "t"))
    assert not (tmp_path / "run").exists()
