"""Trains our model through Keras on JAX, in bfloat16.

Settings: those of a task, and chunked_loss: whether logits exist a chunk at a
time, in float32, or whole, from a product in bfloat16.
"""

import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

import jax
import jax.numpy as jnp
import keras
from keras import ops

from experiments.benchmarks.workers.gpt_task import batches, first_weights
from experiments.benchmarks.workers.kerasgpt_model import (
    GPT2,
    build_model,
    model_config,
)
from experiments.benchmarks.workers.protocol import (
    repeat,
    serve,
    timed,
    versions,
)
from kerasgpt.training.losses import next_token_loss
from kerasgpt.training.optimizers import build_optimizer


def mean_loss(model, tokens, *, is_chunked):
    token_ids, targets = tokens[:, :-1], tokens[:, 1:]
    # Neither positions nor segments: plain causal rows, for which a fused
    # kernel may be taken.
    hidden_states = model.backbone({"token_ids": token_ids}, training=True)
    kernel = model.output_kernel()
    if is_chunked:
        weights = ops.ones(targets.shape)
        return next_token_loss(hidden_states, kernel, targets, weights)[0]
    kernel = ops.transpose(ops.cast(kernel, hidden_states.dtype))
    logits = ops.cast(ops.matmul(hidden_states, kernel), "float32")
    return ops.mean(
        ops.sparse_categorical_crossentropy(targets, logits, from_logits=True)
    )


def build_step(model, optimizer, *, is_chunked):
    """Returns a compiled function of (state, tokens): (state, loss)."""

    def loss_of(values, tokens):
        mapping = zip(model.trainable_variables, values, strict=True)
        with keras.StatelessScope(state_mapping=list(mapping)):
            return mean_loss(model, tokens, is_chunked=is_chunked)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, tokens):
        values, slots = state
        loss, gradients = jax.value_and_grad(loss_of)(values, tokens)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in gradients))
        scale = 1.0 / jnp.maximum(norm, 1.0)
        gradients = [gradient * scale for gradient in gradients]
        return optimizer.stateless_apply(slots, gradients, values), loss

    return step


def train_step(task):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = build_model(model_config(task, **GPT2), first_weights(task))
    optimizer = build_optimizer(
        "adamw",
        task["learning_rate"],
        weight_decay=task["weight_decay"],
        beta_2=task["beta_2"],
    )
    optimizer.build(model.trainable_variables)
    step = build_step(model, optimizer, is_chunked=task["chunked_loss"])
    # Copied, since a step gives its own state up.
    state = jax.tree.map(
        jnp.copy,
        (
            [variable.value for variable in model.trainable_variables],
            [variable.value for variable in optimizer.variables],
        ),
    )
    tokens = jax.device_put(list(batches(task)))

    def epoch():
        nonlocal state
        losses = []
        for batch in tokens:
            state, loss = step(state, batch)
            losses.append(loss)
        jax.block_until_ready(state)
        return float(sum(losses)) / len(losses)

    (first, loss), (second, next_loss) = timed(epoch), timed(epoch)
    device = jax.devices()[0]
    # A CPU keeps no such account.
    memory = device.memory_stats() or {}
    facts = {
        "parameters": model.config.num_parameters,
        "flops_per_token": model.config.training_flops_per_token,
        "losses": [loss, next_loss],
        "compile_seconds": first - second,
        "device": device.device_kind,
        "device_bytes": memory.get("peak_bytes_in_use", 0),
        "versions": versions("keras", "jax"),
    }
    return facts, repeat(epoch)


if __name__ == "__main__":
    serve(train_step)
