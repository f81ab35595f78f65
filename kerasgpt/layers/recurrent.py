"""Owns recurrent layers. Not: how they are stacked (models/recurrent.py)."""

import contextlib

import keras
from keras import ops

from kerasgpt.layers.projection import Projection

# kind -> (gates, states). Of a GRU the candidate is computed apart: its
# recurrent part is multiplied before it is added.
KINDS = {"rnn": (1, 1), "gru": (3, 1), "lstm": (4, 2)}


@keras.saving.register_keras_serializable("kerasgpt")
class RecurrentCell(keras.layers.Layer):
    """One step of a recurrent layer, from what its input was projected to.

    rnn:  h' = tanh(x + U h)
    gru:  r, z = sigmoid(x + U h); n = tanh(x + r (U h + b)); h' = n + z (h - n)
    lstm: i, f, o = sigmoid(x + U h); g = tanh(x + U h); c' = f c + i g;
          h' = o tanh(c')

    `keras.layers.SimpleRNNCell`, `GRUCell` and `LSTMCell` are these steps too
    (tested), but cannot begin anew in the middle of a packed row, and keep all
    gates in one matrix, which Muon would orthogonalise as a whole. With Muon
    an RNN learned in 60 steps what AdamW did not in as many: 2.57 nats a
    character against 3.16 (experiments/LOG.md).

    Args:
        kind: "rnn", "gru" or "lstm".
        units: int. Width of a state.
        recurrent_initializer: of U, one block a gate.

    Call arguments:
        inputs: float (batch, gates * units + 2): the projected input; then 0
            where the states are forgotten first, else 1; then 0 where the
            step is padding and leaves the states as they are, else 1.
        states: list of float (batch, units): [h], of an LSTM [h, c].

    Returns:
        float (batch, units), h', then the list of states after the step.

    Raises:
        ValueError: for an unknown kind.

    Example:
        tanh(0.5 + 1 h), where h is 0 at first:

        >>> cell = RecurrentCell("rnn", 1, recurrent_initializer="ones")
        >>> output, states = cell(ops.array([[0.5, 1, 1]]), [ops.zeros((1, 1))])
        >>> output.numpy().round(3)
        array([[0.462]], dtype=float32)

    Reference: Elman 1990, Finding structure in time; Cho et al. 2014 (arXiv
    1406.1078), as cuDNN has it; Hochreiter & Schmidhuber 1997, with the
    forget gate of Gers et al. 2000.
    """

    def __init__(
        self, kind, units, *, recurrent_initializer="orthogonal", **kwargs
    ):
        super().__init__(**kwargs)
        if kind not in KINDS:
            raise ValueError(
                f"kind must be one of {sorted(KINDS)}; received {kind!r}."
            )
        self.kind = kind
        self.units = units
        self.recurrent_initializer = keras.initializers.get(
            recurrent_initializer
        )
        # What `keras.layers.RNN` asks of a cell.
        self.state_size = [units] * KINDS[kind][1]
        self.output_size = units
        self._kernel = None

    def build(self, inputs_shape, *unused_shapes):
        num_gates = KINDS[self.kind][0]
        # One matrix a gate, each of which is orthogonal for itself.
        self.recurrent_kernels = [
            self.add_weight(
                name=f"recurrent_kernel_{gate}",
                shape=(self.units, self.units),
                initializer=self.recurrent_initializer.clone(),
            )
            for gate in range(num_gates)
        ]
        if self.kind == "gru":
            self.candidate_bias = self.add_weight(
                name="candidate_bias", shape=(self.units,), initializer="zeros"
            )
        self.built = True

    def call(self, inputs, states, training=None):
        projected = inputs[..., :-2]
        kept, is_token = inputs[..., -2:-1], inputs[..., -1:]
        old = [state * kept for state in states]
        kernel = self._join() if self._kernel is None else self._kernel
        recurrent = ops.matmul(old[0], kernel)
        new = [
            after + (1 - is_token) * (before - after)
            for before, after in zip(
                old, self._step(projected, recurrent, old), strict=True
            )
        ]
        return new[0], new

    @contextlib.contextmanager
    def joined_once(self):
        """Within it, U is put together once and not at each step."""
        self._kernel = self._join()
        try:
            yield
        finally:
            self._kernel = None

    def _join(self):
        return ops.concatenate(
            [ops.convert_to_tensor(k) for k in self.recurrent_kernels], axis=1
        )

    def _step(self, projected, recurrent, old):
        if self.kind == "rnn":
            return [ops.tanh(projected + recurrent)]
        if self.kind == "gru":
            gates = ops.sigmoid(
                projected[..., : 2 * self.units]
                + recurrent[..., : 2 * self.units]
            )
            reset, update = ops.split(gates, 2, axis=-1)
            candidate = ops.tanh(
                projected[..., 2 * self.units :]
                + reset
                * (recurrent[..., 2 * self.units :] + self.candidate_bias)
            )
            return [candidate + update * (old[0] - candidate)]
        read, forget, write, candidate = ops.split(
            projected + recurrent, 4, axis=-1
        )
        memory = ops.sigmoid(forget) * old[1]
        memory = memory + ops.sigmoid(read) * ops.tanh(candidate)
        return [ops.sigmoid(write) * ops.tanh(memory), memory]

    def get_config(self):
        return {
            **super().get_config(),
            "kind": self.kind,
            "units": self.units,
            "recurrent_initializer": keras.initializers.serialize(
                self.recurrent_initializer
            ),
        }


