"""Runs the scripts of the ladder, at their smallest, from data to figures."""

import json

import pytest

from experiments import run_baselines, run_mlm, run_translate

pytestmark = pytest.mark.slow


def run(script, folder, *overrides):
    config = script.TINY.override([f"run_dir={folder}", *overrides])
    script.main(config)
    return config


def test_every_rung_is_scored_and_shown(tmp_path, capsys):
    run(run_baselines, tmp_path)
    ladder = json.loads((tmp_path / "ladder.json").read_text())
    rungs = {rung["name"]: rung for rung in ladder["rungs"]}
    assert [*rungs] == [
        "uniform",
        "unigram",
        "2-gram",
        "3-gram",
        "4-gram",
        "5-gram",
        "5-gram, add-k",
        "5-gram, MLE",
        "RNN",
        "GRU",
        "LSTM",
        "GPT",
    ]
    bits = [rungs[name]["bits_per_byte"] for name in [*rungs][:6]]
    assert bits == sorted(bits, reverse=True)
    assert (tmp_path / "ladder.png").is_file()
    out = capsys.readouterr().out
    assert "| LSTM |" in out
    # Two steps teach no network as much as counting does.
    assert "no better than the rung below: RNN" in out


def test_a_run_goes_on_where_it_was(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question.\n" * 200)
    folder = tmp_path / "run"
    run(run_baselines, folder, f"data.path={text}")
    before = (folder / "gpt_seconds.json").read_text()
    capsys.readouterr()
    run(run_baselines, folder, f"data.path={text}")
    assert "GPT: already trained" in capsys.readouterr().out
    assert (folder / "gpt_seconds.json").read_text() == before


@pytest.mark.parametrize("next_sentence", ["true", "false"])
def test_a_masked_lm_is_trained_and_measured(tmp_path, capsys, next_sentence):
    run(run_mlm, tmp_path, f"mask.next_sentence={next_sentence}")
    measured = json.loads((tmp_path / "mask_filling.json").read_text())
    assert set(measured) == {"en", "zh"}
    assert measured["zh"]["units"] > 10
    assert "kerasgpt fill-mask" in capsys.readouterr().out


def test_a_translator_is_trained_and_scored(tmp_path):
    pytest.importorskip("sacrebleu")
    run(run_translate, tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores) == {"en", "zh"}
    assert sum(values["texts"] for values in scores.values()) == 4
    rows = (tmp_path / "translations.tsv").read_text().splitlines()
    assert len(rows) == 4


def test_pairs_of_a_file_are_split_by_their_sources(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"word {n % 40}\t词 {n}\n" for n in range(120)))
    config = run_translate.CONFIG.override([f"data.path={path}"])
    splits = run_translate.read_splits(config.data)
    assert len(splits["train"]) + len(splits["validation"]) == 120
    sources = {name: {s for s, _ in pairs} for name, pairs in splits.items()}
    assert sources["validation"]
    assert not sources["train"] & sources["validation"]
