"""Owns conversation -> ids and loss mask. Not: which text stands where."""

import re

import numpy as np
import tensorflow as tf

from kerasgpt.config import InputError
from kerasgpt.tokenizers.chat_format import ROLES, build_chat_format

# What `str.strip` takes away, of which `tf.strings.strip` knows six.
_WHITE_SPACE = "".join(
    character for character in map(chr, range(0x3001)) if character.isspace()
)


class ChatTemplate(tf.Module):
    """Turns messages into ids; content stays text, structure is added by id.

    With our own template a conversation is `<|document|>`, then for each turn
    the role's control id, the ids of the content and `<|end_of_turn|>`.
    Trained are the ids of assistant contents and what closes them, up to the
    control id that ends a turn:

        user "hi", assistant "yo"
          token_ids  <|document|> <|user|> h i <|end_of_turn|>
                     <|assistant|> y o <|end_of_turn|>
          loss_mask  0 0 0 0 0   0 1 1 1

    A control token's text becomes its id where the template writes it, and
    never in a content. Contents are encoded on their own, so that ids of some
    turns are how the ids of more turns begin, whatever comes next.

    A template may mark turns by plain text, as Alpaca's "### Response:" does.
    Nothing tells such a mark from the same text in a content, so a content
    that holds one is refused.

    Args:
        tokenizer: Tokenizer.
        chat_format: ChatFormat. `None` = the tokenizer's, or else ours.

    Attributes:
        control_ids: dict from the text of a control token to its id.
        document_id, document_end_id: int. Around a document.
        end_id: int. Ends an answer.
        chat_id: int. The first control id of `before["assistant"]`: a row
            that holds it is a conversation. `None` if there is none.

    Raises:
        InputError: if the tokenizer lacks a control token of the template.

    Example:
        >>> from kerasgpt.tokenizers.byte import ByteTokenizer
        >>> template = ChatTemplate(ByteTokenizer())
        >>> template.render([{"role": "user", "content": "A"},
        ...                  {"role": "assistant", "content": "B"}])
        ([2, 5, 74, 8, 6, 75, 8], [0, 0, 0, 0, 0, 1, 1])
        >>> template.prompt([{"role": "user", "content": "A"}])
        [2, 5, 74, 8, 6]
    """

    def __init__(self, tokenizer, chat_format=None):
        super().__init__(name="chat_template")
        self.control_ids = known = dict(tokenizer.control_tokens)
        if chat_format is None:
            chat_format = tokenizer.chat_format
        if chat_format is None:
            chat_format = build_chat_format("kerasgpt", known)
        self.tokenizer = tokenizer
        self.format = chat_format
        for token in chat_format.control_tokens:
            if token not in known:
                raise InputError(
                    f"chat template {chat_format.name!r} needs the control "
                    f"token {token!r}, which this tokenizer has not; it has "
                    f"{', '.join(known)}."
                )
        self.document_id = known[chat_format.document]
        self.document_end_id = known[chat_format.document_end]
        self.end_id = known[chat_format.end]
        self._before, self._after = (
            {role: literal_ids(tokenizer, pieces[role]) for role in self.roles}
            for pieces in (chat_format.before, chat_format.after)
        )
        self._starts = {
            text: literal_ids(tokenizer, text)
            for text in (
                chat_format.opening,
                chat_format.opening + chat_format.default_system,
            )
        }
        self._num_trained_after = 1 + self._after["assistant"].index(
            self.end_id
        )
        ids = set(known.values())
        controls = [i for i in self._before["assistant"] if i in ids]
        self.chat_id = controls[0] if controls else None
        literals = {*chat_format.before.values(), *chat_format.after.values()}
        self._marks = tuple(
            sorted(
                {
                    text.strip()
                    for text in literals
                    if ids.isdisjoint(literal_ids(tokenizer, text))
                }
                - {""}
            )
        )
        self._require_whole_marks()

    @property
    def roles(self):
        """Tuple of str, those of `ROLES` that the template has."""
        return tuple(role for role in ROLES if role in self.format.before)

    @property
    def marks(self):
        """Tuple of str. Texts that no content may hold."""
        return tuple(self._marks)

    @property
    def landmarks(self):
        """Dict of ids by which others find their way; -1 = there is none."""
        return {
            "document_id": self.document_id,
            "document_end_id": self.document_end_id,
            "end_id": self.end_id,
            "chat_id": -1 if self.chat_id is None else self.chat_id,
        }

    def render(self, messages):
        """Returns (token_ids, loss_mask), lists of int, of a conversation.

        Raises:
            InputError: for an unknown role, or a content that holds a mark.
        """
        contents = [
            self.tokenizer.encode(self.content(message)) for message in messages
        ]
        return self.join([m["role"] for m in messages], contents)

    def prompt(self, messages):
        """Returns ids up to the point where the assistant starts to speak."""
        token_ids, _ = self.render(messages)
        return [*token_ids, *self._before["assistant"]]

    def content(self, message):
        """Returns the text that the template encodes as a turn's content.

        Raises:
            InputError: for an unknown role, or if it holds a mark.
        """
        role, text = message["role"], message["content"]
        self.format.require_roles([role])
        for mark in self._marks:
            if mark in text:
                raise InputError(
                    f"the content of a {role} turn holds {mark!r}, which marks "
                    f"a turn of the chat template {self.format.name!r}."
                )
        return text.strip() if role in self.format.stripped_roles else text

    def join(self, roles, contents):
        """Returns (token_ids, loss_mask) of turns whose contents are encoded.

        Args:
            roles: list of str, one a turn.
            contents: list of lists of int, one a turn, the ids of `content`.

        Raises:
            InputError: for an unknown role.
        """
        token_ids = self._start_ids(roles)
        loss_mask = [0] * len(token_ids)
        for role, content in zip(roles, contents, strict=True):
            before, after = self._before[role], self._after[role]
            num_trained = 0
            if role == "assistant":
                num_trained = len(content) + self._num_trained_after
            token_ids += [*before, *content, *after]
            loss_mask += [0] * len(before) + [1] * num_trained
            loss_mask += [0] * (len(token_ids) - len(loss_mask))
        return token_ids, loss_mask

    def turn_ends(self, roles, lengths):
        """Returns how many ids a conversation has up to each turn's end.

        Args:
            roles: list of str, one a turn.
            lengths: list of int, ids of each content.

        Returns:
            int64 (turns,).

        Raises:
            InputError: for an unknown role.
        """
        start = len(self._start_ids(roles))
        return start + np.cumsum(
            [
                len(self._before[role]) + length + len(self._after[role])
                for role, length in zip(roles, lengths, strict=True)
            ],
            dtype=np.int64,
        )

    def prompt_strings(self, roles, contents):
        """Returns prompts of a batch of conversations, in graph code.

        Args:
            roles: string (batch, turns). "" after the last turn of a row.
            contents: string (batch, turns).

        Returns:
            int32 RaggedTensor (batch, None): the ids of `prompt`, row by row.

        Raises:
            tf.errors.InvalidArgumentError: for an unknown role, or a content
                that holds a mark.
        """
        is_role = tf.equal(roles[:, :, None], tf.constant(self.roles))
        is_turn = tf.not_equal(roles, "")
        contents = tf.where(is_turn, contents, "")
        checks = [
            tf.debugging.Assert(
                tf.reduce_all(tf.reduce_any(is_role, axis=2) == is_turn),
                [f"roles must be one of {', '.join(self.roles)}"],
            )
        ]
        if self._marks:
            marks = "|".join(map(re.escape, self._marks))
            holds_mark = tf.strings.regex_full_match(
                contents, f"(?s).*(?:{marks}).*"
            )
            checks.append(
                tf.debugging.Assert(
                    tf.logical_not(tf.reduce_any(holds_mark)),
                    [
                        f"a content must not hold a mark of the chat template: "
                        f"{', '.join(self._marks)}"
                    ],
                )
            )
        with tf.control_dependencies(checks):
            index = tf.argmax(is_role, axis=2, output_type=tf.int32)
        index = tf.boolean_mask(index, is_turn)
        texts = tf.boolean_mask(contents, is_turn)
        if self.format.stripped_roles:
            is_stripped = tf.constant(
                [role in self.format.stripped_roles for role in self.roles]
            )
            ends = f"^[{_WHITE_SPACE}]+|[{_WHITE_SPACE}]+$"
            texts = tf.where(
                tf.gather(is_stripped, index),
                tf.strings.regex_replace(texts, ends, ""),
                texts,
            )
        turns = tf.concat(
            [
                _rows([self._before[role] for role in self.roles], index),
                self.tokenizer.encode_strings(texts),
                _rows([self._after[role] for role in self.roles], index),
            ],
            axis=1,
        )
        row_lengths = tf.reduce_sum(tf.cast(is_turn, tf.int64), axis=1)
        rows = tf.RaggedTensor.from_row_lengths(turns, row_lengths)
        # Any: there may be no turn at all.
        has_system = tf.reduce_any(tf.equal(roles[:, :1], "system"), axis=1)
        opening = self.format.opening
        starts = (opening + self.format.default_system, opening)
        start = tf.cast(has_system, tf.int32)
        answer = [self._before["assistant"]]
        return tf.concat(
            [
                _rows([self._starts[text] for text in starts], start),
                rows.merge_dims(1, 2),
                _rows(answer, tf.zeros_like(start)),
            ],
            axis=1,
        )

    def stop_ids(self, prompts):
        """Returns the id that ends what is generated after each prompt.

        A conversation is known by `chat_id`; without one, every prompt is
        taken for a conversation.

        Args:
            prompts: int32 RaggedTensor (batch, None).

        Returns:
            int32 (batch,).
        """
        if self.chat_id is None:
            return tf.fill([prompts.nrows(tf.int32)], self.end_id)
        is_chat = tf.reduce_any(tf.equal(prompts, self.chat_id), axis=1)
        return tf.where(is_chat, self.end_id, self.document_end_id)

    def _start_ids(self, roles):
        return [*self._starts[self.format.start_text(roles)]]

    def _require_whole_marks(self):
        """Refuses a template that could complete a mark a content begins."""
        starts = [self.format.before[role] for role in self.roles]
        ends = [self.format.after[role] for role in self.roles]
        for mark in self._marks:
            for cut in range(1, len(mark)):
                if any(one.endswith(mark[:cut]) for one in starts) or any(
                    one.startswith(mark[cut:]) for one in ends
                ):
                    raise InputError(
                        f"chat template {self.format.name!r}: a content could "
                        f"complete its mark {mark!r}; begin turns with a "
                        f"control token."
                    )


def _rows(table, index):
    """Returns the int32 RaggedTensor of some rows of a list of lists."""
    rows = tf.RaggedTensor.from_row_lengths(
        tf.constant([i for row in table for i in row], tf.int32),
        tf.constant([len(row) for row in table], tf.int64),
    )
    return tf.gather(rows, index)


def literal_ids(tokenizer, text):
    """Returns the ids of a text that a template writes, a list of int.

    The text of a control token becomes its id; the longest one counts.
    """
    known = tokenizer.control_tokens
    longest_first = sorted(known, key=len, reverse=True)
    pattern = f"({'|'.join(map(re.escape, longest_first))})"
    token_ids = []
    for part in re.split(pattern, text):
        if part in known:
            token_ids.append(known[part])
        elif part:
            token_ids += tokenizer.encode(part)
    return token_ids
