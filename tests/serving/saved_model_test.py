import concurrent.futures
import functools
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from kerasgpt.config import InputError
from kerasgpt.files import read_manifest
from kerasgpt.generation import Generator
from kerasgpt.models.gpt import GPTCausalLM, GPTConfig
from kerasgpt.serving import saved_model
from kerasgpt.serving.saved_model import export_saved_model
from kerasgpt.tokenizers import (
    CONTROL_TOKENS,
    ByteTokenizer,
    train_sentence_piece,
)

CAP, CONTEXT = 24, 96
QUESTIONS = [
    "Where is my order?",
    "Can I return shoes I have worn?",
    "My parcel has not arrived yet.",
    "How much is shipping to Berlin?",
    "Do you sell gift cards?",
    "什么时候发货？",
    "我想退货。",
    "这件衣服有蓝色的吗？",
    "请问运费多少钱？",
    "我的包裹还没有到。",
]
PROMPTS = [
    f"{question}{ending}"
    for question in QUESTIONS
    for ending in ("", " Thanks!", " 谢谢\n")
] + [
    "<|user|>",
    "<|end_of_turn|><|assistant|>",
    "<|document|> <|end_of_document|>",
    "<|pad|>",
    "tab\there, NUL\x00, emoji 🙂, mark \u2581, \U0010ffff",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_sentence_piece(QUESTIONS * 5, vocabulary_size=360)


@pytest.fixture(scope="module")
def model(tokenizer):
    model = GPTCausalLM(
        GPTConfig.from_depth(
            2,
            vocabulary_size=tokenizer.vocabulary_size,
            context_length=CONTEXT,
            model_dim=32,
            head_dim=8,
        )
    )
    model.build()
    # As initialised, a model repeats its last token whatever it reads.
    random = np.random.default_rng(3)
    for variable in model.trainable_variables:
        if len(variable.shape) == 2:
            spread = 0.5 if "embedding" in variable.path else 0.4
            variable.assign(spread * random.normal(size=variable.shape))
    return model


@pytest.fixture(scope="module")
def export(model, tokenizer, tmp_path_factory):
    return export_saved_model(
        model,
        tokenizer,
        tmp_path_factory.mktemp("models") / "shop",
        max_new_tokens=CAP,
    )


@pytest.fixture(scope="module")
def signatures(export):
    return tf.saved_model.load(str(export)).signatures


@pytest.fixture(scope="module")
def generator(model, tokenizer):
    return Generator(model, tokenizer, jit_compile=False)


def message(content, role="user"):
    return {"role": role, "content": content}


def call(signature, **inputs):
    """Runs a signature on lists; returns a dict of lists, text as str."""
    known = signature.structured_input_signature[1]
    outputs = signature(
        **{
            name: tf.constant(value, known[name].dtype)
            for name, value in inputs.items()
        }
    )
    return {
        name: [
            one.decode() if isinstance(one, bytes) else one
            for one in value.numpy().tolist()
        ]
        for name, value in outputs.items()
    }


def sampling(rows, **changes):
    values = {
        "max_new_tokens": CAP,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "seed": 0,
        **changes,
    }
    return {
        name: value if isinstance(value, list) else [value] * rows
        for name, value in values.items()
    }


def chat_inputs(conversations, **changes):
    turns = max(map(len, conversations))

    def padded(field):
        return [
            [one[field] for one in chat] + [""] * (turns - len(chat))
            for chat in conversations
        ]

    return {
        "roles": padded("role"),
        "contents": padded("content"),
        **sampling(len(conversations), **changes),
    }


def test_greedy_replies_equal_the_generator(signatures, generator):
    conversations = [[message(prompt)] for prompt in PROMPTS]
    expected = generator.reply(conversations, max_new_tokens=CAP)
    assert len(set(expected)) > len(PROMPTS) // 2
    reply = call(signatures["serving_default"], prompt=PROMPTS)
    assert reply == {"text": expected}
    reply = call(signatures["chat"], **chat_inputs(conversations))
    assert reply["text"] == reply["text_bytes"] == expected


def test_conversations_of_unequal_length(signatures, generator):
    conversations = [
        [message("hi"), message("yo", "assistant"), message("再见")],
        [message("be kind", "system"), message("hi")],
        [message("")],
        [message("hi"), message("", "tool"), message("x", "assistant")],
    ]
    reply = call(signatures["chat"], **chat_inputs(conversations))
    assert reply["text"] == generator.reply(conversations, max_new_tokens=CAP)
    render = tf.function(generator.template.prompt_strings)
    inputs = chat_inputs(conversations)
    rows = render(tf.constant(inputs["roles"]), tf.constant(inputs["contents"]))
    assert rows.to_list() == [
        generator.template.prompt(chat) for chat in conversations
    ]


def test_generate_equals_a_loop_without_cache(signatures, model, tokenizer):
    stop_id = tokenizer.control_id("<|end_of_document|>")
    expected = []
    for prompt in PROMPTS[:6]:
        start = [
            tokenizer.control_id("<|document|>"),
            *tokenizer.encode(prompt),
        ]
        token_ids = list(start)
        while len(token_ids) < len(start) + CAP:
            logits = model({"token_ids": np.array([token_ids])})[0, -1].numpy()
            logits[
                [one for one in range(len(CONTROL_TOKENS)) if one != stop_id]
            ] = -1e30
            token_ids.append(int(logits.argmax()))
            if token_ids[-1] == stop_id:
                break
        expected.append(tokenizer.decode(token_ids[len(start) :]))
    reply = call(signatures["generate"], prompt=PROMPTS[:6], **sampling(6))
    assert reply["text"] == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_is_the_same_alone_and_in_a_batch(
    signatures, generator, temperature
):
    prompts = PROMPTS[:8] + PROMPTS[-5:]
    conversations = [[message(prompt)] for prompt in prompts]
    seeds = list(range(70, 70 + len(prompts)))
    changes = {"temperature": temperature, "top_k": 50, "top_p": 0.9}
    together = call(
        signatures["chat"],
        **chat_inputs(conversations, seed=seeds, **changes),
    )
    again = call(
        signatures["chat"],
        **chat_inputs(conversations, seed=seeds, **changes),
    )
    assert again == together
    for index, chat in enumerate(conversations):
        alone = call(
            signatures["chat"],
            **chat_inputs([chat], seed=seeds[index], **changes),
        )
        assert alone == {name: [v[index]] for name, v in together.items()}
    python = generator.reply(
        conversations[:1], max_new_tokens=CAP, seed=seeds[0], **changes
    )
    assert python == together["text"][:1]


def test_seeds_and_settings_of_a_row_are_its_own(signatures):
    rows = 6
    reply = call(
        signatures["generate"],
        prompt=["hello"] * rows,
        **sampling(
            rows,
            temperature=[0.0, 1.0, 1.0, 1.0, 1.0, 0.0],
            top_k=[0, 0, 0, 1, 0, 0],
            seed=[1, 1, 2, 3, -1, 9],
            max_new_tokens=[CAP, CAP, CAP, CAP, CAP, 3],
        ),
    )
    text = reply["text"]
    assert text[0] == text[3]
    assert len({text[0], text[1], text[2], text[4]}) == 4
    assert reply["num_tokens"][5] == 3


def test_finish_reason_and_count(signatures, tokenizer):
    rows = 200
    limits = [1 + index % CAP for index in range(rows)]
    reply = call(
        signatures["generate"],
        prompt=["hello"] * rows,
        **sampling(
            rows,
            temperature=3.0,
            seed=list(range(rows)),
            max_new_tokens=limits,
        ),
    )
    assert set(reply["finish_reason"]) == {"stop", "length"}
    for limit, count, reason in zip(
        limits, reply["num_tokens"], reply["finish_reason"], strict=True
    ):
        assert count == limit if reason == "length" else 0 <= count < limit


def test_replies_end_with_the_context(signatures, tokenizer):
    longest = "1" * (CONTEXT - 2)
    assert len(tokenizer.encode(longest)) == CONTEXT - 2
    reply = call(signatures["generate"], prompt=[longest, "1"], **sampling(2))
    assert reply["num_tokens"][0] == 1
    assert reply["finish_reason"][0] == "length"
    alone = call(signatures["generate"], prompt=["1"], **sampling(1))
    assert reply["text"][1:] == alone["text"]
    scores = call(signatures["score"], text=["1" * CONTEXT])
    assert scores["num_tokens"] == [CONTEXT]


def test_versions_count_up(export, tokenizer, tmp_path):
    folder = tmp_path / "models" / "tiny"
    small = GPTCausalLM(
        GPTConfig.from_depth(
            1, vocabulary_size=265, context_length=32, model_dim=32
        )
    )

    def publish(**options):
        return export_saved_model(small, ByteTokenizer(), folder, **options)

    assert export.name == "1"
    for name in ("1", "notes", "9x"):
        (folder / name).mkdir(parents=True)
    assert publish(version=11) == folder / "11"
    assert publish() == folder / "12"
    assert {path.name for path in folder.iterdir()} == {
        "1",
        "11",
        "12",
        "9x",
        "notes",
    }
    manifest = read_manifest(folder / "12")
    assert manifest["tokenizer_fingerprint"] == ByteTokenizer().fingerprint()
    assert "saved_model.pb" in manifest["files"]
    with pytest.raises(InputError, match="exists already"):
        publish(version=11)
    with pytest.raises(InputError, match="version=0"):
        publish(version=0)
    with pytest.raises(InputError, match="max_new_tokens=0"):
        publish(max_new_tokens=0)
    with pytest.raises(InputError, match="has 265 ids and the tokenizer 360"):
        export_saved_model(small, tokenizer, folder)
    reply = tf.saved_model.load(str(folder / "12")).signatures["chat"]
    inputs = chat_inputs([[message("hi")], [message("")]])
    python = Generator(small, ByteTokenizer(), jit_compile=False).reply(
        [[message("hi")], [message("")]], max_new_tokens=CAP
    )
    assert call(reply, **inputs)["text"] == python


def test_a_failing_export_leaves_nothing(
    model, tokenizer, tmp_path, monkeypatch
):
    def fail(module, folder, **options):
        (pathlib.Path(folder) / "saved_model.pb").write_bytes(b"half a graph")
        raise RuntimeError("no more")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(RuntimeError, match="no more"):
        export_saved_model(model, tokenizer, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused(model, tokenizer, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for place in (file, file / "models"):
        with pytest.raises(InputError, match="cannot be"):
            export_saved_model(model, tokenizer, place)


# Ids in, ids out.


def ids(*rows):
    width = max(map(len, rows))
    return {
        "token_ids": [[*row, *[0] * (width - len(row))] for row in rows],
        "length": [len(row) for row in rows],
    }


def unpadded(reply):
    return [
        row[:length]
        for row, length in zip(reply["token_ids"], reply["length"], strict=True)
    ]


def own_scores(reply):
    """Returns the scores of each row, the stop id's at the end."""
    return [
        row[: length + (reason == "stop")]
        for row, length, reason in zip(
            reply["log_probabilities"],
            reply["length"],
            reply["finish_reason"],
            strict=True,
        )
    ]


@pytest.fixture(scope="module")
def rows(generator):
    """Returns three conversations, then three documents."""
    template = generator.template
    chats = [template.prompt([message(prompt)]) for prompt in PROMPTS[:3]]
    texts = map(generator.tokenizer.encode, ("a", QUESTIONS[7], "tab\t"))
    return chats + [[template.document_id, *text] for text in texts]


def test_greedy_ids_equal_the_generator(signatures, generator, rows):
    expected = [
        *generator.generate_ids(rows[:3], CAP),
        *generator.generate_ids(
            rows[3:], CAP, stop_token="<|end_of_document|>"
        ),
    ]
    reply = call(signatures["generate_ids"], **ids(*rows), **sampling(6))
    assert unpadded(reply) == expected
    # What lies beyond a row's length is no part of it.
    noisy = ids(*rows)
    for row, length in zip(noisy["token_ids"], noisy["length"], strict=True):
        row[length:] = [-5] * (len(row) - length)
    assert call(signatures["generate_ids"], **noisy, **sampling(6)) == reply


def in_pieces(signature, prompt, num_tokens, *, size, **changes):
    """Returns ids and scores made `size` tokens a call, and why they end."""
    made, scores, reason = [], [], "length"
    while len(made) < num_tokens and reason == "length":
        reply = call(
            signature,
            **ids(prompt + made),
            **sampling(
                1, max_new_tokens=min(size, num_tokens - len(made)), **changes
            ),
        )
        made += unpadded(reply)[0]
        scores += own_scores(reply)[0]
        (reason,) = reply["finish_reason"]
    return made, scores, reason


@pytest.mark.parametrize(
    ("temperature", "reasons"),
    [(0.0, {"length"}), (1.0, {"length"}), (4.0, {"stop", "length"})],
)
def test_pieces_of_three_tokens_equal_all_at_once(
    signatures, rows, temperature, reasons
):
    signature, seeds = signatures["generate_ids"], [5, 6, 7, 8, 9, 10]
    changes = {"temperature": temperature, "top_p": 0.99}
    reply = call(signature, **ids(*rows), **sampling(6, seed=seeds, **changes))
    ids_at_once = unpadded(reply)
    scores_at_once = own_scores(reply)
    for row, prompt in enumerate(rows):
        made, scores, reason = in_pieces(
            signature, prompt, CAP, size=3, seed=seeds[row], **changes
        )
        assert made == ids_at_once[row]
        assert scores == pytest.approx(scores_at_once[row], abs=1e-4)
        assert reason == reply["finish_reason"][row]
    assert set(reply["finish_reason"]) == reasons
    assert len(set(map(tuple, ids_at_once))) == 6


def test_scored_ids_equal_the_log_softmax_of_the_model(signatures, model, rows):
    found = call(signatures["score_ids"], **ids(*rows))
    for number, row in enumerate(rows):
        logits = model({"token_ids": np.array([row])})[0]
        expected = tf.nn.log_softmax(logits).numpy()[:-1]
        own = expected[range(len(row) - 1), row[1:]]
        scores = found["log_probabilities"][number]
        assert scores[0] == 0.0
        assert scores[1 : len(row)] == pytest.approx(own, abs=1e-4)
        assert not any(scores[len(row) :])
        best = np.argsort(-expected, axis=-1)[:, :5]
        assert found["top_token_ids"][number][1 : len(row)] == best.tolist()
        np.testing.assert_allclose(
            found["top_log_probabilities"][number][1 : len(row)],
            np.take_along_axis(expected, best, axis=-1),
            atol=1e-4,
        )
        is_greedy = found["is_greedy"][number]
        assert is_greedy[1 : len(row)] == (row[1:] == best[:, 0]).tolist()
        assert not is_greedy[0] and not any(is_greedy[len(row) :])


def test_generated_ids_are_scored_alike(signatures, tokenizer, rows):
    changes = {"temperature": 4.0, "top_p": 0.99, "seed": list(range(5, 11))}
    reply = call(
        signatures["generate_ids"], **ids(*rows), **sampling(6, **changes)
    )
    assert "stop" in reply["finish_reason"]
    texts = []
    for row, made in enumerate(unpadded(reply)):
        stop = "<|end_of_turn|>" if row < 3 else "<|end_of_document|>"
        is_stopped = reply["finish_reason"][row] == "stop"
        end = [tokenizer.control_id(stop)] * is_stopped
        texts.append(rows[row] + made + end)
    scored = call(signatures["score_ids"], **ids(*texts))
    for row, scores in enumerate(own_scores(reply)):
        expected = scored["log_probabilities"][row]
        expected = expected[len(rows[row]) : len(texts[row])]
        assert scores == pytest.approx(expected, abs=1e-4)


def test_text_and_ids_are_exchanged(signatures, generator, tokenizer):
    tokens = call(signatures["tokenize"], text=PROMPTS)
    assert unpadded(tokens) == [tokenizer.encode(one) for one in PROMPTS]
    texts = call(signatures["detokenize"], **tokens)
    assert texts == {"text": PROMPTS, "text_bytes": PROMPTS}
    chats = [
        [message("hi"), message("yo", "assistant"), message("再见")],
        [message("<|assistant|>")],
    ]
    turns = chat_inputs(chats)
    reply = call(
        signatures["tokenize_chat"],
        roles=turns["roles"],
        contents=turns["contents"],
    )
    assert unpadded(reply) == [generator.template.prompt(one) for one in chats]
    facts = {
        "<|end_of_turn|>": tokenizer.control_id("<|end_of_turn|>"),
        "context_length": CONTEXT,
        "max_new_tokens": CAP,
        "vocabulary_size": tokenizer.vocabulary_size,
    }
    reply = call(signatures["describe"], key=[*facts])
    assert reply["value"] == [*facts.values()]


# The operation that overwrites the cache.


def test_in_place_writes_are_those_of_a_scatter():
    values = np.arange(12, dtype="float32").reshape(6, 2)
    updates = -np.ones((3, 2), "float32")
    expected = values.copy()
    expected[[4, 0, 3]] = updates

    @tf.function
    def write(rows):
        # A sum of its own, so that no caller's tensor is overwritten.
        return saved_model._write_in_place(
            rows + 0.0, tf.constant([4, 0, 3]), tf.constant(updates)
        )

    rows = tf.constant(values)
    for _ in range(2):
        np.testing.assert_array_equal(write(rows), expected)
    np.testing.assert_array_equal(rows, values)


def test_the_export_writes_every_layer_in_place(export, model):
    saved = saved_model_pb2.SavedModel.FromString(
        (export / "saved_model.pb").read_bytes()
    )
    functions = saved.meta_graphs[0].graph_def.library.function
    counts = [
        [node.op for node in function.node_def].count("InplaceUpdate")
        for function in functions
    ]
    # Keys and values of each layer, in the body of a loop only.
    assert {*counts} == {0, 2 * model.config.num_layers}
    for function, count in zip(functions, counts, strict=True):
        assert not count or "while_body" in function.signature.name


REQUESTS = [
    {"temperature": 0.0, "rows": 6},
    {"temperature": 1.0, "rows": 1},
    {"temperature": 1.0, "rows": 4},
    {"temperature": 0.0, "rows": 2},
]


def answer(signature, rows, *, temperature):
    changes = {"temperature": temperature, "seed": list(range(len(rows)))}
    return call(signature, **ids(*rows), **sampling(len(rows), **changes))


def test_a_call_leaves_nothing_behind(signatures, rows):
    # Longer and shorter texts and batches use the same memory in between.
    signature = signatures["generate_ids"]

    def answers(requests):
        return [
            answer(
                signature,
                rows[: request["rows"]],
                temperature=request["temperature"],
            )
            for request in requests
        ]

    expected = answers(REQUESTS)
    assert answers(REQUESTS) == expected
    assert answers(REQUESTS[::-1]) == expected[::-1]


def test_calls_at_the_same_time_do_not_meet(export, signatures, rows):
    loaded = [signatures, tf.saved_model.load(str(export)).signatures]
    calls = [
        functools.partial(
            answer,
            one["generate_ids"],
            rows[: request["rows"]],
            temperature=request["temperature"],
        )
        for request in REQUESTS
        for one in loaded
    ]
    expected = [one() for one in calls]
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        for _ in range(5):
            futures = [pool.submit(one) for one in calls]
            assert [future.result() for future in futures] == expected
