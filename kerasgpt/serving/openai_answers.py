"""Owns answers in OpenAI's words: text, chunks, probabilities. Not: routes."""

import asyncio
import collections
import contextlib
from typing import NamedTuple

from kerasgpt.serving.backend import Unavailable
from kerasgpt.serving.text_stream import TextStream

# JSON has no infinity; OpenAI tells such probabilities so, too.
_LEAST = -9999.0


class Piece(NamedTuple):
    """What an answer gained.

    Attributes:
        text: str.
        entries: list of Entry, offsets within the answer, whose characters
            begin in this text or before; empty unless asked for.
        num_tokens: int. Generated for it, the stop id not counted.
        finish_reason: None, "stop" or "length": not None in the last piece.
    """

    text: str
    entries: list
    num_tokens: int
    finish_reason: str | None


async def answer_pieces(
    backend, request, stops, *, has_entries, is_streamed=True
):
    """Yields the Pieces of an answer; closing it cancels the request.

    Args:
        backend: Backend.
        request: GenerationRequest.
        stops: tuple of str.
        has_entries: bool. Whether the Pieces hold entries.
        is_streamed: bool. Somebody reads the Pieces as they come; otherwise,
            and where no stop string may end it, the answer is one Piece:
            decoding ids to text in between takes the model's time.

    Raises:
        QueueFull, DeadlineExceeded, Unavailable.
    """
    stream = TextStream(backend.decode, stops=stops)
    waiting = collections.deque()
    num_told = 0
    async with contextlib.aclosing(backend.generate(request)) as batches:
        if not is_streamed and not stops:
            batches = _joined(batches)
        async for batch in batches:
            finish_reason = batch[-1].finish_reason
            answer = [one for one in batch if one.finish_reason != "stop"]
            # One at a time, each is known to begin where the last one ended.
            groups = [[one] for one in answer] if has_entries else [answer]
            text, num_tokens = "", 0
            for group in filter(None, groups):
                waiting.append(_entry(stream, group[0]))
                text += await stream.push([one.token_id for one in group])
                num_tokens += len(group)
                if stream.is_stopped:
                    break
            if finish_reason:
                text += stream.finish()
            if finish_reason == "stop":
                waiting.append(_entry(stream, batch[-1]))
            if stream.is_stopped:
                finish_reason = "stop"
            num_told += len(text)
            is_whole = finish_reason and not stream.is_stopped
            entries = []
            while waiting and (is_whole or waiting[0].offset < num_told):
                entries.append(waiting.popleft())
            yield Piece(
                text,
                entries if has_entries else [],
                num_tokens,
                finish_reason,
            )
            if finish_reason:
                return
    raise Unavailable("the answer broke off")


async def _joined(batches):
    """Yields all tokens at once, when the last of them has come."""
    tokens = [token async for batch in batches for token in batch]
    if tokens:
        yield tokens


def _entry(stream, token):
    return Entry(
        stream.num_characters,
        token.token_id,
        token.log_probability,
        token.top,
        is_stop=token.finish_reason == "stop",
    )


async def merged(generators, max_parallel):
    """Yields (index, item) of async generators that run at once.

    Closing it closes them all.

    Args:
        generators: list of async generators.
        max_parallel: int. So many run at a time.
    """
    # Small: who reads slowly is generated for slowly.
    arrivals = asyncio.Queue(maxsize=len(generators))
    slots = asyncio.Semaphore(max_parallel)

    async def run(index, generator):
        try:
            async with slots, contextlib.aclosing(generator):
                async for item in generator:
                    await arrivals.put((index, item, None))
            await arrivals.put((index, None, None))
        except Exception as error:
            await arrivals.put((index, None, error))

    tasks = [
        asyncio.ensure_future(run(index, generator))
        for index, generator in enumerate(generators)
    ]
    try:
        num_running = len(tasks)
        while num_running:
            index, item, error = await arrivals.get()
            if error:
                raise error
            if item is None:
                num_running -= 1
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def no_pieces():
    """Yields the only Piece of an answer of no token."""
    yield Piece("", [], 0, "length")


