"""Prints what `make_chat_templates.py` reads; run from the project's root."""

import json

from kerasgpt.tokenizers import CONTROL_TOKENS
from kerasgpt.tokenizers.chat_format import build_chat_format
from kerasgpt.tokenizers.jinja_template import to_jinja

CONTROLS = {
    "kerasgpt": list(CONTROL_TOKENS),
    "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama-3": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ],
    "zephyr": ["<unk>", "<s>", "</s>"],
    "alpaca": ["<unk>", "<s>", "</s>"],
}


def main():
    templates = {
        name: {
            "control_tokens": tokens,
            "jinja": to_jinja(build_chat_format(name, tokens)),
        }
        for name, tokens in CONTROLS.items()
    }
    print(json.dumps(templates))


if __name__ == "__main__":
    main()
