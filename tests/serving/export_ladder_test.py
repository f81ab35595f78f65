"""Proves an export without TensorFlow Serving's binary, step by step.

The signatures in the file, the loader of TensorFlow 1, the ops in the file,
and TensorFlow's C library in a process without Python TensorFlow. A new
signature takes a line in `SIGNATURES` and one in `good_requests`.
"""

import json
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text
from tensorflow.core.protobuf import saved_model_pb2

from kerasgpt.generation import Generator
from kerasgpt.models.gpt import GPTCausalLM, GPTConfig
from kerasgpt.serving.saved_model import export_saved_model
from kerasgpt.serving.scan import check_ops
from kerasgpt.tokenizers import (
    CONTROL_TOKENS,
    ByteTokenizer,
    train_byte_pair,
    train_sentence_piece,
)

CAP, CONTEXT = 12, 64
CORPUS = [
    "Where is my order?",
    "Do you sell gift cards?",
    "我想退货。",
    "请问运费多少钱？",
]
PROMPTS = [*CORPUS, "<|end_of_turn|><|assistant|>", "tab\there, 🙂, \u2581"]


def vector(dtype):
    return dtype, (None,)


def matrix(dtype, *more):
    return dtype, (None, None, *more)


STRING, INT32 = vector(tf.string), vector(tf.int32)
SAMPLING = {
    "max_new_tokens": INT32,
    "temperature": vector(tf.float32),
    "top_k": INT32,
    "top_p": vector(tf.float32),
    "seed": INT32,
}
TURNS = {"roles": matrix(tf.string), "contents": matrix(tf.string)}
IDS = {"token_ids": matrix(tf.int32), "length": INT32}
TEXTS = {"text": STRING, "text_bytes": STRING}
REPLY = {**TEXTS, "num_tokens": INT32, "finish_reason": STRING}
SCORES = {"log_probabilities": matrix(tf.float32)}
SIGNATURES = {
    "serving_default": ({"prompt": STRING}, {"text": STRING}),
    "chat": ({**TURNS, **SAMPLING}, REPLY),
    "generate": ({"prompt": STRING, **SAMPLING}, REPLY),
    "generate_ids": (
        {**IDS, **SAMPLING},
        {**IDS, **SCORES, "finish_reason": STRING},
    ),
    "score": (
        {"text": STRING},
        {"log_likelihood": vector(tf.float32), "num_tokens": INT32},
    ),
    "score_ids": (
        IDS,
        {
            **SCORES,
            "is_greedy": matrix(tf.bool),
            "top_token_ids": matrix(tf.int32, 5),
            "top_log_probabilities": matrix(tf.float32, 5),
        },
    ),
    "tokenize": ({"text": STRING}, IDS),
    "tokenize_chat": (TURNS, IDS),
    "detokenize": (IDS, TEXTS),
    "describe": ({"key": STRING}, {"value": INT32}),
}


def padded(rows, filler):
    width = max(map(len, rows))
    return [[*row, *[filler] * (width - len(row))] for row in rows]


def ids(*rows):
    return {
        "token_ids": padded(rows, 0),
        "length": [len(row) for row in rows],
    }