class TokenNames:
    """Names the tokens of a backend, no two alike, each asked for once.

    A token's name is its text if that text is encoded as this one token;
    "token_id:" and its id otherwise, as for half characters. Control tokens
    are named as in `Backend.control_ids`.

    Args:
        backend: Backend.
        known: dict from id to name, {} at first; what is found is added.
    """

    def __init__(self, backend, known):
        self._backend = backend
        self._names = known
        for name, token_id in backend.control_ids.items():
            known[token_id] = name

    async def look_up(self, token_ids):
        """Returns a dict from id to name that holds at least these ids."""
        unknown = list(set(token_ids) - self._names.keys())
        if unknown:
            texts = await self._backend.decode([[one] for one in unknown])
            # A name must lead back to its id: that keeps names apart.
            found = await self._backend.encode(texts)
            for token_id, text, ids in zip(unknown, texts, found, strict=True):
                is_name = ids == [token_id] and not (
                    text in self._backend.control_ids
                    or text.startswith("token_id:")
                    or "\ufffd" in text
                )
                self._names[token_id] = (
                    text if is_name else f"token_id:{token_id}"
                )
        return self._names

    def is_text(self, name):
        """Returns whether a name is the token's text."""
        is_control = name in self._backend.control_ids
        return not is_control and not name.startswith("token_id:")


class Entry(NamedTuple):
    """A token with its place in the text and its probability.

    Attributes:
        offset: int, characters before it.
        token_id: int.
        log_probability: float, or None for the first token of a prompt.
        top: as of GeneratedToken.
        is_stop: bool.
    """

    offset: int
    token_id: int
    log_probability: float | None
    top: tuple
    is_stop: bool = False

    def values(self, num_top):
        """Returns the token's value, and a dict from the likeliest to theirs.

        The token's own is taken from among the likeliest where it is there:
        who compares it with the largest finds equal floats.
        """
        ranked = {one: max(value, _LEAST) for one, value in self.top}
        own = ranked.get(self.token_id)
        if own is None and self.log_probability is not None:
            own = max(self.log_probability, _LEAST)
        return own, dict(list(ranked.items())[:num_top])

    def ids(self):
        """Returns all ids that need a name."""
        return [self.token_id, *(token_id for token_id, _ in self.top)]


class ChatForm:
    """How answers to a conversation are spelled.

    Args:
        names: TokenNames.
        fields: dict of all fields of the request.

    Attributes:
        has_entries: bool. Whether probabilities were asked for.
    """

    id_prefix = "chatcmpl-"
    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"
    ending = {"delta": {}}

    def __init__(self, names, fields):
        self._names = names
        self._num_top = fields["top_logprobs"]
        self.has_entries = fields["logprobs"]

    def opening(self, prompt):
        return {"delta": {"role": "assistant", "content": ""}}

    def part(self, text):
        return {"delta": {"content": text}}

    def whole(self, prompt, text):
        return {"message": {"role": "assistant", "content": text}}

    async def logprobs(self, entries):
        entries = [entry for entry in entries if not entry.is_stop]
        names = await self._names.look_up(
            token_id for entry in entries for token_id in entry.ids()
        )
        content = []
        for entry in entries:
            own, ranked = entry.values(self._num_top)
            content.append(
                {
                    **self._token(names[entry.token_id], own),
                    "top_logprobs": [
                        self._token(names[token_id], value)
                        for token_id, value in ranked.items()
                    ],
                }
            )
        return {"content": content, "refusal": None}

    def _token(self, name, value):
        is_text = self._names.is_text(name)
        return {
            "token": name,
            "logprob": value,
            "bytes": list(name.encode()) if is_text else None,
        }


class CompletionForm:
    """How continuations of a text are spelled; for the rest see ChatForm."""

    id_prefix = "cmpl-"
    whole_object = chunk_object = "text_completion"
    ending = {"text": ""}

    def __init__(self, names, fields):
        self._names = names
        self._num_top = fields["logprobs"]
        self.has_entries = fields["logprobs"] is not None

    def opening(self, prompt):
        return {"text": prompt.echo} if prompt.echo or prompt.entries else None

    def part(self, text):
        return {"text": text}

    def whole(self, prompt, text):
        return {"text": prompt.echo + text}

    async def logprobs(self, entries):
        names = await self._names.look_up(
            token_id for entry in entries for token_id in entry.ids()
        )
        told = {
            "tokens": [names[entry.token_id] for entry in entries],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [entry.offset for entry in entries],
        }
        for entry in entries:
            own, ranked = entry.values(self._num_top)
            told["token_logprobs"].append(own)
            # Null rather than a map without the likeliest token, in which
            # every token would seem to be it.
            is_known = own is not None and (ranked or not self._num_top)
            told["top_logprobs"].append(
                {names[one]: value for one, value in ranked.items()}
                | {names[entry.token_id]: own}
                if is_known
                else None
            )
        return told


