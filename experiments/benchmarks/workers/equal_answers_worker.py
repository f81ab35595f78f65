"""Answers the same questions in every way that there is, greedily.

Settings: model, a model folder; export, a folder of versions of the same
model; server, the command that serves it; questions, how many; new_tokens.
"""

import concurrent.futures
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

import tensorflow as tf

from experiments.benchmarks.load import Server, closed_loop
from experiments.benchmarks.workers.protocol import serve, versions
from experiments.benchmarks.workers.serving_task import conversations
from kerasgpt.checkpoints.model_folder import load_model
from kerasgpt.generation import Generator
from kerasgpt.serving.client import RestClient

# Rows of one call: more would only wait for the longest answer.
ROWS = 32
CLIENTS = 16


def columns(prompts, new_tokens):
    """Returns the inputs of `generate_ids`, greedy, as nested lists."""
    width, count = max(map(len, prompts)), len(prompts)
    return {
        "token_ids": [
            prompt + [0] * (width - len(prompt)) for prompt in prompts
        ],
        "length": [len(prompt) for prompt in prompts],
        "max_new_tokens": [new_tokens] * count,
        "temperature": [0.0] * count,
        "top_k": [0] * count,
        "top_p": [1.0] * count,
        "seed": [0] * count,
    }


def in_batches(prompts, call):
    """Returns the ids that `call` generates after each prompt.

    Args:
        prompts: list of lists of int.
        call: function of some prompts that returns the signature's outputs
            as nested lists.
    """
    batches = [
        prompts[first : first + ROWS] for first in range(0, len(prompts), ROWS)
    ]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(call, batches))
    return [
        ids[:length]
        for output in outputs
        for ids, length in zip(
            output["token_ids"], output["length"], strict=True
        )
    ]


def by_signature(export, prompts, new_tokens):
    module = tf.saved_model.load(export)
    generate_ids = module.signatures["generate_ids"]
    dtypes = {
        name: spec.dtype
        for name, spec in generate_ids.structured_input_signature[1].items()
    }

    def call(rows):
        inputs = {
            name: tf.constant(value, dtypes[name])
            for name, value in columns(rows, new_tokens).items()
        }
        outputs = generate_ids(**inputs)
        return {name: outputs[name].numpy().tolist() for name in outputs}

    return in_batches(prompts, call)


def by_rest(url, name, prompts, new_tokens):
    def call(rows):
        with RestClient(url, name) as client:
            inputs = columns(rows, new_tokens)
            return client.predict("generate_ids", inputs)

    return in_batches(prompts, call)


def by_openai(address, chats, new_tokens):
    """Returns the text and the number of tokens of each answer."""
    bodies = [
        json.dumps(
            {"messages": chat, "max_tokens": new_tokens, "temperature": 0}
        ).encode()
        for chat in chats
    ]
    _, replies = closed_loop(
        address,
        [("/v1/chat/completions", body) for body in bodies],
        num_clients=CLIENTS,
    )
    return [
        [
            reply.json()["choices"][0]["message"]["content"],
            reply.json()["usage"]["completion_tokens"],
        ]
        for reply in replies
    ]


def by_keras_eager(model, tokenizer, prompts, new_tokens):
    tf.config.run_functions_eagerly(True)
    try:
        generator = Generator(model, tokenizer, jit_compile=False)
        return generator.generate_ids(prompts, new_tokens)
    finally:
        tf.config.run_functions_eagerly(False)


def build(settings):
    model, tokenizer = load_model(settings["model"])
    new_tokens = settings["new_tokens"]
    chats = conversations(settings["questions"])
    generator = Generator(model, tokenizer)
    prompts = [generator.template.prompt(chat) for chat in chats]
    expected = generator.generate_ids(prompts, new_tokens)
    texts = [[tokenizer.decode(ids), len(ids)] for ids in expected]
    export = pathlib.Path(settings["export"])
    version = max(export.iterdir(), key=lambda path: path.name)
    ways = {
        "Keras eager": by_keras_eager(model, tokenizer, prompts, new_tokens),
        "SavedModel": by_signature(str(version), prompts, new_tokens),
    }
    with Server(settings["server"]) as server:
        ways["REST :predict"] = by_rest(
            f"http://{server.address}", export.name, prompts, new_tokens
        )
        openai = by_openai(server.address, chats, new_tokens)
    equal = {
        way: sum(map(list.__eq__, ids, expected)) for way, ids in ways.items()
    }
    # This route tells text: the same, of as many tokens.
    equal["OpenAI"] = sum(map(list.__eq__, openai, texts))
    unequal = [
        {"way": way, "chat": chat, "expected": one, "seen": other}
        for way, wanted, seen in (
            *((way, expected, ids) for way, ids in ways.items()),
            ("OpenAI", texts, openai),
        )
        for chat, one, other in zip(chats, wanted, seen, strict=True)
        if one != other
    ]
    facts = {
        "questions": len(chats),
        "tokens": sum(map(len, expected)),
        "distinct": len({text for text, _ in texts}),
        "equal": equal,
        "first_unequal": unequal[:1],
        "versions": versions("keras", "tensorflow"),
    }
    return facts, lambda request: {"seconds": []}


if __name__ == "__main__":
    serve(build)