def turns(*chats):
    """Returns the inputs of conversations, lists of (role, content)."""
    return {
        name: padded([[turn[index] for turn in chat] for chat in chats], "")
        for index, name in enumerate(("roles", "contents"))
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


SAMPLED = {"temperature": 1.5, "top_k": 50, "top_p": 0.9}


def good_requests():
    """Returns a request of two rows for each signature."""
    chats = (
        [("user", "hi"), ("assistant", "你好"), ("user", "x")],
        [("user", "好")],
    )
    sampled = sampling(2, **SAMPLED, seed=[5, 6])
    rows = ids([9, 10, 11], [40])
    return {
        "serving_default": {"prompt": ["hi", "好"]},
        "chat": {**turns(*chats), **sampled},
        "generate": {"prompt": ["hi", "好"], **sampled},
        "generate_ids": {**rows, **sampled},
        "score": {"text": ["hi", "好"]},
        "score_ids": rows,
        "tokenize": {"text": ["hi", "好"]},
        "tokenize_chat": turns(*chats),
        "detokenize": rows,
        "describe": {"key": ["<|end_of_turn|>", "context_length"]},
    }


class Export:
    """An export, read as TensorFlow Serving reads it.

    Args:
        tokenizer: Tokenizer.
        folder: pathlib.Path. Where to export to.
    """

    def __init__(self, tokenizer, folder):
        self.tokenizer = tokenizer
        self.model = GPTCausalLM(
            GPTConfig.from_depth(
                1,
                vocabulary_size=tokenizer.vocabulary_size,
                context_length=CONTEXT,
                model_dim=32,
                head_dim=8,
            )
        )
        self.model.build()
        # As initialised, a model repeats its last token whatever it reads.
        random = np.random.default_rng(3)
        for variable in self.model.trainable_variables:
            if len(variable.shape) == 2:
                spread = 0.5 if "embedding" in variable.path else 0.4
                variable.assign(spread * random.normal(size=variable.shape))
        self.path = export_saved_model(
            self.model, tokenizer, folder, max_new_tokens=CAP
        )
        self.definitions = definitions(self.path)
        self.session = tf.compat.v1.Session(graph=tf.Graph())
        with self.session.graph.as_default():
            tf.compat.v1.saved_model.loader.load(
                self.session, ["serve"], str(self.path)
            )

    def __call__(self, name, **inputs):
        """Returns lists of the outputs, text as str."""
        definition = self.definitions[name]
        feeds = {
            definition.inputs[alias].name: array(
                value, definition.inputs[alias].dtype
            )
            for alias, value in inputs.items()
        }
        fetches = {
            alias: info.name for alias, info in definition.outputs.items()
        }
        outputs = self.session.run(fetches, feeds)
        return {
            alias: tf.nest.map_structure(
                lambda one: one.decode() if isinstance(one, bytes) else one,
                value.tolist(),
            )
            for alias, value in outputs.items()
        }

    def keras(self):
        """Returns the model and loop as they run without a graph."""
        return Generator(self.model, self.tokenizer, jit_compile=False)

    def log_probabilities(self, token_ids):
        """Returns those of what follows each token: (tokens, vocabulary)."""
        logits = self.model({"token_ids": np.array([token_ids])})[0]
        return tf.nn.log_softmax(logits).numpy()


def array(value, dtype):
    dtype = tf.dtypes.as_dtype(dtype).as_numpy_dtype
    return np.array(value, dtype)


def definitions(path):
    saved = saved_model_pb2.SavedModel.FromString(
        (pathlib.Path(path) / "saved_model.pb").read_bytes()
    )
    signatures = dict(saved.meta_graphs[0].signature_def)
    signatures.pop("__saved_model_init_op")
    return signatures


@pytest.fixture(scope="module", params=["sentence_piece", "byte"])
def export(request, of_sentence_piece, of_bytes):
    return of_bytes if request.param == "byte" else of_sentence_piece


@pytest.fixture(scope="module")
def of_sentence_piece(tmp_path_factory):
    tokenizer = train_sentence_piece(CORPUS * 10, vocabulary_size=320)
    return Export(tokenizer, tmp_path_factory.mktemp("sentence_piece"))


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory):
    return Export(ByteTokenizer(), tmp_path_factory.mktemp("byte"))


@pytest.fixture
def eagerly():
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def test_every_signature_has_a_request():
    assert set(SIGNATURES) == set(good_requests())


def test_the_file_has_the_signatures(export):
    def described(infos):
        return {
            alias: (
                tf.dtypes.as_dtype(info.dtype),
                tuple(tf.TensorShape(info.tensor_shape).as_list()),
            )
            for alias, info in infos.items()
        }

    found = {
        name: (described(one.inputs), described(one.outputs))
        for name, one in export.definitions.items()
    }
    assert found == SIGNATURES
    for one in export.definitions.values():
        assert one.method_name == "tensorflow/serving/predict"


def test_the_file_has_only_ops_of_a_server(export):
    check_ops(export.path)