class Prompt(NamedTuple):
    """What is continued.

    Attributes:
        token_ids: tuple of int.
        echo: str. Repeated before the answer.
        entries: tuple of Entry. Told before those of the answer.
    """

    token_ids: tuple
    echo: str = ""
    entries: tuple = ()


class Usage:
    """Counts the tokens of a request, for the client and for the log.

    Args:
        prompts: list of Prompt.
        record: dict of what is logged of the request.
    """

    def __init__(self, prompts, record):
        self._num_prompt_tokens = sum(len(one.token_ids) for one in prompts)
        self._num_new_tokens = 0
        self._record = record
        self.add(0)

    def add(self, num_tokens):
        self._num_new_tokens += num_tokens
        self._record["prompt_tokens"] = self._num_prompt_tokens
        self._record["completion_tokens"] = self._num_new_tokens

    def told(self):
        return {
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": self._num_new_tokens,
            "total_tokens": self._num_prompt_tokens + self._num_new_tokens,
        }


async def told_at_once(arrivals, choices, form, head, usage):
    """Returns the reply of a request that does not stream.

    Args:
        arrivals: async generator of `merged` over `answer_pieces`.
        choices: list of Prompt, one an answer.
        form: ChatForm or CompletionForm.
        head: dict, the fields that all replies begin with.
        usage: Usage.

    Returns:
        dict, JSON.
    """
    texts = [""] * len(choices)
    entries = [list(prompt.entries) for prompt in choices]
    finish_reasons = [None] * len(choices)
    async with contextlib.aclosing(arrivals):
        async for index, piece in arrivals:
            texts[index] += piece.text
            entries[index] += _moved(piece.entries, choices[index])
            finish_reasons[index] = piece.finish_reason
            usage.add(piece.num_tokens)
    told = [
        {
            "index": index,
            **form.whole(prompt, texts[index]),
            "logprobs": await form.logprobs(entries[index])
            if form.has_entries
            else None,
            "finish_reason": finish_reasons[index],
        }
        for index, prompt in enumerate(choices)
    ]
    return {**head, "choices": told, "usage": usage.told()}


async def told_by_and_by(
    first, arrivals, choices, form, head, usage, *, has_usage
):
    """Yields the chunks of a request that streams, as dicts.

    Args:
        first: the first of the arrivals, which was waited for already.
        arrivals, choices, form, head, usage: see `told_at_once`.
        has_usage: bool. Whether the last chunk tells the usage.
    """
    empty_usage = {"usage": None} if has_usage else {}

    async def chunk(index, content, entries=(), finish_reason=None):
        choice = {
            "index": index,
            **content,
            "logprobs": await form.logprobs(entries) if entries else None,
            "finish_reason": finish_reason,
        }
        return {**head, "choices": [choice], **empty_usage}

    for index, prompt in enumerate(choices):
        opening = form.opening(prompt)
        if opening:
            yield await chunk(index, opening, prompt.entries)
    async for index, piece in _chained(first, arrivals):
        usage.add(piece.num_tokens)
        entries = _moved(piece.entries, choices[index])
        if piece.text or entries:
            yield await chunk(index, form.part(piece.text), entries)
        if piece.finish_reason:
            yield await chunk(
                index, form.ending, finish_reason=piece.finish_reason
            )
    if has_usage:
        yield {**head, "choices": [], "usage": usage.told()}


async def _chained(first, others):
    yield first
    async for other in others:
        yield other


def _moved(entries, prompt):
    """Returns an answer's entries, placed behind what is echoed."""
    return [
        entry._replace(offset=entry.offset + len(prompt.echo))
        for entry in entries
    ]
