import json
import subprocess
import sys

import pytest

from kerasgpt.tokenizers.jinja_template import WORKER

TASK = {
    "source": "{{ messages[0].content }}{{ extra }}",
    "variables": {"extra": "!"},
    "requests": [
        {
            "messages": [{"role": "user", "content": "a"}],
            "add_generation_prompt": False,
        }
    ],
    "now": "1999-12-31T00:00:00",
    "seconds": 5,
    "memory_bytes": 512 << 20,
}


def work(**changes):
    done = subprocess.run(
        [sys.executable, "-I", str(WORKER)],
        input=json.dumps({**TASK, **changes}),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def reply(**changes):
    returncode, output = work(**changes)
    assert returncode == 0
    return json.loads(output)


def test_a_request_a_reply():
    assert reply() == [{"text": "a!"}]
    assert reply(requests=[]) == []
    assert reply(requests=TASK["requests"] * 3) == [{"text": "a!"}] * 3


def test_one_refusal_does_not_stop_the_others():
    source = "{{ raise_exception('no') if add_generation_prompt else 'yes' }}"
    requests = [
        {"messages": [], "add_generation_prompt": flag}
        for flag in (True, False)
    ]
    assert reply(source=source, requests=requests) == [
        {"error": "no"},
        {"text": "yes"},
    ]


@pytest.mark.parametrize("source", ["{% for %}", "{{ 'a", "{% nothing %}"])
def test_no_template_is_one_error(source):
    assert set(reply(source=source)) == {"error"}


def test_line_ends_after_statements_are_dropped_and_others_kept():
    source = "{% if true %}\n  {% if true %}\n{{ 1 }}\n{% endif %}\n{% endif %}"
    assert reply(source=source) == [{"text": "1\n"}]


def test_json_is_written_as_it_is_read():
    source = "{{ {'b': '<你>', 'a': 1} | tojson }}"
    assert reply(source=source) == [{"text": '{"b": "<你>", "a": 1}'}]
    source = "{{ {'b': 2, 'a': 1} | tojson(indent=1, sort_keys=true) }}"
    assert reply(source=source) == [{"text": '{\n "a": 1,\n "b": 2\n}'}]


def test_strings_that_double_end_at_the_limit_of_memory():
    source = (
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}"
        "{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
    )
    assert reply(source=source) == [{"error": "MemoryError"}]


def test_endless_work_ends_at_the_limit_of_time():
    source = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
    returncode, output = work(source=source, seconds=1)
    assert returncode != 0
    assert output == ""


def test_the_process_can_write_no_file(tmp_path):
    # Whatever breaks out of the sandbox: the limits are the process's own.
    place = tmp_path / "file"
    script = WORKER.read_text().replace(
        "        reply = render(**task)",
        f"        open({str(place)!r}, 'w').write('x' * 9)\n"
        f"        reply = render(**task)",
    )
    assert str(place) in script
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        input=json.dumps(TASK),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout
    assert place.read_text() == ""
