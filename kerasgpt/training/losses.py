"""Owns losses as pure functions. Not: reducing them over devices (step.py)."""

from keras import ops


def token_losses(logits, targets):
    """Returns the cross-entropy of each target under its logits, in nats.

    Args:
        logits: float (batch, length, vocabulary_size).
        targets: int (batch, length).

    Returns:
        float32 (batch, length), not reduced: a mean over tokens has to divide
        by the tokens that count in the whole batch, which only the train step
        knows.

    Example:
        Even logits over 4 tokens cost ln 4 nats:

        >>> token_losses(ops.zeros((1, 1, 4)), [[2]]).numpy().round(4)
        array([[1.3863]], dtype=float32)
    """
    return ops.sparse_categorical_crossentropy(
        targets, ops.cast(logits, "float32"), from_logits=True
    )
