"""Owns the process in which Jinja of others is rendered. Not: starting it.

Run by `jinja_template.py` as a program of its own, which imports nothing of
kerasgpt: what a template breaks, or breaks out into, is this process, which
has limits on memory, time and files, no environment and nothing to say but
its answer. Standard input and output are one JSON value each.
"""

import datetime
import json
import resource
import sys

# Of what templates write around contents; the contents are not here.
MAX_CHARACTERS = 1_000_000


def render(source, variables, requests, now):
    """Returns what a template writes for each request.

    Args:
        source: str, a `chat_template`.
        variables: dict, such as {"bos_token": "<s>"}.
        requests: list of dicts of messages and add_generation_prompt.
        now: str, the ISO time that `strftime_now` tells.

    Returns:
        list of {"text": str} or {"error": str}, one a request; or one
        {"error": str}, if the source is no template.
    """
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """`{% generation %}`: marks what is trained, which we know."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(
                ["name:endgeneration"], drop_needle=True
            )
            return jinja2.nodes.Scope(body, lineno=line)

    def refuse(message):
        raise jinja2.TemplateError(str(message))

    def to_json(value, ensure_ascii=False, **options):
        known = ("indent", "separators", "sort_keys")
        options = {name: options[name] for name in known if name in options}
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = datetime.datetime.fromisoformat(
        now
    ).strftime
    try:
        template = environment.from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        return {"error": _line(error)}
    replies = []
    for request in requests:
        pieces, num_characters = [], 0
        try:
            for piece in template.generate(
                **variables, tools=None, documents=None, **request
            ):
                num_characters += len(piece)
                if num_characters > MAX_CHARACTERS:
                    refuse(f"it writes more than {MAX_CHARACTERS:,} characters")
                pieces.append(piece)
            replies.append({"text": "".join(pieces)})
        # A template is a program: it may fail in any way.
        except Exception as error:
            replies.append({"error": _line(error)})
    return replies


def _line(error):
    told = " ".join(str(error).split()) or type(error).__name__
    return told[:200].encode(errors="replace").decode()


def main():
    """Answers the one request on standard input."""
    task = json.load(sys.stdin)
    seconds, size = task.pop("seconds"), task.pop("memory_bytes")
    # Python, Jinja and an answer have room in it; one growing string has not.
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        reply = render(**task)
    except ImportError:
        reply = {"missing": "jinja2"}
    json.dump(reply, sys.stdout)


if __name__ == "__main__":
    main()
