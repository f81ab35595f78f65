"""Question  How fast are texts encoded and tokenizers trained, beside peers?
Command   python experiments/benchmarks/tokenizer.py \\
              texts=my_texts/ gpt2=folder_of_encoder.json_and_vocab.bpe

Encoding on one thread: SentencePiece in tf.data beside `tokenizers` and
`sentencepiece` with the same model; byte pairs with GPT-2's vocabulary, in
tf.data, eagerly and a page at a time, beside KerasHub's graph, `tokenizers`
and `tiktoken`. Equal ids first. Then training, each alone on `threads`, and
what it compresses texts to that were not learned from.
"""

import contextlib
import dataclasses
import pathlib
import random
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments.benchmarks.contest import Contest, ContestConfig, ours, peer
from experiments.benchmarks.report import (
    Answer,
    Figure,
    Spread,
    machine_facts,
    machine_line,
    run_benchmark,
    table,
)
from kerasgpt.config import InputError, setting
from kerasgpt.data import shop
from kerasgpt.data.fertility import sample_texts
from kerasgpt.data.rows import cut
from kerasgpt.data.sources import Document, stream_documents
from kerasgpt.files import read_json, write_json, write_text
from kerasgpt.tokenizers.byte_pair import (
    BytePairTokenizer,
    spell,
    train_byte_pair,
    unspell,
)
from kerasgpt.tokenizers.huggingface import save_huggingface_tokenizer
from kerasgpt.tokenizers.sentence_piece import train_sentence_piece

# Contestants by kind of tokenizer: name -> worker, who, and whether it is ours.
OURS, PEERS = "tokenizer_worker.py", "tokenizer_peer_worker.py"
ENCODERS = {
    "sentence_piece": {
        "kerasgpt, tf.data": (OURS, "tf.data"),
        "tokenizers": (PEERS, "tokenizers"),
        "sentencepiece": (PEERS, "sentencepiece"),
    },
    "byte_pair": {
        "kerasgpt, tf.data": (OURS, "tf.data"),
        "kerasgpt, eager": (OURS, "eager"),
        "kerasgpt, a page at a time": (OURS, "one"),
        "KerasHub, tf.data": (OURS, "keras_hub"),
        "tokenizers": (PEERS, "tokenizers"),
        "tiktoken": (PEERS, "tiktoken"),
    },
}
TRAINERS = {
    "kerasgpt, byte_pair": (OURS, "kerasgpt", "byte_pair"),
    "kerasgpt, sentence_piece": (OURS, "kerasgpt", "sentence_piece"),
    "tokenizers, byte level": (PEERS, "tokenizers", ""),
    "sentencepiece, BPE": (PEERS, "sentencepiece", ""),
}
# Whose figure stands beside which of ours.
RIVALS = {
    "kerasgpt, byte_pair": "tokenizers, byte level",
    "kerasgpt, sentence_piece": "sentencepiece, BPE",
}
# Characters of a page.
PAGE_CHARACTERS = 2000
HEADER = [
    "kind",
    "contestant",
    "MB/s",
    "of CPU time",
    "first call, MB/s",
    "ids",
]
TRAIN_HEADER = ["trainer", "s", "peak MB", "bytes/token"]


@dataclasses.dataclass(frozen=True)
class TokenizerBenchmarkConfig(ContestConfig):
    """Encoding and training."""

    jobs: str = setting("encode,train", "which; commas between")
    texts: str = setting(
        "", "files or folder, comma between; empty = the shop's documents"
    )
    gpt2: str = setting(
        "",
        "folder with GPT-2's encoder.json and vocab.bpe; empty = 8,192 pairs "
        "learned from the texts",
    )
    round_texts: int = setting(
        512,
        "pages of 2,000 characters of new text a round, a multiple of 512",
        minimum=512,
    )
    train_megabytes: float = setting(
        50.0, "of text, repeated if there is less", unit="MB", minimum=0.001
    )
    vocabulary_size: int = setting(8192, "that is trained", unit="tokens")


CONFIG = TokenizerBenchmarkConfig()
QUICK = [
    "repeats=2",
    "train_megabytes=1",
    "vocabulary_size=1024",
]


def read_texts(config):
    """Returns documents of about a page, a list of str."""
    if config.texts:
        documents = [
            item.text
            for item in stream_documents(config.texts.split(","))
            if isinstance(item, Document)
        ]
    else:
        world = shop.build_world(0, 100)
        documents = list(shop.generate_documents(world, count=40_000))
        documents = [
            "\n".join(documents[first : first + 40])
            for first in range(0, len(documents), 40)
        ]
    texts = [text for text in cut(documents) if text.strip()]
    if not texts:
        raise InputError(f"texts={config.texts}: hold no text.")
    return texts


