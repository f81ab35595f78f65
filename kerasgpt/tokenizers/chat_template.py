"""Owns conversation -> ids and loss mask; the only file that knows roles."""

import tensorflow as tf

from kerasgpt.config import InputError

ROLES = ("system", "user", "assistant", "tool")


class ChatTemplate(tf.Module):
    """Turns messages into ids; content stays text, structure is added by id.

    A conversation is `<|document|>`, then for each turn the role's control
    id, the ids of the content and `<|end_of_turn|>`. Trained are the ids of
    assistant contents and the `<|end_of_turn|>` that closes them:

        user "hi", assistant "yo"
          token_ids  <|document|> <|user|> h i <|end_of_turn|>
                     <|assistant|> y o <|end_of_turn|>
          loss_mask  0 0 0 0 0   0 1 1 1

    Args:
        tokenizer: Tokenizer.

    Example:
        >>> from kerasgpt.tokenizers.byte import ByteTokenizer
        >>> template = ChatTemplate(ByteTokenizer())
        >>> template.render([{"role": "user", "content": "A"},
        ...                  {"role": "assistant", "content": "B"}])
        ([2, 5, 74, 8, 6, 75, 8], [0, 0, 0, 0, 0, 1, 1])
        >>> template.prompt([{"role": "user", "content": "A"}])
        [2, 5, 74, 8, 6]
    """

    def __init__(self, tokenizer):
        super().__init__(name="chat_template")
        self.tokenizer = tokenizer
        self.document_id = tokenizer.control_id("<|document|>")
        self.end_id = tokenizer.control_id("<|end_of_turn|>")
        self.role_ids = {
            role: tokenizer.control_id(f"<|{role}|>") for role in ROLES
        }

    def render(self, messages):
        """Returns (token_ids, loss_mask), lists of int, of a conversation.

        Raises:
            InputError: for an unknown role.
        """
        contents = [self.tokenizer.encode(m["content"]) for m in messages]
        return self.join([m["role"] for m in messages], contents)

    def prompt(self, messages):
        """Returns ids up to the point where the assistant starts to speak."""
        token_ids, _ = self.render(messages)
        return [*token_ids, self.role_ids["assistant"]]

    def join(self, roles, contents):
        """Returns (token_ids, loss_mask) of turns whose contents are encoded.

        Args:
            roles: list of str, one a turn.
            contents: list of lists of int, one a turn.

        Raises:
            InputError: for an unknown role.
        """
        token_ids, loss_mask = [self.document_id], [0]
        for role, content in zip(roles, contents, strict=True):
            if role not in self.role_ids:
                raise InputError(
                    f"role {role!r} is unknown; roles are {', '.join(ROLES)}."
                )
            is_trained = int(role == "assistant")
            token_ids += [self.role_ids[role], *content, self.end_id]
            loss_mask += [0, *[is_trained] * (len(content) + 1)]
        return token_ids, loss_mask

    def prompt_strings(self, roles, contents):
        """Returns prompts of a batch of conversations, in graph code.

        Args:
            roles: string (batch, turns). "" after the last turn of a row.
            contents: string (batch, turns).

        Returns:
            int32 RaggedTensor (batch, None): the ids of `prompt`, row by row.

        Raises:
            tf.errors.InvalidArgumentError: for an unknown role.
        """
        names = tf.constant(ROLES)
        ids = tf.constant([self.role_ids[role] for role in ROLES])
        is_role = tf.equal(roles[:, :, None], names)
        is_turn = tf.not_equal(roles, "")
        with tf.control_dependencies(
            [
                tf.debugging.Assert(
                    tf.reduce_all(tf.reduce_any(is_role, axis=2) == is_turn),
                    [f"roles must be one of {', '.join(ROLES)}"],
                )
            ]
        ):
            role_ids = tf.reduce_sum(tf.where(is_role, ids, 0), axis=2)
        row_lengths = tf.reduce_sum(tf.cast(is_turn, tf.int64), axis=1)
        flat_roles = tf.boolean_mask(role_ids, is_turn)
        encoded = self.tokenizer.encode_strings(
            tf.boolean_mask(contents, is_turn)
        )
        turns = tf.concat(
            [
                flat_roles[:, None],
                encoded,
                tf.fill([tf.size(flat_roles), 1], self.end_id),
            ],
            axis=1,
        )
        rows = tf.RaggedTensor.from_row_lengths(turns, row_lengths)
        batch_size = tf.shape(roles)[0]
        return tf.concat(
            [
                tf.fill([batch_size, 1], self.document_id),
                rows.merge_dims(1, 2),
                tf.fill([batch_size, 1], self.role_ids["assistant"]),
            ],
            axis=1,
        )