@keras.saving.register_keras_serializable("kerasgpt")
class RecurrentLayer(keras.layers.Layer):
    """Reads rows step by step; a state carries what was read.

    Args:
        kind, recurrent_initializer: see `RecurrentCell`.
        units: int. Width of the states.
        kernel_initializer: of the projection of the input.

    Call arguments:
        hidden_states: float (batch, length, model_dim).
        kept: float (batch, length, 2), as `RecurrentCell` reads it: whether a
            step knows the one before it, and whether it is a token.
        states: list of float (batch, units), `None` = zeros.

    Returns:
        float (batch, length, units), then the list of states after the row.

    Example:
        >>> layer = RecurrentLayer("lstm", 4)
        >>> output, states = layer(ops.ones((1, 3, 2)), ops.ones((1, 3, 2)))
        >>> tuple(output.shape), len(states)
        ((1, 3, 4), 2)
    """

    def __init__(
        self,
        kind,
        units,
        *,
        kernel_initializer="glorot_uniform",
        recurrent_initializer="orthogonal",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.cell = RecurrentCell(
            kind,
            units,
            recurrent_initializer=recurrent_initializer,
            dtype=self.dtype_policy,
            name="cell",
        )
        self.loop = keras.layers.RNN(
            self.cell,
            return_sequences=True,
            return_state=True,
            dtype=self.dtype_policy,
            name="loop",
        )

    def build(self, hidden_states_shape, *unused_shapes):
        width = KINDS[self.cell.kind][0] * self.cell.units
        self.projection = Projection(
            width,
            kernel_initializer=self.kernel_initializer.clone(),
            bias_initializer=_GateBias(self.cell.kind, self.cell.units),
            dtype=self.dtype_policy,
            name="input",
        )
        self.projection.build(hidden_states_shape)
        self.loop.build((None, None, width + 2))
        self.built = True

    def call(self, hidden_states, kept, states=None):
        inputs = ops.concatenate(
            [
                self.projection(hidden_states),
                ops.cast(kept, self.compute_dtype),
            ],
            axis=-1,
        )
        with self.cell.joined_once():
            output, *states = self.loop(inputs, initial_state=states)
        return output, states

    def get_config(self):
        return {
            **super().get_config(),
            "kind": self.cell.kind,
            "units": self.cell.units,
            "kernel_initializer": keras.initializers.serialize(
                self.kernel_initializer
            ),
            "recurrent_initializer": keras.initializers.serialize(
                self.cell.recurrent_initializer
            ),
        }


class _GateBias(keras.initializers.Initializer):
    """Zeros, but ones for an LSTM's forget gate, so that it keeps at first.

    Reference: Jozefowicz et al. 2015, An empirical exploration of recurrent
    network architectures (ICML), section 2.2.
    """

    def __init__(self, kind, units):
        self.kind = kind
        self.units = units

    def __call__(self, shape, dtype=None):
        place = ops.arange(shape[0]) // self.units
        is_forget = (place == 1) & (self.kind == "lstm")
        return ops.cast(is_forget, dtype or "float32")
