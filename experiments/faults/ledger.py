"""Owns what became of all trials, over several calls. Not: the trials."""

import dataclasses
import json
import pathlib

from experiments.faults.trial import Outcome
from kerasgpt.files import write_text


class Ledger:
    """Outcomes by the name of their fault: a JSON line a trial.

    Args:
        path: str or Path, read if there is one. `None` = in memory only.
        commit: str. Of what is added.
    """

    def __init__(self, path, commit):
        self.path = path and pathlib.Path(path)
        self.commit = commit
        self.lines = []
        if self.path and self.path.is_file():
            self.lines = [
                json.loads(line)
                for line in self.path.read_text(encoding="utf-8").splitlines()
            ]

    def outcomes(self, name, seeds):
        """Returns {seed: Outcome} of those seeds that were tried."""
        fields = [field.name for field in dataclasses.fields(Outcome)]
        return {
            line["seed"]: Outcome(*(line[field] for field in fields))
            for line in self.lines
            if line["name"] == name and line["seed"] in seeds
        }

    def commits(self):
        """Returns list of str, that of each trial once, as they came."""
        return list(dict.fromkeys(line["commit"] for line in self.lines))

    def add(self, name, outcomes):
        """Keeps more outcomes."""
        self.lines += [
            {"name": name, "commit": self.commit, **dataclasses.asdict(outcome)}
            for outcome in outcomes
        ]
        self._write()

    def forget(self, name):
        """Drops the outcomes of a fault, which is to be tried again."""
        self.lines = [line for line in self.lines if line["name"] != name]
        self._write()

    def _write(self):
        if self.path:
            write_text(
                self.path,
                "".join(
                    json.dumps(line, ensure_ascii=False) + "\n"
                    for line in self.lines
                ),
            )
