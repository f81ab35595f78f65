"""What `tokenizers` makes of texts with byte-level byte pairs.

Command   <python with the peers> tests/goldens/make_byte_pair.py \
          > tests/goldens/byte_pair.json
Needs     tokenizers 0.23.3, tiktoken (to compare, where it has the split)

For each family's way to cut words, a tokenizer of some hundred tokens is
trained on the lines below; its tokenizer.json and its ids of the texts are
the golden.
"""

import json
import random
import sys

import tiktoken
import tokenizers
from tokenizers import (
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

LINES = (
    "to be, or not to be, that is the question: don't we'll I'VE they're 123",
    "你好，世界！今天天气很好，我们一起去公园。你好吗？",
    "def add(left, right):\n    return left + right\n\n\nprint(add(1, 22))\n",
    "The theory of the thing is that there are other theories.  And\tthen\r\n",
    "naïve café Straße ПРИВЕТ привет \U0001f600\U0001f600 XMLHttpRequest",
    "    indented\n        twice\n\n\n",
)
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LATER = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# As published with GPT-2, Llama 3, Qwen 2 and GPT-4o.
REGEXES = {
    "gpt2": (
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
        r"|\s+(?!\S)|\s+"
    ),
    "llama3": _ENDING + rf"|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}" + _LATER,
    "qwen2": _ENDING + rf"|{_LEAD}\p{{L}}+|\p{{N}}" + _LATER,
    "o200k": (
        rf"{_LEAD}{_UPPER}*{_LOWER}+{_ENDING}?"
        rf"|{_LEAD}{_UPPER}+{_LOWER}*{_ENDING}?|\p{{N}}{{1,3}}"
        + _LATER.replace(r"[\r\n]*", r"[\r\n/]*")
    ),
}
SPECIALS = {
    "gpt2": ["<|endoftext|>"],
    "gpt2_digits": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama3": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "o200k": ["<|endoftext|>"],
}
PARTS = (
    *("\t", "\n", "\r\n", "\x0b", "\x85", "\xa0", "\u2003", "\u3000", "   "),
    *("\u200b", "\x1c", "\0", "\x7f", "\ufeff", "\ufffd", "\U0010ffff"),
    *("'s", "'S", "'\u017f", "'ll", "'Re", "'", " '", "'x", "\u2019s"),
    *("0", "123", "45678", "\u0663", "\u2167", "½", " 9"),
    *("你好", "世界，", "。", "！\n", "龘", "한국어", "日本"),
    *("é", "e\u0301", "ǅ", "ß", "İı", "Ж", "\u0e33", "\ufb01"),
    *("\U0001f468\u200d\U0001f469", "\u2764\ufe0f", "\U0001f1e8\U0001f1f3"),
    *("<|endoftext|>", "http://a.b/c?d=e", "x += 1;", "/\n/", "#!?", "\u2581"),
    *(" the", "The", " question", "theory", "XMLHttp", "aaaaaaa", " ", "  "),
)


def texts():
    draw = random.Random(0)
    made = ["", " ", "  ", "\n", "a", " a", "  a", "\n a", " \na", "a  "]
    made += list(LINES)
    for _ in range(240):
        parts = draw.choices(PARTS, k=draw.randint(1, 12))
        if draw.random() < 0.3:
            point = draw.randrange(0x110000 - 0x800)
            parts.append(chr(point + 0x800 if point >= 0xD800 else point))
        draw.shuffle(parts)
        made.append("".join(parts))
    return made


def pre_tokenizer(name):
    if name == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "gpt2_digits":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(REGEXES[name]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def build(name):
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=name == "llama3"))
    tokenizer.pre_tokenizer = pre_tokenizer(name)
    tokenizer.decoder = decoders.ByteLevel()
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES * 3, trainer)
    tokenizer.add_special_tokens(SPECIALS[name])
    return tokenizer


def tiktoken_ids(name, tokenizer, made):
    """Returns what tiktoken says, which must be the same."""
    spelled = tokenizer.decoder
    ranks = {}
    for token, token_id in tokenizer.get_vocab().items():
        if token not in SPECIALS[name]:
            ranks[_bytes(token)] = token_id
    assert spelled is not None
    encoding = tiktoken.Encoding(
        name, pat_str=REGEXES[name], mergeable_ranks=ranks, special_tokens={}
    )
    return [encoding.encode_ordinary(text) for text in made]


def _bytes(token):
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    known = {chr(byte): byte for byte in printable}
    known |= {chr(256 + place): byte for place, byte in enumerate(others)}
    return bytes(known[one] for one in token)


def main():
    made = texts()
    found = {}
    for name in SPECIALS:
        tokenizer = build(name)
        # Special tokens in a text are text here.
        tokenizer.encode_special_tokens = True
        ids = [one.ids for one in tokenizer.encode_batch(made)]
        if name in ("gpt2", "llama3", "o200k"):
            assert ids == tiktoken_ids(name, tokenizer, made), name
        found[name] = {
            "tokenizer.json": json.loads(tokenizer.to_str()),
            "ids": ids,
        }
    versions = {"tokenizers": tokenizers.__version__}
    golden = {"versions": versions, "texts": made, "tokenizers": found}
    json.dump(golden, sys.stdout, ensure_ascii=True)
    print()


if __name__ == "__main__":
    main()
