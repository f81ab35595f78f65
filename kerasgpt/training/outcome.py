"""Owns what a stage leaves: its model, merged with the adapters it learned.

Not: when that is saved, nor the state to go on from (stage.py).
"""

from kerasgpt.checkpoints.adapter import Adapter, save_adapter
from kerasgpt.checkpoints.model_folder import (
    copy_to_host,
    name_variables,
    save_model,
)
from kerasgpt.models.lora import merge_lora
from kerasgpt.training.distribution import is_one_device


class Outcome:
    """The model in training, as others get it: without adapters.

    Args:
        folder: pathlib.Path. Gets "model", and "adapter" if it has any.
        model: task model that is trained.
        tokenizer: Tokenizer.
        strategy: tf.distribute.Strategy of the model.
        lora: LoRAConfig of its adapters. `None` = it has none.
    """

    def __init__(self, folder, model, tokenizer, *, strategy, lora=None):
        self.folder = folder
        self.model = model
        self.tokenizer = tokenizer
        self.strategy = strategy
        self.lora = lora
        self.copy = None

    def save(self, weights, *, step):
        """Writes the folders.

        Args:
            weights: dict of arrays, of the variables that training changes.
            step: int, after which they were so.

        Raises:
            InputError: if they cannot be written.
        """
        if self.lora:
            adapter = Adapter(self.lora, weights)
            save_adapter(self.folder / "adapter", adapter, step=step)
        save_model(
            self.folder / "model",
            self.model,
            self.tokenizer,
            weights=self._merged(weights),
            step=step,
        )

    def usable_model(self):
        """Returns a model of float32 weights, those of now, on one device."""
        model = self.model
        if is_one_device(self.strategy) and model.dtype == "float32":
            return model
        # Decoding is compiled for one device.
        if not self.copy:
            self.copy = type(model)(model.config, name=model.name)
            self.copy.build()
        weights = self._merged(copy_to_host(model.variables))
        for name, variable in name_variables(self.copy.variables).items():
            variable.assign(weights[name])
        return self.copy

    def _merged(self, weights):
        """Returns the weights that a model without adapters would have."""
        if not self.lora:
            return weights
        frozen = copy_to_host(self.model.variables)
        return merge_lora(frozen, weights, self.lora)
