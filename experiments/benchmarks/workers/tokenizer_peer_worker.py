"""Encodes or trains with tokenizers, tiktoken or sentencepiece.

Settings: folder, of tokenizer_task.py; who; kind; vocabulary_size.
"""

import io
import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

from experiments.benchmarks.workers.protocol import serve, versions
from experiments.benchmarks.workers.tokenizer_task import (
    encoder,
    read_texts,
    trainer,
)

# Llama 3's.
REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2_REGEX = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?!\S)|\s+"
)


def build_encoder(task):
    texts = read_texts(task, "texts")
    folder = pathlib.Path(task["folder"], task["kind"])
    if task["who"] == "tokenizers":
        import tokenizers

        table = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        # Special tokens in a text are text.
        table.encode_special_tokens = True

        def encode(chosen):
            # The one that computes no offsets.
            return [one.ids for one in table.encode_batch_fast(chosen)]

    elif task["who"] == "tiktoken":
        import tiktoken

        encoding = tiktoken.Encoding(
            "task",
            pat_str=GPT2_REGEX,
            mergeable_ranks=_ranks(folder),
            special_tokens={},
        )

        def encode(chosen):
            return [encoding.encode_ordinary(text) for text in chosen]

    else:
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(
            model_file=str(folder / "tokenizer.model")
        )

        def encode(chosen):
            return processor.encode(chosen, num_threads=1)

    return encoder(encode, task, texts, versions=versions(task["who"]))


def _ranks(folder):
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    known = {chr(byte): byte for byte in printable}
    known |= {chr(256 + place): byte for place, byte in enumerate(others)}
    vocabulary = json.loads((folder / "vocab.json").read_text())
    return {
        bytes(known[one] for one in token): token_id
        for token, token_id in vocabulary.items()
    }


def build_trainer(task):
    texts = read_texts(task, "learn")
    held_out = read_texts(task, "held_out")
    train = {"tokenizers": _tokenizers, "sentencepiece": _sentencepiece}
    return trainer(
        lambda: train[task["who"]](texts, task["vocabulary_size"]),
        held_out,
        versions=versions(task["who"]),
    )


def _tokenizers(texts, vocabulary_size):
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    table = Tokenizer(models.BPE())
    table.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    table.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            # Ours has nine control tokens besides.
            vocab_size=vocabulary_size - 9,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return lambda held_out: [
        one.ids for one in table.encode_batch_fast(held_out)
    ]


def _sentencepiece(texts, vocabulary_size):
    import sentencepiece

    writer = io.BytesIO()
    # Lossless, as ours; what is rarer than 0.05 % is spelled in bytes.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(
            line for text in texts for line in text.split("\n") if line
        ),
        model_writer=writer,
        model_type="bpe",
        vocab_size=vocabulary_size,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        split_digits=True,
        user_defined_symbols=["\n"],
        max_sentence_length=1 << 20,
        num_threads=len(os.sched_getaffinity(0)),
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(
        model_proto=writer.getvalue()
    )
    return processor.encode


def build(task):
    if task["job"] == "train":
        return build_trainer(task)
    return build_encoder(task)


if __name__ == "__main__":
    # One thread for each contestant, before Rust's pool is made.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    serve(build)
