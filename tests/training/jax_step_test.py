import numpy as np
import pytest

from kerasgpt.checkpoints.model_folder import load_model
from kerasgpt.training.step import TrainStep
from tests.training import backend_worker
from tests.training.replicas_worker import BAD_STEPS

pytest.importorskip("jax", reason="jax is not installed")


@pytest.fixture(scope="module")
def outcome():
    """Returns what TensorFlow and JAX make of the same weights and batches."""
    # Both at a time.
    folder, _ = backend_worker.start()
    first = backend_worker.train(TrainStep, f"{folder.name}/first")
    return first, backend_worker.results()["one"]


def test_fifty_steps_under_jax_are_those_under_tensorflow(outcome):
    tensorflow, jax = outcome
    backend_worker.check_same(jax, tensorflow)
    assert len(jax["metrics"]) == backend_worker.STEPS
    losses = [metrics["loss"] for metrics in jax["metrics"]]
    assert losses[-1] < losses[0] - 1.0


def test_the_same_weights_give_the_same_logits(outcome):
    tensorflow, jax = outcome
    for name in ("plain", "packed"):
        np.testing.assert_allclose(
            jax[name], tensorflow[name], atol=1e-5, rtol=0
        )


def test_steps_that_are_not_finite_are_skipped(outcome):
    _, jax = outcome
    skipped = [metrics["skipped_steps"] for metrics in jax["metrics"]]
    assert skipped == [
        float(step in BAD_STEPS) for step in range(backend_worker.STEPS)
    ]
    assert np.isfinite(jax["packed"]).all()


def test_tensorflow_reads_what_jax_trained(outcome):
    folder, _ = backend_worker.start()
    model, _ = load_model(f"{folder.name}/saved")
    inputs, *_ = backend_worker.packed_batches(1)[0]
    np.testing.assert_allclose(
        model.predict_on_batch(inputs), outcome[1]["packed"], atol=1e-5, rtol=0
    )


@pytest.mark.slow
def test_accumulated_steps_and_other_optimizers_are_the_same_too(tmp_path):
    backend_worker.save_first(tmp_path)
    cases = {
        "adamw": {"optimizer": "adamw"},
        "accumulated": {"accumulate_steps": 4},
        "clipped": {"clip_norm": 0.1},
    }
    found = backend_worker.result(backend_worker.start_jax(tmp_path, cases))
    for name, case in cases.items():
        expected = backend_worker.train(TrainStep, tmp_path, **case)
        backend_worker.check_same(found[name], expected)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_jax_trains_in_mixed_precision(tmp_path, precision):
    backend_worker.save_first(tmp_path)
    # The fused attention of JAX knows no float16 on a CPU.
    cases = {"mixed": {"precision": precision, "with_plain": False}, "full": {}}
    found = backend_worker.result(backend_worker.start_jax(tmp_path, cases))
    backend_worker.check_same(found["mixed"], found["full"], atol=0.05)
    skipped = [step["skipped_steps"] for step in found["mixed"]["metrics"]]
    assert sum(skipped) == len(BAD_STEPS)
