import asyncio
import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasgpt.serving.backend import GenerationRequest, Unavailable
from kerasgpt.serving.openai_answers import (
    CompletionForm,
    Entry,
    TokenNames,
    answer_pieces,
    merged,
    no_pieces,
)
from tests.serving.fake_backend import FIRST_BYTE, FakeBackend

TEXTS = st.text(st.sampled_from("ab 你😀"), max_size=12)


def gathered(backend, stops=(), *, has_entries=True, max_new_tokens=200):
    """Returns the pieces of an answer to a short prompt."""
    request = GenerationRequest((2, 80), max_new_tokens, 8)

    async def run():
        pieces = answer_pieces(backend, request, stops, has_entries=has_entries)
        return [piece async for piece in pieces]

    pieces = asyncio.run(run())
    assert backend.num_open == 0
    return pieces


@given(
    TEXTS,
    st.lists(st.text("ab 你", min_size=1, max_size=2), max_size=2),
    st.integers(1, 9),
    st.integers(1, 20),
)
def test_an_answer_does_not_depend_on_how_its_tokens_come(
    reply, stops, batch_tokens, max_new_tokens
):
    told = []
    for size in (1, batch_tokens):
        pieces = gathered(
            FakeBackend(reply, batch_tokens=size),
            tuple(stops),
            max_new_tokens=max_new_tokens,
        )
        assert all(piece.finish_reason is None for piece in pieces[:-1])
        told.append(
            (
                "".join(piece.text for piece in pieces),
                [entry for piece in pieces for entry in piece.entries],
                sum(piece.num_tokens for piece in pieces),
                pieces[-1].finish_reason,
            )
        )
    assert told[0] == told[1]
    text, entries, num_tokens, _ = told[0]
    assert not any(stop in text for stop in stops)
    assert num_tokens <= max_new_tokens
    # Characters begin within the text; only the end is behind it.
    assert all(
        entry.offset < len(text) for entry in entries if not entry.is_stop
    )


def test_entries_come_with_their_text():
    pieces = gathered(FakeBackend("a你b"))
    assert [piece.text for piece in pieces] == ["a", "", "", "你", "b", ""]
    offsets = [[one.offset for one in piece.entries] for piece in pieces]
    assert offsets == [[0], [], [], [1, 1, 1], [2], [3]]
    assert pieces[-1].entries[0].is_stop
    assert not any(
        piece.entries
        for piece in gathered(FakeBackend("a你b"), has_entries=False)
    )


def test_what_a_stop_string_cuts_has_no_entries():
    pieces = gathered(FakeBackend("abcd", batch_tokens=9), ("bc",))
    (piece,) = pieces
    assert (piece.text, piece.num_tokens) == ("a", 3)
    assert [one.offset for one in piece.entries] == [0]
    assert piece.finish_reason == "stop"


def test_an_answer_that_breaks_off_is_no_answer():
    class Broken(FakeBackend):
        async def generate(self, request):
            async for batch in super().generate(request):
                yield batch
                return

    with pytest.raises(Unavailable):
        gathered(Broken("long"))


def test_an_answer_of_no_token():
    async def run():
        return [piece async for piece in no_pieces()]

    (piece,) = asyncio.run(run())
    assert (piece.text, piece.finish_reason) == ("", "length")


class Source:
    """Async generators that tell whether they run."""

    def __init__(self):
        self.num_open = 0

    async def items(self, values, *, error=None):
        self.num_open += 1
        try:
            for value in values:
                await asyncio.sleep(0)
                yield value
            if error:
                raise error
        finally:
            self.num_open -= 1


def test_merged_items_keep_their_order_and_all_come():
    async def run():
        source = Source()
        generators = [source.items(range(length)) for length in (3, 0, 5)]
        told = [one async for one in merged(generators, 2)]
        assert source.num_open == 0
        return told

    told = asyncio.run(run())
    for index, length in enumerate((3, 0, 5)):
        assert [item for i, item in told if i == index] == list(range(length))


def test_all_are_closed_when_one_fails_or_the_reader_leaves():
    async def run():
        source = Source()
        generators = [
            source.items(range(1000)),
            source.items(range(3), error=ValueError("broken")),
        ]
        with pytest.raises(ValueError, match="broken"):
            async for _ in merged(generators, 9):
                pass
        assert source.num_open == 0
        both = merged([source.items(range(1000)) for _ in range(2)], 9)
        await anext(both)
        assert source.num_open == 2
        await both.aclose()
        assert source.num_open == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def test_a_token_is_named_by_what_leads_back_to_it():
    class Twins(FakeBackend):
        """Id 300 has the text of id 9 + 65, id 301 that of a control id."""

        async def decode(self, rows):
            texts = {300: "A", 301: "<|user|>", 302: "token_id:9"}
            return [
                texts.get(row[0]) or (await super(Twins, self).decode([row]))[0]
                for row in rows
            ]

        async def encode(self, texts):
            ids = {"<|user|>": [301], "token_id:9": [302]}
            return [
                ids.get(text) or (await super(Twins, self).encode([text]))[0]
                for text in texts
            ]

    backend = Twins()
    known = {}
    names = TokenNames(backend, known)
    asked = [5, FIRST_BYTE + 65, 300, 301, 302, FIRST_BYTE + 0xE4]
    told = asyncio.run(names.look_up(asked))
    assert [told[one] for one in asked] == [
        "<|user|>",
        "A",
        "token_id:300",
        "token_id:301",
        "token_id:302",
        "token_id:237",
    ]
    assert [names.is_text(told[one]) for one in asked] == [
        False,
        True,
        *[False] * 4,
    ]
    # What is known is not asked for again.
    backend.decode = None
    assert asyncio.run(TokenNames(backend, known).look_up(asked)) is known


def test_names_do_not_keep_a_retired_model_alive():
    known = weakref.WeakKeyDictionary()
    backend = FakeBackend()
    names = TokenNames(backend, known.setdefault(backend, {}))
    asyncio.run(names.look_up([70]))
    del names, backend
    gc.collect()
    assert not known


def test_probabilities_that_json_cannot_hold():
    backend = FakeBackend()
    form = CompletionForm(TokenNames(backend, {}), {"logprobs": 2})
    entries = [
        Entry(0, 70, None, ()),
        Entry(1, 71, float("-inf"), ((72, -0.5), (73, float("-inf")))),
    ]
    told = asyncio.run(form.logprobs(entries))
    assert told["token_logprobs"] == [None, -9999.0]
    assert told["top_logprobs"] == [
        None,
        {"?": -0.5, "@": -9999.0, ">": -9999.0},
    ]
