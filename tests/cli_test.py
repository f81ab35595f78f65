import contextlib
import dataclasses
import json
import os
import pathlib
import re
import runpy
import shutil
import signal
import subprocess
import sys

import pytest

from kerasgpt import cli
from kerasgpt.checkpoints import RunState, save_model, save_run_state
from kerasgpt.config import Config, InputError, setting
from kerasgpt.console import Interrupted
from kerasgpt.models import (
    ClassifierConfig,
    GPTCausalLM,
    MaskedLM,
    Seq2SeqLM,
    TextClassifier,
)
from kerasgpt.models.encoder import MARKS
from kerasgpt.serving import server
from kerasgpt.tokenizers import ByteTokenizer
from kerasgpt.training import sft
from kerasgpt.training.optimizers import build_optimizer
from tests.conftest import GOLDENS
from tests.descriptors import (
    tiny_config,
    tiny_encoder,
    tiny_encoder_decoder,
)

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "experiments"
ROW = json.dumps(
    {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
        ]
    }
)
# So little of the shop that it is made at once.
SMALL = ("data.num_products=20", "data.num_documents=10", "data.num_chats=10")


@pytest.fixture
def elsewhere(tmp_path_factory):
    """A folder to run in: the default paths are relative to it."""
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture
def call(monkeypatch, capsys, elsewhere):
    """Returns a function that runs a script here: (status, stdout, stderr)."""
    monkeypatch.chdir(elsewhere)

    def call(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        status = 0
        try:
            if script == "kerasgpt":
                cli.main()
            else:
                runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def assert_refused(result, *words):
    """Asserts one line on stderr, nothing on stdout, and status 2."""
    status, out, err = result
    assert status == 2
    assert out == ""
    assert err.startswith("error: ") and err.endswith("\n")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def tree(folder):
    return sorted(
        (str(path.relative_to(folder)), path.is_file() and path.read_bytes())
        for path in folder.rglob("*")
    )


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("trian.steps=3", ("no setting trian", "did you mean train.steps?")),
        ("zzz=3", ("no setting zzz", "--help")),
        ("train.stepz=3", ("did you mean train.steps?",)),
        ("train.steps=many", ("train.steps must be int", "'many'")),
        ("train.steps=1.5", ("train.steps must be int",)),
        ("train.learning_rate=nan", ("float or none",)),
        (
            "tokenizer.kind=morse",
            ("one of sentence_piece, unigram, byte_pair, byte", "'morse'"),
        ),
        ("overwrite=maybe", ("overwrite must be bool",)),
        ("model=4", ("model is a section", "model.depth=")),
        ("seed.more=4", ("seed is a single value",)),
        ("--dryrun", ("key=value",)),
        ("train.steps=0", ("steps=0: must be at least 1",)),
        ("evaluation.max_new_tokens=0", ("must be at least 1",)),
        (
            "data.validation_fraction=2",
            ("data.validation_fraction=2.0: must be at most 0.9.",),
        ),
        ("data.num_products=19", ("must be at least 20",)),
        ("train.clip_norm=inf", ("train.clip_norm=inf: must be finite",)),
        ("seed=-1", ("seed=-1: must be at least 0",)),
        (
            "tokenizer.vocabulary_size=299",
            ("tokenizer.vocabulary_size=299: must be at least 300",),
        ),
    ],
)
def test_a_setting_that_does_not_exist_or_fit_is_refused(call, argument, words):
    assert_refused(call("run_sft.py", argument), *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("chats.jsonl: no such file",)),
        (b"", ("is empty",)),
        (b"\x00\x01\x02", ("is a binary file",)),
        (f"{ROW}\n{{oops\n".encode(), ("chats.jsonl, line 2: malformed JSON",)),
        (b"caf\xe9\n", ("line 1: invalid UTF-8",)),
        (
            b'{"messages": [{"role": "user", "content": "Hi"}]}',
            ("1 of 1 rows cannot be used", "line 1: no assistant turn"),
        ),
        (
            b'{"messages": [{"role": "narrator", "content": "Hi"}]}',
            ("line 1: unknown role 'narrator'",),
        ),
        (f"{ROW}\n{ROW}\n".encode(), ("at least two different ones",)),
    ],
)
def test_data_that_cannot_be_used_is_refused_and_nothing_written(
    call, tmp_path, content, words
):
    if content is not None:
        (tmp_path / "chats.jsonl").write_bytes(content)
    before = tree(tmp_path)
    result = call(
        "run_sft.py",
        f"data.path={tmp_path / 'chats.jsonl'}",
        f"run_dir={tmp_path / 'run'}",
    )
    assert_refused(result, *words)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("script", ["run_sft.py", "run_pretrain.py"])
