"""Writes new tokens with CTranslate2, from Hugging Face's GPT-2 converted.

Settings: a task of decode_task.py; compute_type, "float32" or "int8"; threads.
"""

import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

import ctranslate2
from ctranslate2.converters.transformers import GPT2Loader

from experiments.benchmarks.workers.decode_task import contestant, prompts
from experiments.benchmarks.workers.decode_transformers_worker import (
    build_model,
)
from experiments.benchmarks.workers.protocol import serve, versions


def convert(model, task, folder):
    """Writes a GPT2LMHeadModel as CTranslate2 reads it, ids for words."""
    loader = GPT2Loader()
    spec = loader.get_model_spec(model)
    words = [str(token_id) for token_id in range(task["vocabulary_size"])]
    loader.set_vocabulary(spec, words)
    # Of a row of zeros: never generated, see decode_task.py.
    for name in ("bos_token", "eos_token", "unk_token"):
        setattr(spec.config, name, words[0])
    spec.validate()
    spec.optimize()
    spec.save(folder)


def decode(task):
    model = build_model(task)
    with tempfile.TemporaryDirectory() as folder:
        convert(model, task, folder)
        generator = ctranslate2.Generator(
            folder,
            device="cpu",
            compute_type=task["compute_type"],
            inter_threads=1,
            intra_threads=task["threads"],
        )
    rows = [[str(one) for one in row] for row in prompts(task).tolist()]

    def generate():
        results = generator.generate_batch(
            rows,
            max_batch_size=0,
            max_length=task["new_tokens"],
            beam_size=1,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return [result.sequences_ids[0] for result in results]

    return contestant(
        generate,
        parameters=sum(p.numel() for p in model.parameters()),
        versions=versions("ctranslate2"),
    )


if __name__ == "__main__":
    serve(decode)
