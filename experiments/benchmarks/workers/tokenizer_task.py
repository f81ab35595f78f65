"""Owns what all tokenizers of a benchmark are given, and how they answer.

Standard library only: it runs under the peers' Python too.

A task is a folder: texts.json, the list of texts to encode; byte_pair/ and
sentence_piece/, tokenizers as transformers reads them, the first with GPT-2's
vocab.json and merges.txt as well; learn.json and held_out.json, texts to train
on and to measure.
"""

import ctypes
import gc
import hashlib
import itertools
import json
import pathlib
import struct
import time

from experiments.benchmarks.workers.protocol import status_bytes


def read_texts(task, name):
    """Returns a list of str of a task's folder."""
    path = pathlib.Path(task["folder"], f"{name}.json")
    return json.loads(path.read_text())


def encoder(encode, task, texts, **facts):
    """Returns what `serve` needs: facts, and an answer of seconds.

    Each answer is of texts that were not seen before, as caches would know
    them; the first, which compiles, is told apart.

    Args:
        encode: function of a list of str; returns rows of ids. It is called
            with `task["round_texts"]` texts at a time, in order.
        task: dict, the settings.
        texts: list of str.
        **facts: for the ready message.
    """
    size = task["round_texts"]
    slices = itertools.cycle(
        texts[start : start + size] for start in range(0, len(texts), size)
    )

    def run(_):
        chosen = next(slices)
        started, worked = time.perf_counter(), time.process_time()
        rows = encode(chosen)
        seconds = time.perf_counter() - started
        cpu_seconds = time.process_time() - worked
        digest = hashlib.sha256()
        for row in rows:
            digest.update(struct.pack(f"<{len(row)}i", *row))
        return {
            "seconds": [seconds],
            "cpu_seconds": cpu_seconds,
            "num_bytes": sum(len(text.encode()) for text in chosen),
            "ids": digest.hexdigest()[:8],
        }

    return {"first": run(None), **facts}, run


def trainer(train, held_out, **facts):
    """Returns what `serve` needs: an answer of seconds, bytes, compression.

    Args:
        train: function without arguments; returns a function from texts to
            rows of ids.
        held_out: list of str.
        **facts: for the ready message.
    """

    def run(_):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = status_bytes("VmRSS")
        started = time.perf_counter()
        encode = train()
        seconds = time.perf_counter() - started
        peak = status_bytes("VmHWM") - before
        num_tokens = sum(map(len, encode(held_out)))
        num_bytes = sum(len(text.encode()) for text in held_out)
        return {
            "seconds": [seconds],
            "bytes": peak,
            "compression": num_bytes / num_tokens,
        }

    return facts, run
