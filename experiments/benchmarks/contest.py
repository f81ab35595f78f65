"""Owns the contest: workers of ours and of the peers, side by side in one run.

Not: what a worker computes (workers/), nor what a script makes of the answers.

A script's shape:

    def ask(config):
        settings = {"model": …}
        with Contest(
            [
                ours("kerasgpt", "kerasgpt_worker.py", settings),
                peer("torch eager", "torch_worker.py", settings, config),
            ],
            config,
        ) as contest:
            contest.play({"run": 1})
        for outcome in contest.outcomes:
            outcome.missing or outcome.spread      # why not, or what was seen
        return Answer(table(header, rows), figures=[…], data=contest.record)

    if __name__ == "__main__":
        run_benchmark(ask, CONFIG, quick=["repeats=2"], document=__doc__)

`report.py` has what becomes of the answers: `Answer`, `table`, `run_benchmark`.

A worker is a process of its own that lives through the whole contest. It says
one JSON line when it is ready, {"ready": true, …facts}, and one line for each
request; {"run": n} is answered by {"seconds": [n numbers], …}. Python workers
get this from `workers/protocol.py`.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from experiments.benchmarks.peers import FOLDER, PeersMissing, peers_python
from experiments.benchmarks.report import Spread, machine_facts
from experiments.benchmarks.workers.protocol import status_bytes
from kerasgpt.config import Config, InputError, setting

# Contestants' names, and the library that each measures the machine with.
YARDSTICKS = {"yardstick torch": "torch", "yardstick tensorflow": "tensorflow"}
# CPU seconds a second that a waiting worker may take from the others.
SPIN_FRACTION = 0.05


@dataclasses.dataclass(frozen=True)
class ContestConfig(Config):
    """What all benchmarks share."""

    threads: int = setting(2, "of every contestant", minimum=1)
    cores: str = setting(
        "", "such as 0,1; empty = the first `threads` this process may use"
    )
    repeats: int = setting(
        5, "rounds; each asks every contestant once", minimum=1
    )
    contestants: str = setting(
        "", "parts of names, comma between: only these; empty = all"
    )
    peers_python: str = setting(
        "",
        "a python that has the peers; empty = an environment made once from "
        "peers.txt in experiments/runs/.peers",
    )
    record: str = setting(
        "", "folder that gets <script>.json and .md; empty = none"
    )


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One worker of a comparison.

    Attributes:
        name: str, unique in its contest.
        command: list of str, the process to start.
        environment: dict of str, added to the process' environment.
        missing: str. Why it cannot take part; shown in its row.
    """

    name: str
    command: list
    environment: dict = dataclasses.field(default_factory=dict)
    missing: str = ""


@dataclasses.dataclass
class Outcome:
    """What one contestant told.

    Attributes:
        name: str.
        missing: str. Why it was not measured, or stopped; empty = it was.
        facts: dict, from its ready message: compile_seconds, parameters,
            versions, …
        answers: list of dict, one a round.
        start_seconds: float, from process start to ready.
        peak_bytes: int, largest resident memory of the process so far.
        idle_fraction: float. CPU seconds a second while others ran: a
            contestant whose threads spin slows the rest.
    """

    name: str
    missing: str = ""
    facts: dict = dataclasses.field(default_factory=dict)
    answers: list = dataclasses.field(default_factory=list)
    start_seconds: float = 0.0
    peak_bytes: int = 0
    idle_fraction: float = 0.0

    @property
    def seconds(self):
        """List of float: all repetitions of all rounds."""
        return [s for answer in self.answers for s in answer["seconds"]]

    @property
    def spread(self):
        """Spread of `seconds`."""
        return Spread.of(self.seconds)

    def speed_against(self, other):
        """Returns the Spread over rounds of other's seconds over ours.

        Above 1 we were faster. Paired by round: noise that hits both cancels.
        """
        return Spread.of(
            [
                statistics.median(theirs["seconds"])
                / statistics.median(ours["seconds"])
                for ours, theirs in zip(
                    self.answers, other.answers, strict=True
                )
            ]
        )


def ours(name, worker, settings, **environment):
    """Returns a contestant that runs under this very Python.

    Args:
        name: str.
        worker: str, file in workers/.
        settings: dict of JSON values, the worker's only argument.
        **environment: str. Added to the process' environment.
    """
    return _contestant(name, sys.executable, worker, settings, environment)


def peer(name, worker, settings, config, **environment):
    """Returns a contestant that runs under the peers' Python.

    If that cannot be had, the contestant carries the reason instead.

    Args:
        config: ContestConfig.
        name, worker, settings, **environment: see `ours`.
    """
    try:
        python = peers_python(config)
    except PeersMissing as error:
        return Contestant(name, [], missing=str(error))
    return _contestant(name, python, worker, settings, environment)