def test_every_output_has_a_row_a_request(export):
    for name, request in good_requests().items():
        outputs = export(name, **request)
        assert {len(value) for value in outputs.values()} == {2}, name


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "seeded"])
def test_replies_equal_keras_run_eagerly(settings, export, eagerly):
    chats = [[("user", prompt)] for prompt in PROMPTS]
    chats.append([("system", "be kind"), ("user", "hi")])
    expected = export.keras().reply(
        [
            [{"role": role, "content": content} for role, content in chat]
            for chat in chats
        ],
        max_new_tokens=CAP,
        seed=70,
        **settings,
    )
    assert len(set(expected)) > len(PROMPTS) // 2
    seeds = [70 + row for row in range(len(chats))]
    reply = export(
        "chat", **turns(*chats), **sampling(len(chats), seed=seeds, **settings)
    )
    assert reply["text"] == reply["text_bytes"] == expected
    if not settings:
        reply = export("serving_default", prompt=PROMPTS)
        assert reply["text"] == expected[: len(PROMPTS)]


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "seeded"])
def test_documents_equal_keras_run_eagerly(settings, export, eagerly):
    expected = export.keras().complete(
        PROMPTS, max_new_tokens=CAP, seed=70, **settings
    )
    rows = len(PROMPTS)
    seeds = [70 + row for row in range(rows)]
    reply = export(
        "generate", prompt=PROMPTS, **sampling(rows, seed=seeds, **settings)
    )
    assert reply["text"] == reply["text_bytes"] == expected


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "seeded"])
def test_ids_equal_keras_run_eagerly(settings, export, eagerly):
    keras, tokenizer = export.keras(), export.tokenizer
    chats = [
        keras.template.prompt([{"role": "user", "content": prompt}])
        for prompt in PROMPTS[:3]
    ]
    start = tokenizer.control_id("<|document|>")
    documents = [[start, *tokenizer.encode(one)] for one in PROMPTS[:3]]
    rows = len(chats) + len(documents)
    reply = export(
        "generate_ids",
        **ids(*chats, *documents),
        **sampling(rows, seed=[7, 8, 9, 7, 8, 9], **settings),
    )
    expected = [
        made
        for prompts, stop in [
            (chats, "<|end_of_turn|>"),
            (documents, "<|end_of_document|>"),
        ]
        for made in keras.generate_ids(
            prompts, CAP, stop_token=stop, seed=7, **settings
        )
    ]
    assert reply["length"] == [len(made) for made in expected]
    assert reply["token_ids"] == padded(expected, 0)
    for row, prompt in enumerate(chats + documents):
        made = expected[row]
        scores = export.log_probabilities(prompt + made)[len(prompt) - 1 : -1]
        assert reply["log_probabilities"][row][: len(made)] == pytest.approx(
            scores[range(len(made)), made].tolist(), abs=1e-4
        )


def test_scores_equal_keras_run_eagerly(export):
    start = export.tokenizer.control_id("<|document|>")
    texts = [export.tokenizer.encode(prompt) for prompt in PROMPTS]
    rows = [[start, *text] for text in texts]
    by_text = export("score", text=PROMPTS)
    by_ids = export("score_ids", **ids(*rows))
    assert by_text["num_tokens"] == [len(text) for text in texts]
    for number, row in enumerate(rows):
        scores = export.log_probabilities(row)[:-1]
        own = scores[range(len(row) - 1), row[1:]]
        found = {
            alias: value[number][: len(row)] for alias, value in by_ids.items()
        }
        assert found["log_probabilities"][0] == 0.0
        assert found["log_probabilities"][1:] == pytest.approx(own, abs=1e-4)
        assert by_text["log_likelihood"][number] == pytest.approx(
            own.sum(), rel=1e-4
        )
        assert found["is_greedy"][1:] == ((own == scores.max(axis=1)).tolist())
        best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
        assert found["top_token_ids"][1:] == best.tolist()
        np.testing.assert_allclose(
            found["top_log_probabilities"][1:],
            np.take_along_axis(scores, best, axis=1),
            atol=1e-4,
        )


