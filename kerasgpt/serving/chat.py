"""Owns the chat in the terminal. Not: how a reply is generated."""

import functools
import sys

from kerasgpt.config import InputError
from kerasgpt.data.formats import is_unicode
from kerasgpt.serving.client import ServerError
from kerasgpt.tokenizers.chat_template import ChatTemplate
from kerasgpt.tokenizers.tokenizer import Tokenizer


def tell(text):
    """Writes to standard output at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def chat(generator, *, system="", read=input, write=tell, **options):
    """Talks with the user until they leave, replies streaming as they come.

    The conversation is kept; when it fills the context, its oldest turns are
    dropped, which is said. When a server fails to answer a message, that is
    told, and the conversation is as if the message had not been sent.

    Args:
        generator: Generator or RemoteGenerator.
        system: str, first message of the conversation, if not empty.
        read: function of a prompt, returns a line; EOFError ends the chat.
        write: function of one str.
        **options: see `Generator.reply`.
    """
    write("Type a message; /new starts over, /quit leaves.\n")
    write("输入消息开始对话；/new 重新开始，/quit 退出。\n")
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    while True:
        try:
            text = read("> ").strip()
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return
        except UnicodeDecodeError:
            text = "\udcff"
        if not is_unicode(text):
            write("(the message is no valid UTF-8)\n")
            continue
        if text == "/quit":
            return
        if text == "/new":
            messages = list(opening)
            continue
        if not text:
            continue
        messages.append({"role": "user", "content": text})
        pieces = []
        try:
            kept = fit_context(generator, messages, num_fixed=len(opening))
            if kept is None:
                write(
                    f"(too long: a message of this model has at most "
                    f"{generator.context_length} tokens)\n"
                )
                messages.pop()
                continue
            if len(kept) < len(messages):
                write("(the oldest turns no longer fit and were dropped)\n")
            messages = kept
            for piece in generator.stream(messages, **options):
                pieces.append(piece)
                write(piece)
        except KeyboardInterrupt:
            write(" (stopped)")
        except ServerError as error:
            write(f"\n({error})\n")
            messages.pop()
            continue
        write("\n")
        messages.append({"role": "assistant", "content": "".join(pieces)})


def fit_context(generator, messages, *, num_fixed=0, room=32):
    """Returns the messages without the oldest turns that do not fit.

    Args:
        generator: Generator.
        messages: list of messages.
        num_fixed: int. So many messages at the start always stay.
        room: int, tokens kept free for the reply.

    Returns:
        list of messages, or None if even the last one is too long.
    """
    fixed, turns = messages[:num_fixed], list(messages[num_fixed:])
    while turns:
        prompt = generator.template.prompt([*fixed, *turns])
        if len(prompt) + room <= generator.context_length:
            return [*fixed, *turns]
        turns.pop(0)
        # A conversation begins with the user's turn.
        while turns and turns[0]["role"] != "user":
            turns.pop(0)
    return None


class RemoteGenerator:
    """A server's model in the place of a `Generator`, for `chat`.

    Args:
        client: OpenAIClient of a server of ours.
        model: str. `None` = the first that the server names.

    Attributes:
        template: ChatTemplate, whose tokenizer is the server's.
        context_length: int.

    Raises:
        ServerError: if there is no such server or model.
    """

    def __init__(self, client, *, model=None):
        if model is None:
            model = next(iter(client.models()), None)
        if model is None:
            raise InputError(f"{client.url}: serves no model.")
        self._client = client
        self._model = model
        self.context_length = client.context_length(model=model)
        self.template = ChatTemplate(_RemoteTokenizer(client, model))

    def stream(self, messages, *, max_new_tokens=None, **sampling):
        """Yields the assistant's next turn; see `Generator.stream`.

        Without `max_new_tokens` it has as many as the server allows.
        """
        if max_new_tokens is not None:
            # The server refuses what does not fit.
            room = self.context_length - len(self.template.prompt(messages))
            sampling["max_tokens"] = min(max_new_tokens, room)
        return self._client.stream_chat(messages, model=self._model, **sampling)


class _RemoteTokenizer:
    control_tokens = Tokenizer.control_tokens
    chat_format = None

    def __init__(self, client, model):
        # The turns of a conversation are asked for again with each new one.
        self.encode = functools.lru_cache(maxsize=256)(
            functools.partial(client.tokenize, model=model)
        )


def tell_conversation(generator, texts, *, write=tell):
    """Writes a conversation in which the user says `texts`, one a turn.

    It ends early with a text that does not fit the context.
    """
    messages = []
    for text in texts:
        messages.append({"role": "user", "content": text})
        kept = fit_context(generator, messages)
        if kept is None:
            write(f"  > {text}\n    (too long for the model's context)\n")
            return
        (reply,) = generator.reply([kept], max_new_tokens=64)
        messages = [*kept, {"role": "assistant", "content": reply}]
        write(f"  > {text}\n    {reply}\n")