def _contestant(name, python, worker, settings, environment):
    path = str(FOLDER / "workers" / worker)
    return Contestant(
        name, [str(python), path, json.dumps(settings)], environment
    )


class Contest:
    """Workers alive together, asked in turn.

    Workers start one after the other, so that none compiles while another
    is timed. In each round every worker is asked once; the order moves on by
    one from round to round, so that noise of the machine hits all alike.

    Two more workers, the yardsticks, measure in every round what the machine
    can do at best: a large float32 matrix product and reading memory.

    Args:
        contestants: list of Contestant.
        config: ContestConfig.
        with_yardsticks: bool.

    Attributes:
        outcomes: list of Outcome, in the order of `contestants`.

    Raises:
        InputError: if `config.contestants` names none, or cores are asked for
            that this process may not use.
    """

    def __init__(self, contestants, config, *, with_yardsticks=True):
        wanted = [part for part in config.contestants.split(",") if part]
        contestants = [
            contestant
            for contestant in contestants
            if not wanted or any(part in contestant.name for part in wanted)
        ]
        if not contestants:
            raise InputError(
                f"contestants={config.contestants}: there is none so named."
            )
        self.config = config
        self.outcomes = [Outcome(c.name, c.missing) for c in contestants]
        self.yardsticks = []
        if with_yardsticks:
            measures = [
                peer(name, "yardstick_worker.py", {"library": library}, config)
                if library == "torch"
                else ours(name, "yardstick_worker.py", {"library": library})
                for name, library in YARDSTICKS.items()
            ]
            self.yardsticks = [Outcome(c.name, c.missing) for c in measures]
            contestants = contestants + measures
        self._contestants = contestants
        self._workers = {}
        self._rounds = 0

    def __enter__(self):
        print(
            f"{len(self._contestants)} workers, {self.config.threads} threads "
            f"each; started one by one:"
        )
        try:
            # Libraries size their thread pools by the cores they may use.
            with on_cores(self.config) as self.cores:
                for contestant in self._contestants:
                    self._start(contestant)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, contestant):
        outcome = self[contestant.name]
        if not outcome.missing:
            started = time.perf_counter()
            try:
                worker = _Worker(contestant, self.config.threads)
                self._workers[contestant.name] = worker
                outcome.facts = worker.answer()
            except WorkerLost as error:
                outcome.missing = str(error)
                self._workers.pop(contestant.name, None)
            outcome.start_seconds = time.perf_counter() - started
        state = f"ready after {outcome.start_seconds:.1f} s"
        if outcome.missing:
            state = f"not measured: {outcome.missing}"
        print(f"  {contestant.name}: {state}", flush=True)

    def __getitem__(self, name):
        """Returns the Outcome of the contestant or yardstick so named."""
        for outcome in [*self.outcomes, *self.yardsticks]:
            if outcome.name == name:
                return outcome
        raise KeyError(name)

    def ready(self, name):
        """Returns the Outcome so named if its worker lives, or None."""
        for outcome in [*self.outcomes, *self.yardsticks]:
            if outcome.name == name and not outcome.missing:
                return outcome
        return None

    def measured(self, name):
        """Returns the Outcome so named if it was measured, or None."""
        outcome = self.ready(name)
        return outcome if outcome and outcome.answers else None

    def play(self, request, *, rounds=None):
        """Asks every worker `rounds` times, round by round.

        A worker that dies is dropped, and its outcome says why.

        Args:
            request: dict, or a function of the contestant's name that
                returns one, or None to leave it out of this round.
            rounds: int. `None` = the setting `repeats`.
        """
        names = [contestant.name for contestant in self._contestants]
        for _ in range(rounds or self.config.repeats):
            shift = self._rounds % len(names)
            self._rounds += 1
            for name in names[shift:] + names[:shift]:
                if name in YARDSTICKS:
                    message = {}
                else:
                    message = request(name) if callable(request) else request
                if name in self._workers and message is not None:
                    self._ask(name, message)

    def _ask(self, name, request):
        outcome, worker = self[name], self._workers[name]
        try:
            outcome.answers.append(worker.ask(request))
            outcome.peak_bytes = worker.peak_bytes
            outcome.idle_fraction = worker.idle_fraction
        except WorkerLost as error:
            outcome.missing = str(error)
            del self._workers[name]
            print(f"  {name}: not measured: {outcome.missing}", flush=True)

    def __exit__(self, *_):
        for name, worker in self._workers.items():
            worker.stop()
            if self[name].idle_fraction > SPIN_FRACTION:
                print(
                    f"  {name}: takes {self[name].idle_fraction:.0%} of a core "
                    f"while others are timed."
                )
        self._workers = {}

    @property
    def peak_flops(self):
        """Float32 FLOP/s: the better library's median over the rounds."""
        return self._best("flops")

    @property
    def bandwidth(self):
        """Bytes read a second: the better library's median over the rounds."""
        return self._best("bytes_per_second")

    def _best(self, name):
        medians = [
            statistics.median(answer[name] for answer in outcome.answers)
            for outcome in self.yardsticks
            if outcome.answers
        ]
        return max(medians, default=float("nan"))

    @property
    def facts(self):
        """Dict: the machine, its measured limits, versions, commit, date."""
        facts = {
            **machine_facts(),
            "cores": self.cores,
            "threads": self.config.threads,
            "versions": {
                name: version
                for outcome in [*self.outcomes, *self.yardsticks]
                for name, version in outcome.facts.get("versions", {}).items()
            },
        }
        if self.yardsticks:
            facts["matmul_gflops"] = round(self.peak_flops / 1e9, 1)
            facts["read_gb_per_second"] = round(self.bandwidth / 1e9, 1)
        return facts

    @property
    def record(self):
        """Dict of all that was told, for the record."""
        return {
            "machine": self.facts,
            "outcomes": [
                dataclasses.asdict(outcome)
                for outcome in [*self.outcomes, *self.yardsticks]
            ],
        }


