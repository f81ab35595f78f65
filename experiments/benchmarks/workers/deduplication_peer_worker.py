"""Deduplicates with datasketch or rensa, as their documentation shows.

Settings: a task of deduplication_task.py, and library.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

from experiments.benchmarks.workers.deduplication_task import (
    build_texts,
    shingles,
)
from experiments.benchmarks.workers.protocol import serve, timed, versions


def with_datasketch(task):
    """Returns functions: shingles -> sketch; sketches -> numbers of likes."""
    from datasketch import MinHash, MinHashLSH

    def sketch(pieces):
        minhash = MinHash(num_perm=task["num_permutations"])
        minhash.update_batch([piece.encode() for piece in pieces])
        return minhash

    def find(sketches):
        index = MinHashLSH(
            threshold=task["threshold"], num_perm=task["num_permutations"]
        )
        for number, minhash in enumerate(sketches):
            yield index.query(minhash)
            index.insert(number, minhash, check_duplication=False)

    return sketch, find


def with_rensa(task):
    """The same with rensa; its index checks its candidates itself."""
    from rensa import RMinHash, RMinHashLSH

    def sketch(pieces):
        minhash = RMinHash(num_perm=task["num_permutations"], seed=1)
        minhash.update(list(pieces))
        return minhash

    def find(sketches):
        index = RMinHashLSH(
            threshold=task["threshold"],
            num_perm=task["num_permutations"],
            num_bands=task["num_bands"],
        )
        for number, minhash in enumerate(sketches):
            yield [
                other
                for other in index.query(minhash)
                if sketches[other].jaccard(minhash) >= task["threshold"]
            ]
            index.insert(number, minhash)

    return sketch, find


def build(task):
    library = task["library"]
    sketch, find = {"datasketch": with_datasketch, "rensa": with_rensa}[
        library
    ](task)
    texts, _ = build_texts(task)

    def first_of_clusters(found):
        firsts = []
        for number, others in enumerate(found):
            roots = [firsts[other] for other in others]
            first = min(roots, default=number)
            firsts.append(first)
            for root in set(roots) - {first}:
                firsts = [first if f == root else f for f in firsts]
        return firsts

    def run(_):
        cutting, pieces = timed(
            lambda: [shingles(text, task["shingle_length"]) for text in texts]
        )
        finding, firsts = timed(
            lambda: first_of_clusters(find([sketch(piece) for piece in pieces]))
        )
        return {
            "seconds": [cutting + finding],
            "cutting_seconds": cutting,
            "firsts": firsts,
        }

    return {"versions": versions(library)}, run


if __name__ == "__main__":
    serve(build)
