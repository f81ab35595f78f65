import keras
import numpy as np
import pytest
from keras import ops

from kerasgpt.training.token_step import TokenStep


class Point(keras.Model):
    """A place with two coordinates."""

    def build(self, input_shape=None):
        self.place = self.add_weight(
            shape=(2,), initializer="zeros", name="place"
        )
        self.built = True

    def read(self, inputs, training=None):
        # Logits are those of one number and of its double.
        return inputs["number"][:, :, None]

    def output_kernel(self):
        return ops.convert_to_tensor([[1.0], [2.0]])


class Given(TokenStep):
    """Takes what it is given for loss and gradient; shares of two replicas."""

    given_loss, given_gradient = 1.0, (3.0, 4.0)

    def differentiate(self, data, total_weight, loss_scale):
        self.seen = float(total_weight), float(loss_scale)
        _, losses, hits = self.loss_of(data, total_weight, training=True)
        half = [
            np.float32(self.given_loss) / 2,
            np.float32(self.given_gradient) / 2,
        ]
        return [ops.convert_to_tensor(part) for part in half], losses, hits

    def apply(self, gradients):
        self.optimizer.apply(gradients, self.model.trainable_variables)

    def total(self, values):
        return keras.tree.map_structure(lambda value: 2.0 * value, values)

    def num_shares(self):
        return 2


# Of logits 0 and 0, and of ln 3 and 2 ln 3: the probability of the target is
# a half, and 3 / 12.
DATA = (
    {"number": np.log([[1.0, 3.0, 3.0]]).astype("float32")},
    np.array([[0, 0, 1]]),
    np.array([[1.0, 1.0, 0.0]], "float32"),
)


@pytest.fixture
def step():
    step = Given(Point(), clip_norm=2.5, token_bytes=[3, 1])
    step.build()
    step.compile(keras.optimizers.SGD(1.0, momentum=0.9), jit_compile=False)
    return step


def _results(step):
    return {metric.name: float(metric.result()) for metric in step.metrics}


def test_summed_gradients_are_clipped_and_applied(step):
    step.update_on(DATA)
    # A norm of 5 is cut to 2.5; the weights of both replicas are 4 together.
    np.testing.assert_allclose(step.model.place, [-1.5, -2.0], rtol=1e-6)
    assert step.seen == (4.0, 1.0)
    results = _results(step)
    assert results["gradient_norm"] == pytest.approx(5.0)
    assert results["skipped_steps"] == 0.0


def test_metrics_are_those_of_the_tokens_that_count(step):
    step.evaluate_on(DATA)
    results = _results(step)
    nats = np.log(2.0) + np.log(4.0)
    assert results["loss"] == pytest.approx(nats / 2)
    assert results["accuracy"] == pytest.approx(0.5)
    assert results["bits_per_byte"] == pytest.approx(3.0 / 6)
    names = [metric.name for metric in step.validation_metrics]
    assert names == ["loss", "accuracy", "bits_per_byte"]


@pytest.mark.parametrize("bad", ["given_loss", "given_gradient"])
def test_what_is_not_finite_changes_nothing(step, bad):
    step.update_on(DATA)
    state = [*step.model.variables, *step.optimizer.variables]
    before = [np.array(variable) for variable in state]
    means = _results(step)
    value = np.inf if bad == "given_loss" else (np.nan, 0.0)
    setattr(step, bad, value)
    step.update_on(DATA)
    for variable, value in zip(state, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    # A share: metrics of the two replicas are added up.
    assert _results(step) == {**means, "skipped_steps": 0.5}


def test_a_driver_must_know_its_gradients():
    step = TokenStep(Point())
    with pytest.raises(NotImplementedError):
        step.differentiate(DATA, 1.0, 1.0)
    with pytest.raises(NotImplementedError):
        step.apply([])
