"""Question  Which settings train a base model best, of those that `choose`
          below draws from?
Command   python experiments/run_search.py [num_trials=8] \
[data.documents_path=my_texts/]
"""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from kerasgpt.cli import run_script
from kerasgpt.config import setting
from kerasgpt.data.prepare import load_corpus
from kerasgpt.files import write_json, write_text
from kerasgpt.training import pretrain, stage
from kerasgpt.training.run_folder import claim_folder
from kerasgpt.training.search import (
    HPARAMS_FOLDER,
    search,
    trial_table,
)

# Comparable between tokenizers, and what the report is sorted by.
OBJECTIVE = "bits_per_byte"


def choose(hyperparameters):
    """Returns what a trial tries; add a line to search for more."""
    draw = hyperparameters
    return {
        "train.learning_rate_factor": draw.Float(
            "learning_rate_factor", 0.25, 4.0, sampling="log"
        ),
        "train.muon_learning_rate_ratio": draw.Float(
            "muon_learning_rate_ratio", 1.0, 15.0, sampling="log"
        ),
        "train.weight_decay": draw.Float(
            "weight_decay", 1e-3, 0.3, sampling="log"
        ),
        "train.decay_fraction": draw.Choice("decay_fraction", [0.2, 0.6, 0.9]),
    }


@dataclasses.dataclass(frozen=True)
class SearchRunConfig(pretrain.PretrainConfig):
    """A search: what each trial trains, and how many there are."""

    run_dir: str = setting("experiments/runs/search", "folder of the search")
    num_trials: int = setting(
        8,
        "settings that are tried; a finished search may be given more",
        minimum=1,
    )


CONFIG = SearchRunConfig().override(
    [
        "model.depth=2",
        "model.model_dim=64",
        "data.num_documents=8000",
        "data.num_chats=2000",
        "train.steps=100",
        "train.evaluate_steps=100",
    ]
)
TINY = CONFIG.override(
    [
        "num_trials=2",
        "model.model_dim=32",
        "model.context_length=64",
        "tokenizer.vocabulary_size=800",
        "data.num_products=20",
        "data.num_documents=300",
        "data.num_chats=300",
        "data.max_skipped_fraction=0.9",
        "data.validation_fraction=0.1",
        "train.steps=2",
        "train.batch_tokens=512",
    ]
)


def main(config):
    folder = claim_folder(
        config.run_dir,
        config,
        overwrite=config.overwrite,
        ignored=("run_dir", "overwrite", "num_trials", *stage.HARDWARE_ONLY),
    )
    pretrain.claim_data(folder, config.data)
    corpus = load_corpus(config.data, with_chats=False)
    values = config.to_dict()
    del values["num_trials"]
    base = pretrain.PretrainConfig.from_dict(values)

    def evaluate(values, trial_folder):
        overrides = [f"{key}={value}" for key, value in values.items()]
        trial = base.override([*overrides, f"run_dir={trial_folder}"])
        return {
            name: value
            for name, value in pretrain.run(trial, corpus).metrics.items()
            if name != "before"
        }

    trials = search(
        folder,
        choose,
        evaluate,
        objective=OBJECTIVE,
        num_trials=config.num_trials,
        seed=config.seed,
    )
    shown = trial_table(trials, OBJECTIVE)
    write_json(
        folder / "report.json",
        {
            "trials": [dataclasses.asdict(trial) for trial in trials],
            "config": config.to_dict(),
        },
    )
    write_text(folder / "report.md", f"# Search\n\n{shown}\n")
    best = " ".join(f"{key}={value}" for key, value in trials[0].values.items())
    print(
        f"""
{shown}

report          {folder}/report.md
HParams         tensorboard --logdir {folder / HPARAMS_FOLDER}
more trials     python experiments/run_search.py \
num_trials={2 * len(trials)}
use the best    python experiments/run_pretrain.py {best}"""
    )


if __name__ == "__main__":
    run_script(
        main,
        CONFIG,
        stages=lambda config: {"train": config.train},
        document=__doc__,
    )
