"""Makes models/ beside it: a tiny model of each kind, saved both ways.

Command  python tests/goldens/make_models.py

`NAME/model` is a model folder, `NAME/whole.keras` what Keras saves, and
`NAME/expected.safetensors` the logits (1, 4, vocabulary). What is there was
written at commit a802c98, before models of a kind shared a base; it is made
anew only where files saved earlier need not be read any more.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import keras
import numpy as np
import safetensors.numpy

from kerasgpt.checkpoints.model_folder import build_task, save_model
from kerasgpt.models import (
    EncoderConfig,
    EncoderDecoderConfig,
    GPTConfig,
    RecurrentConfig,
)

FOLDER = pathlib.Path(__file__).parent / "models"
SHAPE = {
    "vocabulary_size": 12,
    "context_length": 6,
    "num_layers": 1,
    "num_heads": 2,
    "head_dim": 2,
    "model_dim": 4,
    "inner_dim": 6,
}
CONFIGS = {
    "gpt": GPTConfig(**SHAPE, num_kv_heads=1, dropout_rate=0.1),
    "gpt_untied": GPTConfig(
        **SHAPE, num_kv_heads=2, tie_embeddings=False, position="learned"
    ),
    "recurrent": RecurrentConfig(
        kind="gru",
        vocabulary_size=12,
        context_length=6,
        num_layers=2,
        model_dim=4,
    ),
    "encoder": EncoderConfig(**SHAPE),
    "encoder_decoder": EncoderDecoderConfig(**SHAPE),
}
INPUTS = {
    "token_ids": np.array([[1, 9, 3, 2]], "int32"),
    "source_ids": np.array([[4, 5, 6]], "int32"),
}


def main():
    """Writes all models anew."""
    for name, config in CONFIGS.items():
        keras.utils.set_random_seed(0)
        model = build_task(config)
        # As uneven as trained ones: no part is lost in rounding.
        rng = np.random.default_rng(0)
        model.set_weights(
            [w + rng.normal(size=w.shape) for w in model.get_weights()]
        )
        save_model(FOLDER / name / "model", model, None)
        model.save(FOLDER / name / "whole.keras")
        safetensors.numpy.save_file(
            {"logits": np.asarray(model(INPUTS))},
            FOLDER / name / "expected.safetensors",
        )


if __name__ == "__main__":
    main()
