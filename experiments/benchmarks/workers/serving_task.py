"""Owns what is served in a comparison: models, exports, prompts, questions.

A task is a dict that decode_task.py reads, without batch_size; its weights
never generate a control id, so that nothing stops a row.
"""

import sys

import numpy as np

from experiments.benchmarks.workers.decode_task import (
    NUM_CONTROL_IDS,
    weights,
)
from experiments.benchmarks.workers.kerasgpt_model import (
    GPT2,
    build_model,
    model_config,
)
from kerasgpt.checkpoints.model_folder import (
    find_model_folder,
    load_model,
    save_model,
)
from kerasgpt.data.shop import (
    build_world,
    generate_documents,
    generate_questions,
)
from kerasgpt.serving.saved_model import export_saved_model
from kerasgpt.tokenizers import train_sentence_piece

SHAPE_NAMES = (
    "vocabulary_size",
    "context_length",
    "num_layers",
    "model_dim",
    "num_heads",
)
SHAPES = {
    # As run_sft.py makes it.
    "shop": (2048, 256, 4, 128, 4),
    # GPT-2's kind, which Hugging Face has, too.
    "12M": (4096, 512, 6, 384, 6),
}
STYLES = {"shop": {}, "12M": {**GPT2, "activation": "gelu_tanh"}}
PROMPT_LENGTH = 32
# Of an export: as many as a request may ask for.
MAX_NEW_TOKENS = 128


def task_of(shape):
    """Returns the task of a shape's name."""
    return dict(zip(SHAPE_NAMES, SHAPES[shape], strict=True))


def untrained(shape):
    """Returns (GPTCausalLM, Tokenizer) of a shape, always the same."""
    task = task_of(shape)
    model = build_model(model_config(task, **STYLES[shape]), weights(task))
    documents = generate_documents(build_world(), count=4000)
    tokenizer = train_sentence_piece(
        documents, vocabulary_size=task["vocabulary_size"]
    )
    return model, tokenizer


def prompts(shape, *, count, seed):
    """Returns `count` lists of token ids, control ids not among them."""
    return (
        np.random.default_rng(seed)
        .integers(
            NUM_CONTROL_IDS,
            task_of(shape)["vocabulary_size"],
            size=(count, PROMPT_LENGTH),
        )
        .tolist()
    )


def conversations(count):
    """Returns `count` lists of messages, half English and half Chinese."""
    # There are only so many questions of some tasks.
    questions = generate_questions(
        build_world(), count_per_task=count // 10 + 10
    )
    spread = np.random.default_rng(0).permutation(len(questions))
    halves = {"en": [], "zh": []}
    for index in spread:
        halves[questions[index].language].append(
            [dict(message) for message in questions[index].messages]
        )
    return halves["en"][: count - count // 2] + halves["zh"][: count // 2]


class Models:
    """Model folders and exports, each made when it is first asked for.

    Args:
        folder: pathlib.Path, empty.
        run_folder: str, of the chat model; "" = an untrained one.
    """

    def __init__(self, folder, run_folder):
        self._folder = folder
        self._run_folder = run_folder

    def model(self, name):
        """Returns the str path of a model folder.

        Args:
            name: str, a shape's or "chat".
        """
        if name == "chat" and self._run_folder:
            return str(find_model_folder(self._run_folder))
        path = self._folder / "models" / name
        if not path.is_dir():
            shape = "shop" if name == "chat" else name
            path.parent.mkdir(exist_ok=True)
            save_model(path, *untrained(shape))
        return str(path)

    def export(self, name):
        """Returns the str path of a folder with one version."""
        path = self._folder / name
        if not path.is_dir():
            print(f"exporting {name} …", flush=True)
            export_saved_model(
                *load_model(self.model(name)),
                path,
                max_new_tokens=MAX_NEW_TOKENS,
            )
        return str(path)

    def command(self, name):
        """Returns the command that serves an export, as a user would."""
        command = [sys.executable, "-m", "kerasgpt.cli", "serve"]
        return [*command, self.export(name), "--rest_api_port=0"]