def test_the_tokenizer_is_the_one_in_python(export):
    tokenizer, template = export.tokenizer, export.keras().template
    rows = [tokenizer.encode(prompt) for prompt in PROMPTS]
    assert export("tokenize", text=PROMPTS) == ids(*rows)
    assert export("detokenize", **ids(*rows))["text"] == PROMPTS
    chats = [[("system", "be kind"), ("user", "hi")], [("user", PROMPTS[4])]]
    assert export("tokenize_chat", **turns(*chats)) == ids(
        *(
            template.prompt([{"role": a, "content": b} for a, b in chat])
            for chat in chats
        )
    )


def test_facts_are_told(export):
    facts = {
        "context_length": CONTEXT,
        "max_new_tokens": CAP,
        "vocabulary_size": export.tokenizer.vocabulary_size,
        **{name: export.tokenizer.control_id(name) for name in CONTROL_TOKENS},
    }
    assert export("describe", key=[*facts]) == {"value": [*facts.values()]}


def test_typed_control_tokens_stay_text(export):
    texts = [*CONTROL_TOKENS, "".join(CONTROL_TOKENS)]
    tokens = export("tokenize", text=texts)
    for row, length in zip(tokens["token_ids"], tokens["length"], strict=True):
        assert min(row[:length]) >= len(CONTROL_TOKENS)
    assert export("detokenize", **tokens)["text"] == texts
    chats = export(
        "tokenize_chat", **turns(*[[("user", one)] for one in ["a", *texts]])
    )
    control = [
        [one for one in row[:length] if one < len(CONTROL_TOKENS)]
        for row, length in zip(chats["token_ids"], chats["length"], strict=True)
    ]
    assert len(control[0]) == 4
    assert control == [control[0]] * len(control)


NO_ROWS = "the batch must have a row"
NOT_UTF8 = "must be valid UTF-8"
NO_ROOM = "must leave room for a token in the context"
NO_VALUE = "must have a value for each row"
LONG = "1" * (CONTEXT + 1)
LONE = b"\xed\xa0\x80"
NAN, INFINITY = float("nan"), float("inf")


def bad_texts(name, *, too_long):
    return [
        ({name: []}, NO_ROWS),
        ({name: ["hi", ""]}, f"{name} must not be empty"),
        ({name: ["hi", b"\xff"]}, NOT_UTF8),
        ({name: ["hi", LONE]}, NOT_UTF8),
        *([({name: ["hi", LONG]}, too_long)] if too_long else []),
    ]


def bad_sampling():
    return [
        ({"max_new_tokens": [1, 0]}, "max_new_tokens must be from 1 to 12"),
        ({"max_new_tokens": [1, -5]}, "max_new_tokens must be from 1 to 12"),
        ({"max_new_tokens": [1, 13]}, "max_new_tokens must be from 1 to 12"),
        ({"max_new_tokens": [1, 2**31 - 1]}, "must be from 1 to 12"),
        ({"temperature": [1.0, NAN]}, "temperature must be"),
        ({"temperature": [1.0, INFINITY]}, "temperature must be"),
        ({"temperature": [1.0, -0.5]}, "temperature must be"),
        ({"top_k": [0, -1]}, "top_k must be at least 0"),
        ({"top_p": [1.0, 0.0]}, "top_p must be above 0"),
        ({"top_p": [1.0, 1.5]}, "top_p must be above 0"),
        ({"top_p": [1.0, NAN]}, "top_p must be above 0"),
        ({"seed": [1]}, f"seed {NO_VALUE}"),
        ({"seed": []}, f"seed {NO_VALUE}"),
        ({"top_k": [1, 2, 3]}, f"top_k {NO_VALUE}"),
    ]


def bad_turns(*, too_long):
    user = ("user", "hi")
    uneven = {"roles": [["user"]] * 2, "contents": [["a", "b"]] * 2}
    return [
        (turns([("user", "a")], [("owner", "b")]), "roles must be one of"),
        (turns([user], [("<|system|>", "b")]), "roles must be one of"),
        (turns([user], [("", "")]), "must have a turn"),
        # Neither a turn nor, in all, a value.
        ({"roles": [[], []], "contents": [[], []]}, "must have a"),
        (turns([user] * 2, [user, ("", "b")]), "must have a role"),
        (turns([user] * 2, [("", ""), user]), 'before the \\"\\" that fill'),
        (uneven, "must be equal in shape"),
        (turns([user], [("user", b"\xff")]), NOT_UTF8),
        (
            {
                "roles": np.zeros((0, 1), object),
                "contents": np.zeros((0, 1), object),
            },
            NO_ROWS,
        ),
        *([(turns([user], [("user", LONG)]), too_long)] if too_long else []),
    ]


