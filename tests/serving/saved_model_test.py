import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text
from tensorflow.core.protobuf import saved_model_pb2

from kerasgpt.config import InputError
from kerasgpt.files import read_manifest
from kerasgpt.generation import Generator
from kerasgpt.models.gpt import GPTCausalLM, GPTConfig
from kerasgpt.serving import export_saved_model, saved_model
from kerasgpt.tokenizers import (
    CONTROL_TOKENS,
    ByteTokenizer,
    train_sentence_piece,
)

CAP, CONTEXT = 24, 96
STRING, INT32, FLOAT32 = tf.string, tf.int32, tf.float32
SAMPLING = {
    "max_new_tokens": INT32,
    "temperature": FLOAT32,
    "top_k": INT32,
    "top_p": FLOAT32,
    "seed": INT32,
}
REPLY = {
    "text": STRING,
    "text_bytes": STRING,
    "num_tokens": INT32,
    "finish_reason": STRING,
}
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


def test_signatures_have_names_dtypes_and_batches(signatures):
    matrices = {"roles": STRING, "contents": STRING}
    expected = {
        "serving_default": ({"prompt": STRING}, {"text": STRING}),
        "chat": ({**matrices, **SAMPLING}, REPLY),
        "generate": ({"prompt": STRING, **SAMPLING}, REPLY),
        "score": (
            {"text": STRING},
            {"log_likelihood": FLOAT32, "num_tokens": INT32},
        ),
    }
    assert set(signatures) == set(expected)
    for name, (inputs, outputs) in expected.items():
        known = signatures[name].structured_input_signature[1]
        assert {alias: one.dtype for alias, one in known.items()} == inputs
        for alias, one in known.items():
            rank = 2 if alias in matrices else 1
            assert one.shape.as_list() == [None] * rank
            assert one.name == alias
        made = signatures[name].structured_outputs
        assert {alias: one.dtype for alias, one in made.items()} == outputs
        assert all(one.shape.as_list() == [None] for one in made.values())


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


@pytest.mark.parametrize("text", [*CONTROL_TOKENS, "".join(CONTROL_TOKENS)])
def test_typed_control_tokens_stay_text(text, generator):
    token_ids = generator.template.prompt_strings(
        tf.constant([["user"]]), tf.constant([[text]])
    ).to_list()[0]
    control = [one for one in token_ids if one < len(CONTROL_TOKENS)]
    names = [CONTROL_TOKENS[one] for one in control]
    assert names == [
        "<|document|>",
        "<|user|>",
        "<|end_of_turn|>",
        "<|assistant|>",
    ]
    assert token_ids == generator.template.prompt([message(text)])


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


def test_score_sums_log_probabilities(signatures, model, tokenizer):
    scores = call(signatures["score"], text=PROMPTS)
    for index, text in enumerate(PROMPTS):
        targets = tokenizer.encode(text)
        inputs = [tokenizer.control_id("<|document|>"), *targets[:-1]]
        logits = model({"token_ids": np.array([inputs])})[0]
        log_probabilities = tf.nn.log_softmax(logits).numpy()
        expected = log_probabilities[range(len(targets)), targets].sum()
        assert scores["num_tokens"][index] == len(targets)
        assert scores["log_likelihood"][index] == pytest.approx(
            expected, rel=1e-4
        )


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


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prompt": ["hi", ""]}, "prompt must not be empty"),
        ({"prompt": ["hi", b"\xff"]}, "must be valid UTF-8"),
        ({"prompt": ["hi", b"\xed\xa0\x80"]}, "must be valid UTF-8"),
        ({"prompt": ["hi", "1" * (CONTEXT - 1)]}, "must leave room"),
        ({"prompt": ["hi"]}, "a value for each row"),
        ({"max_new_tokens": 0}, "max_new_tokens must be from 1 to 24"),
        ({"max_new_tokens": CAP + 1}, "max_new_tokens must be from 1 to 24"),
        ({"temperature": -0.1}, "temperature must be"),
        ({"temperature": [0.0, float("nan")]}, "temperature must be"),
        ({"temperature": float("inf")}, "temperature must be"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.1}, "top_p must be above 0"),
        ({"top_p": float("nan")}, "top_p must be above 0"),
        ({"seed": [1]}, "seed must have a value for each row"),
        ({"top_k": [1, 2, 3]}, "top_k must have a value for each row"),
    ],
)
def test_generate_refuses(signatures, changes, expected):
    prompt = changes.pop("prompt", ["hi", "you"])
    with pytest.raises(tf.errors.InvalidArgumentError, match=expected):
        call(signatures["generate"], prompt=prompt, **sampling(2, **changes))


