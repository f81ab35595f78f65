import threading

from kerasgpt.serving.metrics import Metrics

LABELS = 'model_name="shop",model_version="1",API="predict",entrypoint="REST"'


def values(metrics):
    """Returns the numbers by name and labels, in the order of the text."""
    lines = metrics.text().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line[0] != "#")
    return {name: float(value) for name, value in pairs}


def count(metrics, seconds=0.002, status="OK"):
    metrics.count_request("shop", 1, status, seconds=seconds, api="predict")


def test_requests_are_counted_by_model_version_and_status():
    metrics = Metrics()
    for status in ("OK", "OK", "INVALID_ARGUMENT"):
        count(metrics, status=status)
    name = ":tensorflow:serving:request_count"
    labels = 'model_name="shop",model_version="1",status='
    assert values(metrics)[f'{name}{{{labels}"OK"}}'] == 2
    assert values(metrics)[f'{name}{{{labels}"INVALID_ARGUMENT"}}'] == 1


def test_the_histogram_is_cumulative_and_ends_with_all():
    metrics = Metrics()
    for seconds in (1e-6, 20e-6, 1e9):
        count(metrics, seconds)
    name = ":tensorflow:serving:request_latency"
    told = values(metrics)
    buckets = [told[key] for key in told if key.startswith(f"{name}_bucket")]
    assert buckets == sorted(buckets)
    assert told[f'{name}_bucket{{{LABELS},le="10"}}'] == 1
    assert told[f'{name}_bucket{{{LABELS},le="18"}}'] == 1
    assert told[f'{name}_bucket{{{LABELS},le="32.4"}}'] == 2
    assert told[f'{name}_bucket{{{LABELS},le="+Inf"}}'] == 3
    assert told[f"{name}_count{{{LABELS}}}"] == 3
    assert told[f"{name}_sum{{{LABELS}}}"] == 1e15 + 21


def test_tokens_add_up_and_queues_are_looked_at_when_asked():
    metrics = Metrics()
    depths = [3, 5]
    metrics.watch_queue("predict", depths.pop)
    metrics.count_tokens("shop", "prompt", 7)
    metrics.count_tokens("shop", "prompt", 5)
    told = values(metrics)
    assert told['kerasgpt_queue_depth{queue="predict"}'] == 5
    assert told['kerasgpt_tokens_total{model_name="shop",kind="prompt"}'] == 12
    assert values(metrics)['kerasgpt_queue_depth{queue="predict"}'] == 3


def test_a_name_cannot_break_a_line():
    metrics = Metrics()
    metrics.count_tokens('a"\n\\b', "prompt", 1)
    assert r'{model_name="a\"\n\\b",kind="prompt"} 1' in metrics.text()


def test_every_family_has_its_type_even_before_a_request():
    lines = Metrics().text().splitlines()
    assert [line.split()[0:2] for line in lines] == [["#", "TYPE"]] * 4
    assert Metrics().text().endswith("\n")


def test_threads_lose_no_count():
    metrics = Metrics()
    threads = [
        threading.Thread(target=lambda: [count(metrics) for _ in range(200)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 800 in values(metrics).values()