def test_a_directory_that_cannot_be_written_is_refused(call, tmp_path, script):
    (tmp_path / "file.txt").write_text("x")
    before = tree(tmp_path)
    folder = tmp_path / "file.txt" / "run"
    result = call(script, f"run_dir={folder}", *SMALL)
    assert_refused(result, str(folder), "cannot be written")
    assert tree(tmp_path) == before


@contextlib.contextmanager
def as_nobody():
    """Root may write everywhere, so it puts its rights aside."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("script", "setting"),
    [("run_pretrain.py", "run_dir"), ("run_sft.py", "export_dir")],
)
def test_a_directory_without_permission_is_refused(
    call, tmp_path, script, setting
):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    folder.chmod(0o000)
    with as_nobody():
        result = call(script, f"{setting}={folder / 'run'}", *SMALL)
    folder.chmod(0o700)
    assert_refused(result, str(folder), "Permission denied")
    assert not any(folder.iterdir())


def test_the_directory_of_another_run_is_refused(call, tmp_path):
    config = sft.SFTConfig().override(SMALL)
    config = {"software": "kerasgpt", **config.to_dict(), "seed": 7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "result.json").write_text("{}")
    before = tree(tmp_path)
    result = call("run_sft.py", f"run_dir={tmp_path}", *SMALL)
    assert_refused(result, "holds a run with seed=7, not 0", "overwrite=true")
    assert tree(tmp_path) == before


def test_a_directory_of_something_else_is_refused(call, tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    before = tree(tmp_path)
    result = call("run_sft.py", f"run_dir={tmp_path}", "overwrite=true", *SMALL)
    assert_refused(result, "is not empty and no run of kerasgpt")
    assert tree(tmp_path) == before


def test_a_start_that_does_not_exist_is_refused(call, tmp_path):
    result = call(
        "run_sft.py",
        f"run_dir={tmp_path / 'run'}",
        f"init={tmp_path / 'none'}",
        *SMALL,
    )
    assert_refused(result, "none: holds no trained model")
    assert tree(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data.path="], ("name the text file",)),
        (["data.path=none.txt"], ("none.txt: no such file",)),
        (["data.path=a.txt"], ("too little text",)),
    ],
)
def test_shakespeare_needs_a_text(
    call, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("To be")
    assert_refused(call("run_shakespeare.py", *arguments), *words)


# In a process of its own, as the user runs it.


@pytest.fixture
def run_alone(elsewhere):
    def run_alone(*arguments):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )

    return run_alone


def test_alone_a_mistyped_setting_is_one_line_and_status_2(run_alone):
    result = run_alone(SCRIPTS / "run_sft.py", "trian.steps=3")
    assert_refused(
        (result.returncode, result.stdout, result.stderr),
        "trian.steps=3: there is no setting trian; did you mean train.steps?",
    )


def test_alone_a_malformed_line_is_one_line_and_status_2(run_alone, tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(f"{ROW}\n{ROW}\n{{oops\n")
    result = run_alone(
        SCRIPTS / "run_sft.py",
        f"data.path={path}",
        f"run_dir={tmp_path / 'run'}",
    )
    assert_refused(
        (result.returncode, result.stdout, result.stderr),
        f"{path}, line 3: malformed JSON",
    )
    assert [file.name for file in tmp_path.iterdir()] == ["chats.jsonl"]


def test_alone_a_command_without_a_model_is_one_line_and_status_2(
    run_alone, tmp_path
):
    result = run_alone("-m", "kerasgpt.cli", "generate", tmp_path, "Hi")
    assert_refused(
        (result.returncode, result.stdout, result.stderr),
        "holds no trained model",
    )


# The guard.


class TestGuard:
    def status(self, error):
        def function():
            raise error

        return cli.guard(function)

    def test_success(self):
        assert cli.guard(lambda: None) == 0

    def test_input_errors_are_one_line(self, capsys):
        assert self.status(InputError("a.txt: is empty.")) == 2
        assert capsys.readouterr() == ("", "error: a.txt: is empty.\n")

    def test_errors_of_the_file_system_are_one_line(self, capsys):
        error = OSError(28, "No space left on device", "a.txt")
        assert self.status(error) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert "No space left on device" in err and "a.txt" in err

    @pytest.mark.parametrize(
        ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
    )
    def test_a_stop_says_how_to_go_on(self, capsys, number, status):
        assert self.status(Interrupted(number, "the same command …")) == status
        assert capsys.readouterr().err == "the same command …\n"

    def test_an_interrupt_outside_training_is_no_traceback(self, capsys):
        assert self.status(KeyboardInterrupt()) == 130
        assert capsys.readouterr() == ("", "interrupted.\n")

        def function():
            raise KeyboardInterrupt

        assert cli.guard(function, interrupted="call again.") == 130
        assert capsys.readouterr() == ("", "call again.\n")

    def test_a_fault_of_the_program_is_not_hidden(self):
        with pytest.raises(ZeroDivisionError):
            self.status(ZeroDivisionError())


# Scripts.


@dataclasses.dataclass(frozen=True)
class Settings(Config):
    steps: int = setting(10, "updates", unit="steps")


def test_settings_reach_main_the_last_one_counts(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", "steps=3", "steps=4"])
    received = []
    with pytest.raises(SystemExit) as stop:
        cli.run_script(
            received.append, Settings(), stages=lambda config: {}, document=""
        )
    assert stop.value.code == 0
    assert [config.steps for config in received] == [4]


def test_an_interrupted_script_says_how_to_go_on(monkeypatch, capsys):
    def main(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["run.py"])
    with pytest.raises(SystemExit) as stop:
        cli.run_script(main, Settings(), stages=lambda config: {}, document="")
    assert stop.value.code == 130
    assert "(without overwrite=true) goes on" in capsys.readouterr().err


def test_under_jax_a_script_says_what_is_left_to_tensorflow(
    monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["run.py"])
    monkeypatch.setattr(cli, "is_tensorflow", lambda: False)
    with pytest.raises(SystemExit) as stop:
        cli.run_script(
            lambda config: print("trained"),
            Settings(),
            stages=lambda config: {},
            document="",
        )
    assert stop.value.code == 0
    trained, told = capsys.readouterr().out.splitlines()
    assert trained == "trained"
    assert told.endswith("the same command without KERAS_BACKEND goes on.")


@pytest.mark.parametrize(
    "command",
    [
        ("kerasgpt", "export", "folder", "elsewhere"),
        ("kerasgpt", "generate", "folder", "text"),
        ("run_pretrain.py", "--dry-run"),
    ],
)
def test_what_needs_tensorflow_is_refused_under_jax(call, monkeypatch, command):
    monkeypatch.setattr(cli, "is_tensorflow", lambda: False)
    assert_refused(call(*command), "needs TensorFlow", "KERAS_BACKEND")


@pytest.mark.parametrize("backend", ["torch", "nothing"])
def test_a_backend_that_cannot_be_loaded_is_told_in_one_line(backend):
    ended = subprocess.run(
        [sys.executable, SCRIPTS / "run_pretrain.py"],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: KERAS_BACKEND={backend}: cannot be loaded")


# The command.


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "model"
    config = tiny_config(vocabulary_size=265, context_length=64)
    model = GPTCausalLM(config, name="gpt")
    model.build()
    save_model(folder, model, ByteTokenizer())
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "MODEL", "caf\udce9"],
        ["generate", "MODEL", "Hi", "--num-sequences", "0"],
        ["generate", "MODEL", "Hi", "--max-new-tokens", "0"],
        ["generate", "MODEL", "Hi", "--temperature", "-1"],
        ["generate", "MODEL", "Hi", "--top-p", "2"],
        ["generate", "MODEL", "x" * 100],
        ["generate", "MODEL", "x" * 100, "--as-chat"],
        ["generate", "NONE", "Hi"],
        ["chat", "NONE"],
        ["chat", "MODEL", "--system", "caf\udce9"],
        ["export", "NONE", "somewhere"],
        ["plan", "modle.depth=3"],
        ["plan", "init=NONE"],
        ["plan", "--price", "H100"],
        ["plan", "--price", "H100=nan"],
        ["plan", "--price", "H99=1"],
        ["plan", "--mfu", "0"],
        ["plan", "--mfu", "much"],
        ["serve"],
        ["serve", "MODEL", "--rest_api_port", "0"],
        ["serve", "NONE", "--rest_api_port=http"],
        ["serve", "NONE", "--metrics=perhaps"],
        ["serve", "NONE", "--what"],
        ["serve", "NONE", "--print-docker"],
        ["serve", "--model_config_file", "NONE"],
    ],
    ids=lambda arguments: " ".join(arguments).encode("ascii", "replace")[:40],
)
def test_what_a_command_cannot_do_is_refused(
    call, model_folder, tmp_path, arguments
):
    places = {"MODEL": str(model_folder), "NONE": str(tmp_path)}
    assert_refused(
        call("kerasgpt", *(places.get(word, word) for word in arguments))
    )


def test_generate_continues_the_text_as_often_as_asked(call, model_folder):
    arguments = ("kerasgpt", "generate", model_folder, "Hi")
    options = ("--max-new-tokens", 4, "--num-sequences", 2, "--temperature", 1)
    status, out, err = call(*arguments, *options)
    assert (status, err) == (0, "")
    assert out.startswith("Hi")
    assert out.count("Hi") >= 2
    assert call(*arguments, *options)[1] == out


def test_chat_passes_its_options_on(call, model_folder, monkeypatch):
    calls = []
    monkeypatch.setattr(
        cli, "chat", lambda generator, **options: calls.append(options)
    )
    options = ("--system", "Be kind.", "--temperature", 0.5, "--seed", 3)
    status, _, err = call("kerasgpt", "chat", model_folder, *options)
    assert (status, err) == (0, "")
    (received,) = calls
    assert received["system"] == "Be kind."
    assert (received["temperature"], received["seed"]) == (0.5, 3)


def test_chat_talks_with_a_server(call, monkeypatch):
    talks = []

    def talk(generator, **options):
        talks.append((generator, options))

    def generator(client, *, model):
        return client.url, client._client.headers, model

    monkeypatch.setattr(cli, "chat", talk)
    monkeypatch.setattr(cli, "RemoteGenerator", generator)
    monkeypatch.setenv("KERASGPT_API_KEY", "secret")
    arguments = ("chat", "http://a.test", "--model", "shop", "--seed", 3)
    assert call("kerasgpt", *arguments) == (0, "", "")
    ((made, options),) = talks
    assert made[0] == "http://a.test" and made[2] == "shop"
    assert made[1]["authorization"] == "Bearer secret"
    assert options["seed"] == 3 and options["system"] == ""


def test_a_server_that_is_not_there_is_told(call):
    # Port 9 is for nobody who answers.
    assert_refused(
        call("kerasgpt", "chat", "http://127.0.0.1:9"),
        "http://127.0.0.1:9: no answer: ",
    )
    assert_refused(
        call("kerasgpt", "chat", "http://127.0.0.1:port"), "127.0.0.1:port: "
    )


@pytest.fixture
def states(tmp_path):
    """A run with checkpoints of steps 10 to 40, the third of them damaged."""
    model = GPTCausalLM(tiny_config(vocabulary_size=265), name="gpt")
    model.build()
    optimizer = build_optimizer(
        "adamw", 0.1, weight_decay=0.0, muon_learning_rate_ratio=5.0
    )
    optimizer.build(model.trainable_variables)
    folder = tmp_path / "run" / "checkpoints"
    for step in (10, 20, 30, 40):
        progress = {"best_loss": 1.5, "best_step": 10}
        state = RunState.of(model, optimizer, step=step, progress=progress)
        save_run_state(folder, state, keep_last=9)
    (folder / "step_00000030" / "model.safetensors").write_text("half")
    return folder


def test_checkpoints_are_listed_and_verified(call, states):
    run = states.parent
    status, out, _ = call("kerasgpt", "checkpoint", "list", run)
    assert status == 0
    lines = out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith(f"{states}/step_00000010  ")
    assert lines[0].endswith("MB  whole, best loss so far 1.5000")
    assert "damaged: " in lines[2]
    status, out, err = call("kerasgpt", "checkpoint", "verify", run)
    assert status == 2
    assert out.splitlines() == lines
    assert err == f"error: {run}: 1 of its checkpoints are damaged.\n"
    call("kerasgpt", "checkpoint", "prune", run)
    assert call("kerasgpt", "checkpoint", "verify", run)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "kept"), [((), [10, 40]), (("--keep", 2), [10, 20, 40])]
)
def test_pruning_keeps_the_newest_whole_ones_and_the_best(
    call, states, arguments, kept
):
    status, out, _ = call("kerasgpt", "checkpoint", "prune", states, *arguments)
    assert status == 0
    assert f"{states}/step_00000030  deleted" in out.splitlines()
    names = sorted(path.name for path in states.iterdir())
    assert names == [f"step_{step:08d}" for step in kept]


def test_no_checkpoint_and_none_to_keep_are_refused(call, states, tmp_path):
    (tmp_path / "empty").mkdir()
    result = call("kerasgpt", "checkpoint", "list", tmp_path / "empty")
    assert_refused(result, "holds no checkpoints")
    result = call("kerasgpt", "checkpoint", "prune", states, "--keep", 0)
    assert_refused(result, "--keep must be at least 1")


def test_data_are_prepared_and_reported(call, tmp_path):
    raw = tmp_path / "raw.jsonl"
    raw.write_text(
        "".join(json.dumps({"text": f"Text {n}."}) + "\n" for n in range(9))
    )
    settings = tmp_path / "settings.json"
    settings.write_text('{"split": {"validation_fraction": 0.0}}')
    prepare = ("data", "prepare", raw, "--output", "ready", "num_workers=1")
    status, out, err = call("kerasgpt", *prepare, "--config", settings)
    assert (status, err) == (0, "")
    assert "9 documents for train" in out
    status, out, _ = call("kerasgpt", "data", "report", "ready")
    assert status == 0
    assert pathlib.Path(out.strip()).is_file()
    # Other settings than the file's.
    assert_refused(
        call("kerasgpt", *prepare), "prepared with other settings", "overwrite"
    )


def test_data_that_cannot_be_prepared_are_refused(call, tmp_path):
    prepare = ("data", "prepare", "--output", "ready")
    assert_refused(call("kerasgpt", *prepare), "INPUT")
    assert_refused(call("kerasgpt", *prepare, "num_workers=1"), "an INPUT is")
    assert_refused(
        call("kerasgpt", *prepare, tmp_path / "no.txt"), "no such file"
    )
    assert_refused(
        call("kerasgpt", *prepare, tmp_path, "cleaning.html=true"),
        "there is no setting cleaning.html",
    )
    assert_refused(call("kerasgpt", "data", "report", tmp_path), "no prepared")
    status, out, _ = call("kerasgpt", "data", "prepare", "--help")
    assert status == 0
    assert "cleaning.quality.min_words" in out


def test_plan_tells_what_would_not_fit_and_what_would(call):
    status, out, err = call("kerasgpt", "plan", "model.depth=300")
    assert (status, err) == (0, "")
    assert "does not fit" in out
    assert "  model.depth=" in out


@pytest.mark.parametrize(
    ("settings", "stages"),
    [([], ["pretrain", "train"]), (["init=NONE"], ["train"])],
)
def test_plan_takes_settings_prices_and_use(
    call, monkeypatch, settings, stages
):
    received = []

    def plan_run(config, stages, **options):
        received.append((config, list(stages(config)), options))
        return ["a line"]

    monkeypatch.setattr(cli, "plan_run", plan_run)
    options = ("--price", "RTX 4090=0.5", "--price", "L4=1", "--mfu", "0.4")
    result = call("kerasgpt", "plan", "train.steps=7", *settings, *options)
    assert result == (0, "a line\n", "")
    ((config, names, options),) = received
    assert config == sft.SFTConfig().override(["train.steps=7", *settings])
    assert names == stages
    assert options == {
        "prices": {"RTX 4090": 0.5, "L4": 1.0},
        "gpu_peak_fraction": 0.4,
    }


def test_serve_takes_the_flags_of_tensorflow_serving(call, monkeypatch):
    received = []
    monkeypatch.setattr(server, "serve", lambda config: received.append(config))
    monkeypatch.setenv("KERASGPT_API_KEY", "secret")
    flags = (
        *("--rest_api_port=0", "--port", 8500, "--model_name=other"),
        *("--rest_api_enable_cors_support", "--metrics=false"),
        *("--file_system_poll_wait_seconds=0", "--max-body-bytes", 9),
    )
    assert call("kerasgpt", "serve", "shop", *flags) == (0, "", "")
    expected = server.ServeConfig(
        folder="shop",
        rest_api_port=0,
        port=8500,
        model_name="other",
        rest_api_enable_cors_support=True,
        file_system_poll_wait_seconds=0,
        max_body_bytes=9,
        api_key="secret",
    )
    assert received == [expected]
    call("kerasgpt", "serve", "shop", "--api-key", "other")
    assert received[1].api_key == "other"


def test_every_flag_of_serve_has_its_help_and_setting(call):
    _, out, _ = call("kerasgpt", "serve", "--help")
    for field in dataclasses.fields(server.ServeConfig):
        name = field.name
        assert name in out or name.replace("_", "-") in out


def test_serve_prints_what_tensorflow_serving_needs(call, tmp_path):
    (tmp_path / "shop").mkdir()
    status, out, err = call(
        "kerasgpt", "serve", tmp_path / "shop", "--print-config"
    )
    assert (status, err) == (0, "")
    assert 'base_path: "/models/shop"' in out


def test_other_commands_load_no_web_server():
    names = "{'starlette', 'uvicorn'}"
    code = f"import sys, kerasgpt.cli; print({names} & {{*sys.modules}})"
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert out == "set()\n"


@pytest.mark.parametrize(
    "command", ["", "chat", "generate", "export", "plan", "serve"]
)
def test_help_explains_the_command(call, command):
    status, out, _ = call("kerasgpt", *filter(None, [command]), "--help")
    assert status == 0
    assert "usage: kerasgpt" in out


@pytest.fixture
def classifier_folder(tmp_path):
    tokenizer = ByteTokenizer()
    config = tiny_config(vocabulary_size=tokenizer.vocabulary_size)
    model = TextClassifier(ClassifierConfig.of(config, ["good", "bad", "odd"]))
    model.build()
    save_model(tmp_path / "classifier", model, tokenizer)
    return tmp_path / "classifier"


def test_classify_names_the_likeliest_classes(call, classifier_folder):
    arguments = ("kerasgpt", "classify", classifier_folder, "fine", "好")
    status, out, err = call(*arguments, "--top", 2)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 2
    for line in lines:
        names = line.replace("%", "").split()
        assert {names[0], names[2]} < {"good", "bad", "odd"}
        assert float(names[1]) >= float(names[3]) > 0


def test_a_classifier_and_a_language_model_are_not_confused(
    call, classifier_folder, model_folder
):
    for command, folder, told in (
        (
            "classify",
            model_folder,
            "of kind 'gpt'; this needs one of classifier",
        ),
        (
            "generate",
            classifier_folder,
            "of kind 'classifier'; this needs one of gpt",
        ),
    ):
        status, out, err = call("kerasgpt", command, folder, "hi")
        assert (status, out) == (2, "")
        assert told in err and err.count("\n") == 1


def test_classify_refuses_what_it_cannot_show(call, classifier_folder):
    arguments = ("kerasgpt", "classify", classifier_folder, "hi")
    status, _, err = call(*arguments, "--top", 0)
    assert status == 2 and "--top must be at least 1" in err


def test_a_folder_of_transformers_is_converted(call, elsewhere):
    source = ROOT / "tests" / "goldens" / "huggingface" / "gpt2"
    status, out, _ = call("kerasgpt", "convert", source, "ours")
    assert status == 0 and out.startswith("ours: ")
    status, _, err = call("kerasgpt", "convert", source, "ours")
    assert status == 2 and "without --overwrite" in err
    status, _, _ = call("kerasgpt", "convert", "ours", "theirs")
    assert status == 0
    files = {path.name for path in (elsewhere / "theirs").iterdir()}
    assert files == {"config.json", "model.safetensors"}
    status, out, _ = call("kerasgpt", "quantize", "ours", "small")
    assert status == 0 and out.startswith("small: ")
    command = ("kerasgpt", "quantize", "ours", "smaller", "--bits", 4)
    status, out, _ = call(*command)
    assert status == 0 and out.startswith("smaller: ")
    status, _, err = call(*command, "--overwrite", "--fit-to", "small")
    assert status == 2 and "holds no tokenizer" in err
    status, _, err = call("kerasgpt", "generate", "ours", "text")
    assert status == 2 and "holds no tokenizer" in err
    assert "Traceback" not in err


def test_a_tokenizer_is_trained_and_compared(call, tmp_path):
    (tmp_path / "a.txt").write_text("to be or not to be\n" * 9)
    (tmp_path / "b.txt").write_text("你好，世界\n" * 9)
    # Inputs and settings stand on both sides of a flag.
    status, told, _ = call(
        *("kerasgpt", "tokenizer", "train", tmp_path / "a.txt"),
        *("vocabulary_size=280", "--output", tmp_path / "out"),
        *("kind=byte_pair", tmp_path / "b.txt"),
    )
    assert status == 0
    assert "2 texts" in told
    assert "280 ids" in told
    status, told, _ = call(
        *("kerasgpt", "tokenizer", "compare", tmp_path / "a.txt", "kinds=byte"),
        f"folders={tmp_path / 'out'}",
    )
    assert status == 0
    assert "| byte 265 |" in told
    assert f"| {tmp_path / 'out'} 280 |" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "kind=byte", "--output", "out"), "an INPUT is needed"),
        (("train", "no.txt", "--output", "out"), "no.txt: no such file"),
        (("train", "no.txt", "--output", "out", "-z"), "unrecognized"),
        (("train", "no.txt"), "--output"),
        (("compare", "no.txt", "kind=byte"), "there is no setting kind"),
    ],
)
def test_a_tokenizer_command_that_cannot_be_is_refused(call, arguments, words):
    assert_refused(call("kerasgpt", "tokenizer", *arguments), words)


def test_extra_words_of_other_commands_are_refused(call):
    assert_refused(call("kerasgpt", "plan", "a=1", "--zz"), "unrecognized")


def test_a_masked_lm_fills_gaps_and_nothing_else(call, tmp_path):
    model = MaskedLM(
        tiny_encoder(vocabulary_size=265 + len(MARKS), context_length=32)
    )
    model.build()
    save_model(tmp_path / "model", model, ByteTokenizer())
    status, out, _ = call(
        "kerasgpt", "fill-mask", tmp_path, "a [MASK] 灯", "--count", 3
    )
    assert status == 0
    # A filling may be a control character, a line break for example.
    assert len(re.findall(r" *-\d+\.\d{3}  a .+? 灯\n", out, re.DOTALL)) == 3
    assert_refused(
        call("kerasgpt", "fill-mask", tmp_path, "no gap"), "holds no [MASK]"
    )
    assert_refused(
        call("kerasgpt", "generate", tmp_path, "a"), "kind 'encoder'"
    )
    assert_refused(
        call("kerasgpt", "fill-mask", tmp_path, "[MASK]", "--count", 0),
        "--count and --most-tokens must be at least 1",
    )


def test_a_converted_bert_fills_gaps(call, tmp_path):
    bert = GOLDENS / "bert" / "masked"
    status, out, _ = call("kerasgpt", "convert", bert, tmp_path / "ours")
    assert (status, out.endswith("with its tokenizer.\n")) == (0, True)
    status, out, _ = call(
        *("kerasgpt", "fill-mask", tmp_path / "ours", "The [MASK] 你好"),
        *("--count", 2),
    )
    assert status == 0
    assert len(re.findall(r"(?m)^ *-\d+\.\d{3}  the.* 你 好$", out)) == 2
    assert_refused(
        call("kerasgpt", "convert", bert, tmp_path / "ours"), "exists already"
    )
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(bert / name, tmp_path / "bare")
    assert_refused(
        call("kerasgpt", "convert", tmp_path / "bare", tmp_path / "new"),
        "brings no vocabulary (tokenizer.json or vocab.txt)",
    )


def test_an_encoder_decoder_translates(call, tmp_path):
    model = Seq2SeqLM(
        tiny_encoder_decoder(vocabulary_size=265, context_length=16)
    )
    model.build()
    save_model(tmp_path / "model", model, ByteTokenizer())
    status, _, err = call("kerasgpt", "translate", tmp_path, "a 灯")
    assert (status, err) == (0, "")
    assert_refused(
        call("kerasgpt", "translate", tmp_path, "too long" * 9),
        "the model reads 16",
    )