@pytest.mark.parametrize(
    ("roles", "contents", "expected"),
    [
        ([["user"], ["owner"]], [["a"], ["b"]], "roles must be one of"),
        ([["user"], [""]], [["a"], [""]], "must have a turn"),
        ([["user"], ["User"]], [["a"], ["b"]], "roles must be one of"),
        ([["user", ""], ["user", ""]], [["a", ""], ["a", "b"]], "have a role"),
        ([["", "user"]] * 2, [["", "a"]] * 2, "must stand before"),
        ([["user"]] * 2, [["a", "b"]] * 2, "equal in shape"),
        ([["user"]] * 2, [["a"], [b"\xff"]], "contents must be valid UTF-8"),
        ([["user"]] * 2, [["a"], ["1" * CONTEXT]], "must leave room"),
        ([["user"]] * 3, [["a"]] * 3, "a value for each row"),
    ],
)
def test_chat_refuses(signatures, roles, contents, expected):
    with pytest.raises(tf.errors.InvalidArgumentError, match=expected):
        call(signatures["chat"], roles=roles, contents=contents, **sampling(2))


@pytest.mark.parametrize(
    ("name", "inputs", "expected"),
    [
        ("serving_default", {"prompt": [""]}, "prompt must not be empty"),
        ("serving_default", {"prompt": ["1" * CONTEXT]}, "must leave room"),
        ("serving_default", {"prompt": []}, "the batch must have a row"),
        ("score", {"text": ["a", ""]}, "text must not be empty"),
        ("score", {"text": ["1" * (CONTEXT + 1)]}, "more tokens than"),
        ("score", {"text": []}, "the batch must have a row"),
    ],
)
def test_other_signatures_refuse(signatures, name, inputs, expected):
    with pytest.raises(tf.errors.InvalidArgumentError, match=expected):
        call(signatures[name], **inputs)


def test_graph_has_no_python_and_no_xla(export):
    saved = saved_model_pb2.SavedModel.FromString(
        (export / "saved_model.pb").read_bytes()
    )
    graph = saved.meta_graphs[0].graph_def
    functions = graph.library.function
    nodes = [*graph.node, *(n for one in functions for n in one.node_def)]
    operations = {node.op for node in nodes}
    assert "SentencepieceTokenizeOp" in operations
    assert not operations & {"PyFunc", "EagerPyFunc", "StatelessPyFunc"}
    assert not [name for name in operations if name.startswith("Xla")]
    for part in [*nodes, *functions]:
        assert not part.attr["_XlaMustCompile"].b


