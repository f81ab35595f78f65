"""What transformers makes of the tokenizers that we write.

Command   python tests/goldens/print_tokenizers.py \
          | <python with the peers> \
            tests/goldens/make_huggingface_tokenizers.py \
          > tests/goldens/huggingface_tokenizers.json
Needs     transformers 5.24.0, tokenizers 0.23.3, sentencepiece, no network

The texts are those of byte_pair.json, which is made before.
"""

import base64
import json
import pathlib
import sys
import tempfile

import sentencepiece
import tokenizers
import transformers

TEXTS = pathlib.Path(__file__).with_name("byte_pair.json")
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "你好 to be?"},
    {"role": "assistant", "content": "or not\n"},
]


def answers(files, texts):
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = pathlib.Path(folder, name)
            if name.endswith(".json"):
                path.write_text(content)
            else:
                path.write_bytes(base64.b64decode(content))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    # A special token in a text is text.
    ids = [
        tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=True
        )
        for text in texts
    ]
    chat = tokenizer.apply_chat_template(
        CHAT, return_dict=True, return_assistant_tokens_mask=True
    )
    prompt = tokenizer.apply_chat_template(
        CHAT[:2], add_generation_prompt=True, return_dict=True
    )
    return {
        "ids": ids,
        "texts": [
            tokenizer.decode(row, skip_special_tokens=True) for row in ids
        ],
        "chat_ids": chat["input_ids"],
        "chat_mask": chat["assistant_masks"],
        "prompt_ids": prompt["input_ids"],
        "length": len(tokenizer),
    }


def main():
    texts = json.loads(TEXTS.read_text())["texts"][::2]
    texts += ["<0x41>", "<|user|>", "\u2581 a\u2581b", "\U0010ffff1"]
    written = json.load(sys.stdin)
    made = {
        kind: {"files": files, **answers(files, texts)}
        for kind, files in written.items()
    }
    versions = {
        one.__name__: one.__version__
        for one in (sentencepiece, tokenizers, transformers)
    }
    json.dump(
        {"versions": versions, "texts": texts, "chat": CHAT, "kinds": made},
        sys.stdout,
    )
    print()


if __name__ == "__main__":
    main()
