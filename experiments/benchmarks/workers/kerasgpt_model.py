"""Owns our model of a task, with given weights. Keras, any backend."""

from experiments.benchmarks.workers.gpt_task import NORM_EPSILON
from kerasgpt.models import GPTCausalLM, GPTConfig

GPT2 = {
    "norm": "layer",
    "norm_epsilon": NORM_EPSILON,
    "activation": "gelu",
    "position": "learned",
    "qk_norm": False,
}


def model_config(task, **settings):
    """Returns the GPTConfig of a task's shape.

    Args:
        task: dict, see gpt_task.py.
        **settings: all else, such as `**GPT2`; none are our defaults.
    """
    return GPTConfig(
        vocabulary_size=task["vocabulary_size"],
        context_length=task["context_length"],
        num_layers=task["num_layers"],
        model_dim=task["model_dim"],
        num_heads=task["num_heads"],
        num_kv_heads=task["num_heads"],
        head_dim=task["model_dim"] // task["num_heads"],
        inner_dim=4 * task["model_dim"],
        **settings,
    )


def build_model(config, weights):
    """Returns a GPTCausalLM.

    Args:
        config: GPTConfig.
        weights: dict of arrays, named as in `gpt_task.first_weights`.
    """
    model = GPTCausalLM(config, name="gpt")
    model.build()
    for variable in model.variables:
        name = variable.path.split("backbone/")[1].rsplit("/", 1)[0]
        if name in weights:
            variable.assign(weights[name])
    return model