def write_encoders(config, texts, folder):
    """Writes the tokenizers that all encode with."""
    learned = sample_texts(texts, num_bytes=2_000_000)
    pieces = train_sentence_piece(
        learned, vocabulary_size=config.vocabulary_size
    )
    pairs = train_byte_pair(
        learned, vocabulary_size=config.vocabulary_size, split="gpt2"
    )
    if config.gpt2:
        source = pathlib.Path(config.gpt2)
        vocabulary = read_json(source / "encoder.json")
        lines = (source / "vocab.bpe").read_text(encoding="utf-8").split("\n")
        end = vocabulary.pop("<|endoftext|>")
        pairs = BytePairTokenizer(
            {unspell(token): i for token, i in vocabulary.items()},
            [tuple(map(unspell, line.split())) for line in lines[1:] if line],
            control_tokens={"<|endoftext|>": end},
            split="gpt2",
        )
    for name, tokenizer in (("sentence_piece", pieces), ("byte_pair", pairs)):
        (folder / name).mkdir()
        save_huggingface_tokenizer(folder / name, tokenizer)
    spelled = {spell(token): i for token, i in pairs.vocabulary.items()}
    write_json(folder / "byte_pair" / "vocab.json", spelled)
    merges = [f"{spell(left)} {spell(right)}" for left, right in pairs.merges]
    write_text(folder / "byte_pair" / "merges.txt", "\n".join(merges))


def contestant(name, worker, settings, config):
    if worker == OURS:
        return ours(name, worker, settings)
    return peer(name, worker, settings, config)


def encode(config, texts, folder):
    """Returns (rows, figures, data) of encoding, each on one thread."""
    if config.round_texts % 512:
        raise InputError(
            f"round_texts={config.round_texts}: must be a multiple of 512."
        )
    pages = [
        text[start : start + PAGE_CHARACTERS]
        for text in sample_texts(texts, num_bytes=20_000_000)
        for start in range(0, len(text), PAGE_CHARACTERS)
    ]
    pages = random.Random(0).sample(pages, len(pages))
    needed = (1 + config.repeats) * config.round_texts
    if len(pages) < needed:
        raise InputError(
            f"texts={config.texts}: hold {len(pages)} pages; {needed} are "
            f"needed for {config.repeats} rounds of {config.round_texts}."
        )
    write_json(folder / "texts.json", pages[:needed])
    write_encoders(config, texts, folder)
    rows, figures, data = [], [], {}
    config = dataclasses.replace(config, threads=1)
    for kind, encoders in ENCODERS.items():
        print(f"\n{kind}: ", end="")
        workers = [
            contestant(
                name,
                worker,
                {
                    "job": "encode",
                    "folder": str(folder),
                    "kind": kind,
                    "who": who,
                    "round_texts": config.round_texts,
                },
                config,
            )
            for name, (worker, who) in encoders.items()
        ]
        with Contest(workers, config, with_yardsticks=False) as contest:
            contest.play({"run": 1})
        rows += [encode_row(kind, outcome) for outcome in contest.outcomes]
        figures += encode_figures(kind, contest)
        data[kind] = contest.record
    return rows, figures, data


def encode_row(kind, outcome):
    if outcome.missing:
        return [kind, outcome.name, f"not measured: {outcome.missing}"]
    first = outcome.facts["first"]
    speeds = Spread.of(
        [
            answer["num_bytes"] / answer["seconds"][0] / 1e6
            for answer in outcome.answers
        ]
    )
    of_cpu = statistics.median(
        answer["num_bytes"] / answer["cpu_seconds"] / 1e6
        for answer in outcome.answers
    )
    return [
        kind,
        outcome.name,
        speeds.show(digits=2),
        f"{of_cpu:.2f}",
        f"{first['num_bytes'] / first['seconds'][0] / 1e6:.2f}",
        outcome.answers[0]["ids"],
    ]


def cpu_speed_against(one, other):
    """Returns the Spread over rounds of other's CPU seconds over one's."""
    return Spread.of(
        [
            theirs["cpu_seconds"] / ours["cpu_seconds"]
            for ours, theirs in zip(one.answers, other.answers, strict=True)
        ]
    )


