"""Prints small tokenizers as we write them for transformers.

`make_huggingface_tokenizers.py` reads it.
"""

import base64
import json
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from kerasgpt.tokenizers.huggingface import save_huggingface_tokenizer
from kerasgpt.tokenizers.kinds import EXACT_KINDS, train_tokenizer

LINES = (
    "to be, or not to be, that is the question: don't we'll I'VE they're 123",
    "你好，世界！今天天气很好，我们一起去公园。你好吗？",
    "def add(left, right):\n    return left + right\n\n\nprint(add(1, 22))\n",
    "The theory of the thing is that there are other theories. <0x41> <s>",
)


def files(kind):
    tokenizer = train_tokenizer(kind, LINES * 5, vocabulary_size=420)
    with tempfile.TemporaryDirectory() as folder:
        save_huggingface_tokenizer(folder, tokenizer, max_length=64)
        return {
            path.name: path.read_text()
            if path.suffix == ".json"
            else base64.b64encode(path.read_bytes()).decode()
            for path in sorted(pathlib.Path(folder).iterdir())
        }


if __name__ == "__main__":
    json.dump({kind: files(kind) for kind in EXACT_KINDS}, sys.stdout)
