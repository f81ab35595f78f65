"""Owns what is counted of requests, and its Prometheus text.

Not: routes. The package prometheus_client offers the same; its registries,
process collectors and multiprocess files are not needed for four families.
"""

import bisect
import collections
import threading

# Microseconds, as TensorFlow Serving's histogram: powers of 1.8 from 10.
_BOUNDS = tuple(10 * 1.8**power for power in range(33))
_REQUESTS = ":tensorflow:serving:request_count"
_LATENCY = ":tensorflow:serving:request_latency"
_QUEUE = "kerasgpt_queue_depth"
_TOKENS = "kerasgpt_tokens_total"


class Metrics:
    """Counts of requests, their latency, queues and tokens; thread-safe.

    The first two families have TensorFlow Serving's names, so that its
    dashboards read them; a label `model_version` is added.

    Example:
        >>> metrics = Metrics()
        >>> metrics.count_request("s", 1, "OK", seconds=0.002, api="predict")
        >>> name, count = metrics.text().splitlines()[1].split("{")
        >>> count
        'model_name="s",model_version="1",status="OK"} 1'
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._requests = collections.Counter()
        self._latencies = collections.defaultdict(lambda: [0] * len(_BOUNDS))
        self._microseconds = collections.Counter()
        self._tokens = collections.Counter()
        self._gauges = {}

    def count_request(
        self, model, version, status, *, seconds, api, entrypoint="REST"
    ):
        """Counts an answered request.

        Args:
            model: str. A served model's name: names that clients make up would
                grow without limit.
            version: int or str.
            status: str, the name of a status code such as "OK", or a number of
                HTTP's.
            seconds: float, from its arrival to its answer.
            api: str, such as "predict".
            entrypoint: str, "REST" or "GRPC".
        """
        labels = (("model_name", model), ("model_version", version))
        place = (*labels, ("API", api), ("entrypoint", entrypoint))
        microseconds = seconds * 1e6
        with self._lock:
            self._requests[(*labels, ("status", status))] += 1
            bucket = bisect.bisect_left(_BOUNDS, microseconds)
            counts = self._latencies[place]
            counts[min(bucket, len(_BOUNDS) - 1)] += 1
            self._microseconds[place] += microseconds

    def count_tokens(self, model, kind, number):
        """Adds tokens; `kind` is "prompt_tokens" or "completion_tokens"."""
        with self._lock:
            self._tokens[(("model_name", model), ("kind", kind))] += number

    def watch_queue(self, queue, depth):
        """Reports the depth of a queue: `depth` is called at each reading.

        Args:
            queue: str, its name.
            depth: function of no argument that returns an int.
        """
        with self._lock:
            self._gauges[(("queue", queue),)] = depth

    def text(self):
        """Returns all of it in Prometheus' text format."""
        with self._lock:
            lines = [
                *_family(_REQUESTS, "counter", self._requests),
                *self._histogram(),
                *_family(
                    _QUEUE,
                    "gauge",
                    {labels: depth() for labels, depth in self._gauges.items()},
                ),
                *_family(_TOKENS, "counter", self._tokens),
            ]
        return "\n".join(lines) + "\n"

    def _histogram(self):
        yield f"# TYPE {_LATENCY} histogram"
        for place, counts in sorted(self._latencies.items()):
            total = 0
            for bound, count in zip(
                (*(f"{bound:.6g}" for bound in _BOUNDS[:-1]), "+Inf"),
                counts,
                strict=True,
            ):
                total += count
                labels = _labels((*place, ("le", bound)))
                yield f"{_LATENCY}_bucket{labels} {total}"
            yield f"{_LATENCY}_sum{_labels(place)} {self._microseconds[place]}"
            yield f"{_LATENCY}_count{_labels(place)} {total}"


def _family(name, kind, values):
    yield f"# TYPE {name} {kind}"
    for labels, value in sorted(values.items(), key=str):
        yield f"{name}{_labels(labels)} {value}"


def _labels(pairs):
    escapes = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    texts = (f'{key}="{str(value).translate(escapes)}"' for key, value in pairs)
    return f"{{{','.join(texts)}}}"