class WorkerLost(Exception):
    """A worker died or spoke nonsense; says in one line how."""


class _Worker:
    """A process that answers JSON lines."""

    def __init__(self, contestant, threads):
        # Closed by `stop`, as late as the process ends.
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self.process = subprocess.Popen(
                contestant.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": str(threads),
                    "TF_CPP_MIN_LOG_LEVEL": "2",
                    "CUDA_VISIBLE_DEVICES": "",
                    "PYTHONUNBUFFERED": "1",
                    **contestant.environment,
                },
            )
        except OSError as error:
            raise WorkerLost(
                f"{contestant.command[0]}: {error.strerror}"
            ) from error
        self.idle_seconds = self.idle_cpu_seconds = 0.0
        self.peak_bytes = 0
        self.last_seen = None

    def ask(self, request):
        if self.last_seen:
            clock, cpu_seconds = self.last_seen
            self.idle_seconds += time.perf_counter() - clock
            self.idle_cpu_seconds += self._cpu_seconds() - cpu_seconds
        with self._alive():
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        return self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        try:
            answer = json.loads(line)
        except ValueError:
            raise WorkerLost(self._last_words()) from None
        with self._alive():
            self.peak_bytes = status_bytes("VmHWM", self.process.pid)
        self.last_seen = time.perf_counter(), self._cpu_seconds()
        return answer

    @property
    def idle_fraction(self):
        return self.idle_cpu_seconds / max(self.idle_seconds, 1e-9)

    def stop(self):
        # A worker ends with its requests, and cleans up behind itself.
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()

    def _cpu_seconds(self):
        with self._alive(), open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[-1].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    @contextlib.contextmanager
    def _alive(self):
        try:
            yield
        except OSError:
            raise WorkerLost(self._last_words()) from None

    def _last_words(self):
        """Stops the process, shows its log, and returns how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        status = self.process.poll()
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").splitlines()
        lines = [line for line in lines if line.strip()]
        self.stop()
        print(*lines[-20:], sep="\n", file=sys.stderr)
        if status is None:
            return "spoke no JSON"
        if status < 0:
            return f"killed by signal {-status} (too little memory?)"
        last = lines[-1] if lines else "no word on stderr"
        return f"exit status {status}: {last.strip()[:200]}"


@contextlib.contextmanager
def on_cores(config):
    """Confines this thread, and processes started in the block, to the cores.

    Yields:
        list of int, the cores.

    Raises:
        InputError: for cores that this process may not use.
    """
    before = os.sched_getaffinity(0)
    try:
        cores = [int(part) for part in config.cores.split(",") if part]
    except ValueError:
        raise InputError(
            f"cores={config.cores}: must be numbers with commas between."
        ) from None
    cores = cores or sorted(before)[: config.threads]
    if not set(cores) <= before or len(cores) < config.threads:
        raise InputError(
            f"cores={config.cores}, threads={config.threads}: this process "
            f"may use the cores {sorted(before)}; give each thread one."
        )
    os.sched_setaffinity(0, cores)
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, before)
