"""Owns tasks that are a head on a decoder's backbone: text classification.

Not: the backbone (gpt.py), or texts and the names of their files.
"""

import dataclasses

import keras
from keras import ops

from kerasgpt.config import InputError, setting
from kerasgpt.models.gpt import GPTBackbone, GPTConfig
from kerasgpt.models.tied_lm import ConfiguredModel


@dataclasses.dataclass(frozen=True)
class ClassifierConfig(GPTConfig):
    """Shape of a text classifier: a decoder's, and the names of its classes.

    Raises:
        ValueError: for widths that do not fit together.
        InputError: for fewer than two classes, or names that are no texts,
            empty or not unique.

    Example:
        >>> config = ClassifierConfig.of(GPTConfig(), ["good", "bad"])
        >>> config.labels, config.num_parameters - GPTConfig().num_parameters
        (('good', 'bad'), 256)
    """

    # A list in JSON, which knows no tuples.
    labels: list | tuple = setting((), "names of the classes")

    def __post_init__(self):
        super().__post_init__()
        labels = tuple(self.labels)
        if not all(isinstance(label, str) and label for label in labels):
            raise InputError(f"labels must be texts; received {labels!r}.")
        if (labels and len(labels) < 2) or len(set(labels)) < len(labels):
            raise InputError(
                f"labels must be two or more, all different; received "
                f"{labels!r}."
            )
        object.__setattr__(self, "labels", labels)

    @classmethod
    def of(cls, config, labels):
        """Returns the shape of a classifier on a given model's backbone.

        Args:
            config: GPTConfig. An untied table for logits is left out.
            labels: list of str.
        """
        return cls(
            **{
                **_backbone_values(config),
                "tie_embeddings": True,
                "labels": tuple(labels),
            }
        )

    @property
    def backbone(self):
        """GPTConfig of the backbone."""
        return GPTConfig(**_backbone_values(self))

    @property
    def num_parameters(self):
        """Int. Trainable numbers, counted without building the model."""
        return self.backbone.num_parameters + len(self.labels) * self.model_dim

    @property
    def training_flops_per_token(self):
        """Float. As `GPTConfig` counts them; the head reads every token."""
        table = self.vocabulary_size * self.model_dim
        head = len(self.labels) * self.model_dim
        return self.backbone.training_flops_per_token + 6 * (head - table)


def _backbone_values(config):
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(GPTConfig)
    }


@keras.saving.register_keras_serializable("kerasgpt")
class TextClassifier(ConfiguredModel):
    """Token ids -> logits of the classes of the text up to each of them.

    The class of a text is read at its last token, the only one that has seen
    all of it; there the target stands in training, with weight 1, so that
    `TrainStep` and packed rows serve as they are.

    Args:
        config: ClassifierConfig, or the dict of one.
        rematerialize: see `GPTBackbone`.

    Call arguments:
        inputs: see `GPTBackbone`.

    Returns:
        float32 (batch, length, classes) logits.

    Example:
        >>> config = ClassifierConfig.of(GPTConfig(), ["good", "bad"])
        >>> logits = TextClassifier(config)({"token_ids": ops.array([[1, 2]])})
        >>> tuple(logits.shape)
        (1, 2, 2)

    Reference: Radford et al. 2018 (GPT-1), section 3.2: a linear layer on the
    last token's state.
    """

    config_class = ClassifierConfig

    def __init__(self, config, *, rematerialize=False, **kwargs):
        super().__init__(config, **kwargs)
        self.backbone = GPTBackbone(
            self.config.backbone,
            rematerialize=rematerialize,
            name="backbone",
            dtype=self.dtype_policy,
        )

    def build(self, input_shape=None):
        self.backbone.build()
        # As small as an embedding: the first loss is near ln(classes).
        self.class_embedding = self.add_weight(
            shape=(len(self.config.labels), self.config.model_dim),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            # Muon leaves embeddings to AdamW: a head is no matrix of a block.
            name="class_embedding",
        )
        self.built = True

    def call(self, inputs, training=None):
        return self.project(self.read(inputs, training=training))

    def read(self, inputs, training=None):
        """Returns the hidden states that `output_kernel` turns into logits."""
        return self.backbone(inputs, training=training)

    def project(self, hidden_states):
        """Returns the logits (…, classes) of hidden states."""
        return ops.matmul(
            ops.cast(hidden_states, "float32"),
            ops.transpose(ops.cast(self.output_kernel(), "float32")),
        )

    def output_kernel(self):
        """Returns the (classes, model_dim) matrix of `project`."""
        return ops.convert_to_tensor(self.class_embedding)

    def take_backbone(self, model):
        """Copies the weights of another task's backbone, built like this one.

        Args:
            model: GPTCausalLM.

        Raises:
            ValueError: if the backbones differ.
        """
        theirs = {
            _place(variable): variable for variable in model.backbone.weights
        }
        for variable in self.backbone.weights:
            if _place(variable) not in theirs:
                raise ValueError(f"the other model has no {variable.path}.")
            variable.assign(theirs[_place(variable)].value)

    def get_config(self):
        rematerialize = self.backbone.rematerialize
        return {**super().get_config(), "rematerialize": rematerialize}


def _place(variable):
    """Returns the path of a variable inside its backbone."""
    return variable.path.partition("backbone/")[2] or variable.path
