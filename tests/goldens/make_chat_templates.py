"""What transformers makes of chat templates, ours and the published forms.

Command   python tests/goldens/print_jinja.py \
          | <python with transformers> tests/goldens/make_chat_templates.py \
          > tests/goldens/chat_templates.json
Needs     transformers 5.23.0, tokenizers 0.23.3, jinja2 3.1.6, no network

Standard input is {name: {"control_tokens": [...], "jinja": str}}: what
`to_jinja` writes for each built-in template. The tokenizer made here gives
control token i the id i and byte b the id of the last control token + 1 + b,
so that ids can be compared with those of a tokenizer of ours.
"""

import json
import sys

import tokenizers
import transformers

# Written by hand in the form that each family publishes with its models.
FORMS = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% endif %}"
    ),
    "llama-3": (
        "{{ bos_token }}{% for m in messages %}"
        "{% set head = '<|start_header_id|>' + m.role + '<|end_header_id|>' %}"
        "{{ head }}\n\n{{ m.content | trim }}{{ '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    # Line ends after an expression stay, those after a statement do not.
    "zephyr": (
        "{% for m in messages %}\n"
        "{% if m.role in ['system', 'user', 'assistant'] %}\n"
        "{{ '<|' + m.role + '|>\n' + m.content + eos_token }}\n"
        "{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n"
        "{{ '<|assistant|>' }}\n"
        "{% endif %}\n"
        "{% endfor %}"
    ),
    "alpaca": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}"
        "{{ messages[0].content }}{% set turns = messages[1:] %}{% else %}"
        "{{ 'Below is an instruction that describes a task. Write a response "
        "that appropriately completes the request.' }}"
        "{% set turns = messages %}{% endif %}{{ '\n\n' }}"
        "{% for m in turns %}{% if m.role == 'user' %}"
        "{{ '### Instruction:\n' + m.content + '\n\n' }}"
        "{% elif m.role == 'assistant' %}"
        "{{ '### Response:\n' + m.content + eos_token + '\n\n' }}"
        "{% else %}{{ raise_exception('no such role') }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}"
        "{% endif %}"
    ),
}
VARIABLES = {
    "chatml": {},
    "llama-3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "zephyr": {"bos_token": "<s>", "eos_token": "</s>"},
    "alpaca": {"bos_token": "<s>", "eos_token": "</s>"},
}
CHATS = [
    [("user", "Hello!")],
    [("user", "Hello!"), ("assistant", "Hi.")],
    [("system", "Be brief."), ("user", "你好"), ("assistant", "你好！")],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
    [("system", "s"), ("user", ""), ("assistant", "")],
    [("user", " a\n"), ("assistant", "\n b "), ("user", "\u3000c\t")],
    [("user", "{{ x }} {% if %} 'q' \"p\" \\n"), ("assistant", "🙂\r\n")],
]


def build_tokenizer(control_tokens):
    """Returns a byte-level tokenizer without merges."""
    alphabet = _byte_characters()
    vocabulary = {token: i for i, token in enumerate(control_tokens)}
    for byte in range(256):
        vocabulary[alphabet[byte]] = len(control_tokens) + byte
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocabulary, merges=[])
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(control_tokens))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _byte_characters():
    """Returns the character that byte-level tokenizers write for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + i) for i, byte in enumerate(others)}


def main():
    asked = json.load(sys.stdin)
    chats = [
        [{"role": role, "content": content} for role, content in chat]
        for chat in CHATS
    ]
    templates = {}
    for name, one in asked.items():
        tokenizer = build_tokenizer(one["control_tokens"])
        ours = []
        for chat in chats:
            for is_prompt in (False, True):
                # Bytes need not end with a character: text apart from ids.
                text = tokenizer.apply_chat_template(
                    chat,
                    chat_template=one["jinja"],
                    tokenize=False,
                    add_generation_prompt=is_prompt,
                )
                ids = tokenizer.apply_chat_template(
                    chat,
                    chat_template=one["jinja"],
                    return_dict=True,
                    return_assistant_tokens_mask=True,
                    add_generation_prompt=is_prompt,
                )
                ours.append(
                    {
                        "text": text,
                        "token_ids": list(ids["input_ids"]),
                        "loss_mask": list(ids["assistant_masks"]),
                    }
                )
        form = FORMS.get(name)
        published = [
            tokenizer.apply_chat_template(
                chat,
                chat_template=form,
                tokenize=False,
                add_generation_prompt=is_prompt,
                **VARIABLES[name],
            )
            for chat in chats
            for is_prompt in (False, True)
            if form
        ]
        templates[name] = {
            **one,
            "outputs": ours,
            "form": form,
            "variables": VARIABLES.get(name, {}),
            "form_texts": published,
        }
    golden = {
        "origin": "tests/goldens/make_chat_templates.py",
        "versions": {
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "chats": chats,
        "templates": templates,
    }
    json.dump(golden, sys.stdout, ensure_ascii=False)
    print()


if __name__ == "__main__":
    main()