def test_versions_count_up(tokenizer, tmp_path):
    folder = tmp_path / "models" / "tiny"
    small = GPTCausalLM(
        GPTConfig.from_depth(
            1, vocabulary_size=265, context_length=32, model_dim=32
        )
    )

    def publish(**options):
        return export_saved_model(small, ByteTokenizer(), folder, **options)

    assert publish() == folder / "1"
    (folder / "notes").mkdir()
    (folder / "9x").mkdir()
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
    def fail(*arguments, **options):
        raise RuntimeError("no more")

    monkeypatch.setattr(saved_model, "write_manifest", fail)
    with pytest.raises(RuntimeError, match="no more"):
        export_saved_model(model, tokenizer, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused(model, tokenizer, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for place in (file, file / "models"):
        with pytest.raises(InputError, match="cannot be"):
            export_saved_model(model, tokenizer, place)


def run_in_c(export, signature, inputs, folder, *options):
    """Runs a signature in a process without Python TensorFlow."""
    saved = saved_model_pb2.SavedModel.FromString(
        (pathlib.Path(export) / "saved_model.pb").read_bytes()
    )
    definition = saved.meta_graphs[0].signature_def[signature]
    request = {
        "inputs": {
            alias: {
                "name": info.name,
                "dtype": info.dtype,
                "shape": np.shape(inputs[alias]),
                "values": np.ravel(inputs[alias]).tolist(),
            }
            for alias, info in definition.inputs.items()
        },
        "outputs": {
            alias: {"name": info.name}
            for alias, info in definition.outputs.items()
        },
    }
    (folder / "request.json").write_text(json.dumps(request))
    libraries = pathlib.Path(tf.__file__).parent
    completed = subprocess.run(
        [
            sys.executable,
            pathlib.Path(__file__).with_name("c_api_runner.py"),
            export,
            folder / "request.json",
            folder / "response.json",
            libraries / "libtensorflow_cc.so.2",
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert completed.returncode == 0, completed.stderr
    return json.loads((folder / "response.json").read_text())


def text_ops():
    package = pathlib.Path(tensorflow_text.__file__).parent
    return package / "python" / "ops" / "_sentencepiece_tokenizer.so"


def test_c_library_gives_the_same_replies(export, generator, tmp_path):
    prompts = [f"{number}. {text}" for number in (1, 2, 3) for text in PROMPTS]
    prompts = prompts[:100]
    response = run_in_c(
        export,
        "serving_default",
        {"prompt": prompts},
        tmp_path,
        "--ops",
        text_ops(),
    )
    assert response["message"] == ""
    expected = generator.reply(
        [[message(prompt)] for prompt in prompts], max_new_tokens=CAP
    )
    assert len(prompts) == 100
    assert response["outputs"]["text"] == {"shape": [100], "values": expected}


def test_c_library_runs_every_signature(export, signatures, tmp_path):
    chat = [message("hi"), message("你好", "assistant"), message("再见")]
    changes = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": 5}
    cases = {
        "chat": chat_inputs([chat, chat[:1]], **changes),
        "generate": {"prompt": ["a", "b 好"], **sampling(2, **changes)},
        "score": {"text": ["hello", "你好。"]},
    }
    for name, inputs in cases.items():
        response = run_in_c(export, name, inputs, tmp_path, "--ops", text_ops())
        assert response["message"] == ""
        expected = call(signatures[name], **inputs)
        assert response["outputs"].keys() == expected.keys()
        for alias, values in expected.items():
            found = response["outputs"][alias]["values"]
            if alias == "log_likelihood":
                values = pytest.approx(values, rel=1e-5)
            assert found == values


def test_c_library_refuses_with_invalid_argument(export, tmp_path):
    response = run_in_c(
        export, "score", {"text": ["a", ""]}, tmp_path, "--ops", text_ops()
    )
    assert response["code"] == 3
    assert "text must not be empty" in response["message"]


def test_c_library_needs_the_text_ops(export, tmp_path):
    response = run_in_c(export, "score", {"text": ["a"]}, tmp_path)
    assert response["code"] != 0
    assert "Op type not registered 'Sentencepiece" in response["message"]


def test_c_library_catches_compiled_functions(tmp_path):
    class Compiled(tf.Module):
        @tf.function(
            input_signature=[tf.TensorSpec([None], tf.float32, name="x")],
            jit_compile=True,
        )
        def double(self, x):
            return {"y": 2.0 * x}

    module, folder = Compiled(), tmp_path / "1"
    tf.saved_model.save(
        module, str(folder), signatures={"serving_default": module.double}
    )
    inputs = {"x": [1.0, 2.0]}
    response = run_in_c(folder, "serving_default", inputs, tmp_path)
    assert response["code"] == 13
    assert "XLA compilation disabled" in response["message"]
    response = run_in_c(
        folder, "serving_default", inputs, tmp_path, "--keep-xla"
    )
    assert response["code"] == 0
    assert response["outputs"]["y"]["values"] == [2.0, 4.0]