def encode_figures(kind, contest):
    goals = [("kerasgpt, tf.data", "tokenizers", 1.0)]
    if kind == "byte_pair":
        goals += [
            ("kerasgpt, tf.data", "KerasHub, tf.data", 10.0),
            ("kerasgpt, eager", "KerasHub, tf.data", 10.0),
        ]
    figures = []
    for mine, theirs, goal in goals:
        one, other = contest.measured(mine), contest.measured(theirs)
        if one and other:
            speed = one.speed_against(other)
            figures.append(
                Figure(
                    f"encode {kind}: {mine} over {theirs}",
                    f"≥ {goal:g} ×",
                    # Of processor time as well: a machine may have other work.
                    f"{speed.show(digits=2)} ×, of CPU time "
                    f"{cpu_speed_against(one, other).show(digits=2)} ×",
                    speed.median >= goal,
                )
            )
    told = {
        outcome.name: [answer["ids"] for answer in outcome.answers]
        for outcome in contest.outcomes
        if outcome.answers
    }
    first = next(iter(told.values()), None)
    odd = [name for name, ids in told.items() if ids != first]
    figures.append(
        Figure(
            f"encode {kind}: ids of all contestants",
            "equal",
            f"other ids: {', '.join(odd)}" if odd else "equal",
            not odd,
        )
    )
    return figures


def train(config, texts, folder):
    """Returns (rows, figures, data) of training, one trainer after another."""
    held_out = texts[::50]
    learned = [text for place, text in enumerate(texts) if place % 50]
    size = sum(len(text.encode()) for text in learned)
    times = max(1, round(config.train_megabytes * 1e6 / size))
    if times == 1:
        learned = sample_texts(
            learned, num_bytes=int(config.train_megabytes * 1e6)
        )
    write_json(folder / "learn.json", learned * times)
    write_json(folder / "held_out.json", held_out)
    outcomes, data = [], {"repeated": times}
    for name, (worker, who, kind) in TRAINERS.items():
        settings = {
            "job": "train",
            "folder": str(folder),
            "who": who,
            "kind": kind,
            "vocabulary_size": config.vocabulary_size,
        }
        one = contestant(name, worker, settings, config)
        # Alone: fifty megabytes of text and all pairs of them are in memory.
        with (
            contextlib.suppress(InputError),
            Contest([one], config, with_yardsticks=False) as contest,
        ):
            contest.play({"run": 1}, rounds=1)
            outcomes += contest.outcomes
            data[name] = contest.record
    rows = [train_row(outcome) for outcome in outcomes]
    return rows, train_figures(outcomes), data


def train_row(outcome):
    if not outcome.answers:
        return [outcome.name, f"not measured: {outcome.missing}"]
    (answer,) = outcome.answers
    return [
        outcome.name,
        f"{answer['seconds'][0]:.1f}",
        f"{answer['bytes'] / 1e6:,.0f}",
        f"{answer['compression']:.3f}",
    ]


def train_figures(outcomes):
    found = {one.name: one.answers[0] for one in outcomes if one.answers}
    figures = []
    for mine, theirs in RIVALS.items():
        if {mine, theirs} <= found.keys():
            one, other = found[mine], found[theirs]
            figures += [
                Figure(
                    f"train: bytes a token, {mine} over {theirs}",
                    "≥ 1.00 ×",
                    f"{one['compression'] / other['compression']:.3f} ×",
                    round(one["compression"] / other["compression"], 3) >= 1,
                ),
                Figure(
                    f"train: seconds and MB, {mine} beside {theirs}",
                    "told",
                    f"{one['seconds'][0]:.1f} s, {one['bytes'] / 1e6:,.0f} MB "
                    f"beside {other['seconds'][0]:.1f} s, "
                    f"{other['bytes'] / 1e6:,.0f} MB",
                ),
            ]
    return figures


def ask(config):
    jobs = config.jobs.split(",")
    if not set(jobs) <= {"encode", "train"}:
        raise InputError(f"jobs={config.jobs}: may be encode and train.")
    texts = read_texts(config)
    lines, figures, data = [], [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if "encode" in jobs:
            rows, found, data["encode"] = encode(config, texts, folder)
            lines += [*table(HEADER, rows), ""]
            figures += found
        if "train" in jobs:
            rows, found, data["train"] = train(config, texts, folder)
            lines += [*table(TRAIN_HEADER, rows), ""]
            figures += found
    lines += [f"{figure.name}: {figure.seen}" for figure in figures]
    facts = {**machine_facts(), "threads": config.threads, "versions": {}}
    lines += ["", machine_line({**facts, "versions": _versions(data)})]
    return Answer(lines, figures, data)


def _versions(data):
    """Returns the versions that all workers told."""
    found = {}
    for job in data.values():
        for record in job.values():
            if isinstance(record, dict):
                found |= record["machine"]["versions"]
    return found


if __name__ == "__main__":
    run_benchmark(ask, CONFIG, quick=QUICK, document=__doc__)
