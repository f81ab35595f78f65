"""Owns scores of translations. Not: making them (generation/beam.py)."""

from kerasgpt.config import InputError


def score_translations(translations, references, *, language):
    """Returns how near translations are to one reference each.

    By `sacrebleu`, whose signatures are returned with its numbers.

    Args:
        translations, references: lists of str.
        language: "zh", whose characters are counted as words, or another.

    Returns:
        dict of "bleu" and "chrf", float from 0 to 100; "exact", share of
        translations that equal the reference; "texts", int; and "signature",
        str.

    Raises:
        InputError: without `sacrebleu`.

    Reference: Post 2018, A call for clarity in reporting BLEU scores (arXiv
    1804.08771); Popović 2015, chrF (WMT).
    """
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError as error:
        raise InputError(
            "BLEU and chrF need sacrebleu; pip install 'kerasgpt[bleu]'."
        ) from error
    bleu = BLEU(tokenize="zh" if language == "zh" else "13a")
    chrf = CHRF()
    translations, references = list(translations), list(references)
    same = [
        one == other
        for one, other in zip(translations, references, strict=True)
    ]
    return {
        "bleu": bleu.corpus_score(translations, [references]).score,
        "chrf": chrf.corpus_score(translations, [references]).score,
        "exact": sum(same) / max(1, len(same)),
        "texts": len(same),
        "signature": f"{bleu.get_signature()} {chrf.get_signature()}",
    }
