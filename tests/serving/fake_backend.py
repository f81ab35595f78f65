"""A Backend without a model, whose answers a test can write down."""

import asyncio
import itertools
import math

from kerasgpt.serving.backend import (
    MAX_TOP_TOKENS,
    Backend,
    GeneratedToken,
    TokenScore,
)
from kerasgpt.tokenizers.chat_template import ROLES
from kerasgpt.tokenizers.tokenizer import CONTROL_TOKENS

FIRST_BYTE = len(CONTROL_TOKENS)


class FakeBackend(Backend):
    """Ids are bytes, as ByteTokenizer's; every request gets `reply`.

    A `{seed}` in the reply is filled in. How likely a token is depends on it
    and on the one before it.

    Args:
        reply: str.
        batch_tokens: int, tokens told at a time.
        error: an exception raised after `error_after` batches.
        hangs_after: int. Batches after which no more comes; None = never.
    """

    def __init__(
        self,
        reply="Yes, we do.",
        *,
        batch_tokens=1,
        error=None,
        error_after=0,
        hangs_after=None,
        context_length=256,
        max_new_tokens=128,
        has_top=True,
    ):
        self.reply = reply
        self.batch_tokens = batch_tokens
        self.error = error
        self.error_after = error_after
        self.hangs_after = hangs_after
        self.context_length = context_length
        self.max_new_tokens = max_new_tokens
        self.has_top = has_top
        self.vocabulary_size = FIRST_BYTE + 256
        self.control_ids = {
            name: index for index, name in enumerate(CONTROL_TOKENS)
        }
        self.landmarks = {
            "document_id": self.control_ids["<|document|>"],
            "document_end_id": self.control_ids["<|end_of_document|>"],
            "end_id": self.control_ids["<|end_of_turn|>"],
            "chat_id": self.control_ids["<|assistant|>"],
        }
        self.requests = []
        self.num_open = 0

    async def encode(self, texts):
        return [[FIRST_BYTE + b for b in text.encode()] for text in texts]

    async def encode_chat(self, messages):
        ids = [self.control_ids["<|document|>"]]
        for message in messages:
            assert message["role"] in ROLES
            ids.append(self.control_ids[f"<|{message['role']}|>"])
            ids += (await self.encode([message["content"]]))[0]
            ids.append(self.control_ids["<|end_of_turn|>"])
        return [*ids, self.control_ids["<|assistant|>"]]

    async def decode(self, rows):
        return [
            bytes(i - FIRST_BYTE for i in row if i >= FIRST_BYTE).decode(
                errors="replace"
            )
            for row in rows
        ]

    def scored(self, before, token_id):
        """Returns the (log_probability, top) of a token."""
        # Likely at will: a fifth of all pairs are the likeliest.
        rank = (before * 7 + token_id * 3) % 5
        ids = [(token_id + 11 * (r - rank)) % 265 for r in range(5)]
        top = tuple(
            (one, -0.5 * (r + 1)) for r, one in enumerate(ids[:MAX_TOP_TOKENS])
        )
        # A little off, as another kernel would compute it.
        value = math.nextafter(-0.5 * (rank + 1), 0)
        return value, top if self.has_top else ()

    async def generate(self, request):
        self.requests.append(request)
        self.num_open += 1
        try:
            async for batch in self._batches(request):
                yield batch
        finally:
            self.num_open -= 1

    async def _batches(self, request):
        reply = self.reply.replace("{seed}", str(request.seed))
        (ids,) = await self.encode([reply])
        limit = min(
            request.max_new_tokens,
            self.context_length - len(request.token_ids),
        )
        entries, before = [], request.token_ids[-1]
        for token_id in [*ids, request.stop_id][:limit]:
            reason = "stop" if token_id == request.stop_id else None
            entries.append(
                GeneratedToken(token_id, *self.scored(before, token_id), reason)
            )
            before = token_id
        if not entries[-1].finish_reason:
            entries[-1] = entries[-1]._replace(finish_reason="length")
        for number, start in enumerate(
            range(0, len(entries), self.batch_tokens)
        ):
            if self.error and number == self.error_after:
                raise self.error
            if number == self.hangs_after:
                await asyncio.Event().wait()
            await asyncio.sleep(0)
            yield entries[start : start + self.batch_tokens]

    async def score(self, rows):
        if self.error:
            raise self.error
        return [
            [
                TokenScore(None, ()),
                *(
                    TokenScore(*self.scored(before, token_id))
                    for before, token_id in itertools.pairwise(row)
                ),
            ]
            for row in rows
        ]