def bad_ids(*, too_long):
    rows = {"token_ids": [[40, 41, 42], [43, 0, 0]]}
    no_rows = {"token_ids": np.zeros((0, 3)), "length": []}
    return [
        (no_rows, NO_ROWS),
        ({**rows, "length": [3, 0]}, "length must be from 1 to"),
        ({**rows, "length": [3, -1]}, "length must be from 1 to"),
        ({**rows, "length": [3, 4]}, "length must be from 1 to"),
        ({**rows, "length": [3, 2**31 - 1]}, "length must be from 1 to"),
        ({**rows, "length": [3]}, f"length {NO_VALUE}"),
        ({**rows, "length": [3, 1, 1]}, f"length {NO_VALUE}"),
        ({"token_ids": [[], []], "length": [0, 0]}, "length must be from 1"),
        ({"token_ids": [[], []], "length": [1, 1]}, "length must be from 1"),
        (ids([40, -1], [41]), "token_ids must be from 0 to"),
        (ids([40, 400], [41]), "token_ids must be from 0 to"),
        (ids([40, 2**31 - 1], [41]), "token_ids must be from 0 to"),
        *([(ids([40] * (CONTEXT + 1), [41]), too_long)] if too_long else []),
    ]


BAD_REQUESTS = {
    "serving_default": bad_texts("prompt", too_long=NO_ROOM),
    "chat": [*bad_turns(too_long=NO_ROOM), *bad_sampling()],
    "generate": [*bad_texts("prompt", too_long=NO_ROOM), *bad_sampling()],
    "generate_ids": [*bad_ids(too_long=NO_ROOM), *bad_sampling()],
    "score": bad_texts("text", too_long="more tokens than the context"),
    "score_ids": bad_ids(too_long="more tokens than the context"),
    "tokenize": bad_texts("text", too_long=None),
    "tokenize_chat": bad_turns(too_long=None),
    "detokenize": bad_ids(too_long=None),
    "describe": [
        ({"key": []}, NO_ROWS),
        ({"key": ["context_length", "<|cls|>"]}, "key must be one of"),
        ({"key": ["context_length", b"\xff"]}, "key must be one of"),
    ],
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests_are_told_and_the_next_is_served(name, export):
    good = good_requests()[name]
    expected = export(name, **good)
    for changes, words in BAD_REQUESTS[name]:
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            export(name, **{**good, **changes})
        assert words in error.value.message, changes
        assert export(name, **good) == expected, changes


@pytest.mark.parametrize("name", ["tokenize", "tokenize_chat", "detokenize"])
def test_the_context_is_no_limit_to_the_tokenizer(name, export):
    request = {
        "tokenize": {"text": [LONG]},
        "tokenize_chat": turns([("user", LONG)]),
        "detokenize": ids([40] * (CONTEXT + 1)),
    }[name]
    assert export(name, **request)


def in_c(path, requests, folder, *options):
    """Runs (signature, inputs) in a process without Python TensorFlow."""
    known = definitions(path)

    def flat(value, dtype):
        values = np.ravel(array(value, dtype)).tolist()
        return [
            one.decode(errors="surrogateescape")
            if isinstance(one, bytes)
            else one
            for one in values
        ]

    described = [
        {
            "inputs": {
                alias: {
                    "name": info.name,
                    "dtype": info.dtype,
                    "shape": array(inputs[alias], info.dtype).shape,
                    "values": flat(inputs[alias], info.dtype),
                }
                for alias, info in known[name].inputs.items()
            },
            "outputs": {
                alias: {"name": info.name}
                for alias, info in known[name].outputs.items()
            },
        }
        for name, inputs in requests
    ]
    (folder / "requests.json").write_text(json.dumps(described))
    completed = subprocess.run(
        [
            sys.executable,
            pathlib.Path(__file__).with_name("c_api_runner.py"),
            path,
            folder / "requests.json",
            folder / "answers.json",
            pathlib.Path(tf.__file__).parent / "libtensorflow_cc.so.2",
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert completed.returncode == 0, completed.stderr
    return types.SimpleNamespace(
        **json.loads((folder / "answers.json").read_text())
    )


def text_ops():
    package = pathlib.Path(tensorflow_text.__file__).parent
    library = package / "python" / "ops" / "_sentencepiece_tokenizer.so"
    return "--ops", library


def check_in_c(export, requests, folder, *options):
    """Runs requests, some of which are refused with the words beside them."""
    found = in_c(export.path, [one[:2] for one in requests], folder, *options)
    assert (found.code, found.message) == (0, "")
    for (name, inputs, words), answer in zip(
        requests, found.answers, strict=True
    ):
        assert answer["code"] == (3 if words else 0), (name, inputs, answer)
        assert words in answer["message"], (name, inputs)
        if words:
            continue
        expected = export(name, **inputs)
        assert answer["outputs"].keys() == expected.keys()
        for alias, value in expected.items():
            output = answer["outputs"][alias]
            assert output["shape"] == list(np.shape(value))
            flat = np.ravel(value).tolist()
            if SIGNATURES[name][1][alias][0] == tf.float32:
                flat = pytest.approx(flat, rel=1e-5, abs=1e-5)
            assert output["values"] == flat, (name, alias)


def test_c_library_answers_and_refuses_alike(of_sentence_piece, tmp_path):
    requests = [("serving_default", {"prompt": PROMPTS}, "")]
    for name, good in good_requests().items():
        requests += [
            (name, {**good, **changes}, words)
            for changes, words in BAD_REQUESTS[name]
        ]
        requests.append((name, good, ""))
    check_in_c(of_sentence_piece, requests, tmp_path, *text_ops())


@pytest.mark.slow
def test_c_library_has_the_ids_of_byte_pairs(tmp_path):
    tokenizer = train_byte_pair(CORPUS * 10, vocabulary_size=320)
    export = Export(tokenizer, tmp_path / "byte_pair")
    chat = turns([("system", "be kind"), ("user", PROMPTS[4])])
    requests = [
        ("serving_default", {"prompt": PROMPTS}, ""),
        ("tokenize", {"text": PROMPTS}, ""),
        ("tokenize_chat", chat, ""),
    ]
    check_in_c(export, requests, tmp_path, *text_ops())
    rows = [tokenizer.encode(prompt) for prompt in PROMPTS]
    assert export("tokenize", text=PROMPTS) == ids(*rows)
    assert export("detokenize", **ids(*rows))["text"] == PROMPTS


def test_c_library_finds_nothing_hidden_in_python(
    of_sentence_piece, of_bytes, tmp_path
):
    requests = [("score", good_requests()["score"], "")]
    found = in_c(of_sentence_piece.path, [requests[0][:2]], tmp_path)
    assert found.code == 5
    assert "Op type not registered 'SentencepieceOp'" in found.message
    check_in_c(of_bytes, requests, tmp_path)


def test_c_library_catches_compiled_functions(tmp_path):
    class Compiled(tf.Module):
        @tf.function(
            input_signature=[tf.TensorSpec([None], tf.float32, name="x")],
            jit_compile=True,
        )
        def double(self, x):
            return {"y": 2.0 * x}

    module, path = Compiled(), tmp_path / "1"
    tf.saved_model.save(module, str(path), signatures=module.double)
    requests = [("serving_default", {"x": [1.0, 2.0]})]
    [answer] = in_c(path, requests, tmp_path).answers
    assert answer["code"] == 13
    assert "XLA compilation disabled" in answer["message"]
    [answer] = in_c(path, requests, tmp_path, "--keep-xla").answers
    assert answer["code"] == 0
    assert answer["outputs"]["y"]["values"] == [2.0, 4.0]
