"""Owns what a source of tokens promises. Not: a source, nor a protocol."""

import abc
import dataclasses
from typing import NamedTuple

# As many as OpenAI's completions report for a token.
MAX_TOP_TOKENS = 5


class QueueFull(Exception):
    """The waiting room is full; the client may come back.

    Args:
        retry_after_s: float. Seconds until a place is likely to be free.
    """

    def __init__(self, retry_after_s):
        super().__init__("the server is busy; try again later")
        self.retry_after_s = retry_after_s


class DeadlineExceeded(Exception):
    """The answer was not ready in time."""


class Unavailable(Exception):
    """The model was retired, or the server behind this one is away."""


@dataclasses.dataclass(frozen=True)
class GenerationRequest:
    """A prompt and how to continue it.

    Attributes:
        token_ids: tuple of int. The prompt, control ids included; at least 1
            and fewer than the context.
        max_new_tokens: int, at least 1. Cut to what the context still holds.
        stop_id: int. The control id that ends the answer; not returned. No
            other control id is ever generated.
        temperature, top_k, top_p, min_p, repetition_penalty,
            frequency_penalty, presence_penalty, seed: see `SamplerSettings`.
        deadline_s: float or None. Seconds from submission until
            `DeadlineExceeded`.
        wants_top: bool. Whether the likeliest tokens are to be told, too.
    """

    token_ids: tuple
    max_new_tokens: int
    stop_id: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0
    deadline_s: float | None = None
    wants_top: bool = True


class GeneratedToken(NamedTuple):
    """A token of an answer.

    Attributes:
        token_id: int.
        log_probability: float. Natural logarithm, under the model itself:
            before temperature, filters and penalties.
        top: tuple of (token_id, log_probability), the `MAX_TOP_TOKENS`
            likeliest, the likeliest first; empty where not known or not
            wanted.
        finish_reason: None, "stop" or "length": not None at the last one.
            A stop id is told by an entry of its own with token_id = stop_id
            and finish_reason "stop", which is no part of the answer.
    """

    token_id: int
    log_probability: float
    top: tuple
    finish_reason: str | None


class TokenScore(NamedTuple):
    """How likely a token of a given text was.

    Attributes:
        log_probability: float, or None for the first token.
        top: as of `GeneratedToken`; empty for the first token.
    """

    log_probability: float | None
    top: tuple


class Backend(abc.ABC):
    """A model that continues and scores token ids.

    Attributes:
        context_length: int, tokens of prompt and answer together.
        max_new_tokens: int. The most that one request may ask for.
        vocabulary_size: int.
        control_ids: dict from the text of a control token, such as
            "<|end_of_turn|>", to its id; of a stock server those of our own
            tokenizers, or none.
        landmarks: dict of int, see `ChatTemplate.landmarks`.
    """

    def stop_id(self, token_ids):
        """Returns the id that ends an answer, as `ChatTemplate.stop_ids`."""
        chat_id = self.landmarks["chat_id"]
        is_chat = chat_id < 0 or chat_id in token_ids
        return self.landmarks["end_id" if is_chat else "document_end_id"]

    @abc.abstractmethod
    async def encode(self, texts):
        """Returns the ids of each str: no control id, whatever is typed.

        Args:
            texts: list of str without lone surrogates.

        Returns:
            list of lists of int.
        """

    @abc.abstractmethod
    async def encode_chat(self, messages):
        """Returns the prompt of a conversation, up to the assistant's turn.

        Args:
            messages: list of {"role", "content"}, roles as in
                `chat_template.ROLES`.

        Returns:
            list of int.
        """

    @abc.abstractmethod
    async def decode(self, rows):
        """Returns the text of each list of ids; control ids have none.

        Returns:
            list of str. A character of which only a part is there ends as
            U+FFFD.
        """

    @abc.abstractmethod
    def generate(self, request):
        """Yields the answer's tokens as they come, several at a time.

        Closing the generator cancels the request.

        Args:
            request: GenerationRequest.

        Yields:
            non-empty list of GeneratedToken.

        Raises:
            QueueFull, DeadlineExceeded, Unavailable.
        """

    @abc.abstractmethod
    async def score(self, rows):
        """Returns how likely each token of each row was.

        Args:
            rows: list of lists of int, each 1 to `context_length` ids.

        Returns:
            list of lists of TokenScore.

        Raises:
            QueueFull, DeadlineExceeded, Unavailable.
        """
