"""Owns the command line: parse, one call."""

import argparse
import importlib
import os
import sys

from kerasgpt.console import guard, quiet_libraries, settings_table

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
try:
    with quiet_libraries():
        # The first operation looks for GPUs, which is told as an error.
        tensorflow = importlib.import_module("tensorflow")
        if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
            # Only its input pipeline is used: it would take a GPU's memory.
            tensorflow.config.set_visible_devices([], "GPU")
        # Several workers join before anything is computed.
        if "TF_CONFIG" not in os.environ:
            tensorflow.constant(0)
        importlib.import_module("tensorflow_text")
except (ImportError, ValueError):
    # Both load Keras, and it its backend.
    if "KERAS_BACKEND" not in os.environ:
        raise
    print(
        f"error: KERAS_BACKEND={os.environ['KERAS_BACKEND']}: cannot be "
        f"loaded; leave it out, or set it to jax after pip install "
        f"'kerasgpt[jax]'.",
        file=sys.stderr,
    )
    sys.exit(2)

from kerasgpt.checkpoints.exchange import convert, quantize
from kerasgpt.checkpoints.model_folder import load_model
from kerasgpt.checkpoints.run_state import (
    find_state_folders,
    list_run_states,
    prune_run_states,
    read_run_state,
    step_of,
)
from kerasgpt.config import InputError
from kerasgpt.data.formats import is_unicode
from kerasgpt.evaluation.classification import class_probabilities
from kerasgpt.generation.generate import Generator
from kerasgpt.serving.chat import RemoteGenerator, chat
from kerasgpt.serving.client import OpenAIClient
from kerasgpt.serving.saved_model import export_saved_model
from kerasgpt.training import sft
from kerasgpt.training import tokenizer as tokenizer_stage
from kerasgpt.training.distribution import build_strategy, is_tensorflow
from kerasgpt.training.plan import GPU_PEAK_FRACTION, plan_run

TRAIN_TOKENIZER = tokenizer_stage.TrainTokenizerConfig()
COMPARE_TOKENIZERS = tokenizer_stage.CompareTokenizersConfig()


def run_script(main, config, *, stages, document):
    """Runs an experiment script: settings from the command line, one call.

    `--help` lists every setting; `--dry-run` prints the resolved settings and
    what the run will cost, and does nothing.

    Args:
        main: function of the resolved config.
        config: Config with the defaults.
        stages: function of the config, returns dict of name to TrainConfig.
            `None` = nothing is trained.
        document: str, the script's docstring.
    """
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(document.strip())
        print("\nSettings, written key=value:\n")
        print(settings_table(config))
        return

    def start():
        overrides = [text for text in arguments if text != "--dry-run"]
        resolved = config.override(overrides)
        if "--dry-run" in arguments:
            _check_backend("--dry-run")
            for key, _, _, value, _ in resolved.describe():
                print(f"{key}={'none' if value is None else value}")
            print()
            lines = ["nothing is trained."]
            print("\n".join(plan_run(resolved, stages) if stages else lines))
        else:
            build_strategy(getattr(resolved, "distribute", "none"))
            main(resolved)
            if not is_tensorflow():
                print(
                    "texts, reports and exports are left to TensorFlow: the "
                    "same command without KERAS_BACKEND goes on."
                )

    sys.exit(
        guard(
            start,
            interrupted="interrupted; the same command (without "
            "overwrite=true) goes on from the last checkpoint.",
        )
    )


def main():
    """Runs the `kerasgpt` command."""
    options = _parser().parse_args()

    def start():
        # Checkpoints are files.
        if options.run is not _checkpoint:
            _check_backend(f"kerasgpt {options.run.__name__.strip('_')}")
        options.run(options)

    sys.exit(guard(start))


def _check_backend(command):
    if not is_tensorflow():
        raise InputError(
            f"{command}: needs TensorFlow; leave out KERAS_BACKEND, which is "
            f"for training."
        )


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"error: {message}; see {self.prog} --help.\n")


def _parser():
    parser = _Parser(
        prog="kerasgpt",
        description="Use a model that experiments/run_sft.py trained.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("chat", help="talk with a model")
    command.add_argument(
        "folder", help="run or model folder, or http://… of a server"
    )
    command.add_argument("--model", help="of a server; default: its first")
    command.add_argument("--system", default="", help="first, hidden message")
    _add_sampling(command)
    command.set_defaults(run=_chat)

    command = commands.add_parser("generate", help="continue a text")
    command.add_argument("folder", help="run or model folder")
    command.add_argument("text", help="the text, or the user's message")
    command.add_argument(
        "--as-chat", action="store_true", help="answer it instead"
    )
    command.add_argument(
        "--num-sequences", type=int, default=1, help="how many results"
    )
    _add_sampling(command)
    command.set_defaults(run=_generate)

    command = commands.add_parser("classify", help="name the class of a text")
    command.add_argument("folder", help="run of experiments/run_classify.py")
    command.add_argument("texts", nargs="+", metavar="text")
    command.add_argument(
        "--top", type=int, default=3, help="classes shown; default %(default)s"
    )
    command.set_defaults(run=_classify)

    command = commands.add_parser(
        "export", help="write a SavedModel for TF Serving"
    )
    command.add_argument("folder", help="run or model folder")
    command.add_argument("export_dir", help="gets a new <version>/ folder")
    command.add_argument("--max-new-tokens", type=int, default=128)
    command.set_defaults(run=_export)

    command = commands.add_parser(
        "convert",
        help="bring in a model of others, or give one of yours to them",
        description="SOURCE is a folder of Hugging Face's transformers "
        "(GPT-1, GPT-2, Llama, Qwen2, Qwen3) or keras_hub:PRESET (GPT-2), and "
        "becomes a model folder; or it is a run or model folder, and becomes "
        "one of transformers.",
    )
    command.add_argument("source", help="which of them it is, is recognised")
    command.add_argument("target", help="folder to write")
    command.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="run or model folder whose tokenizer a foreign model gets",
    )
    command.add_argument(
        "--overwrite", action="store_true", help="replace an existing TARGET"
    )
    command.set_defaults(run=_convert)

    command = commands.add_parser(
        "quantize",
        help="write a model with weights of 8 bits: a quarter of the size",
        description="Matrices become 8-bit integers with a factor a channel. "
        "For storage: a loaded model computes in float32, as fast as before.",
    )
    command.add_argument("source", help="as of convert")
    command.add_argument("target", help="model folder to write")
    command.add_argument(
        "--overwrite", action="store_true", help="replace an existing TARGET"
    )
    command.set_defaults(run=_quantize)

    command = commands.add_parser(
        "checkpoint", help="list, verify or prune the checkpoints of a run"
    )
    command.add_argument("action", choices=("list", "verify", "prune"))
    command.add_argument("folder", help="run folder, at any depth")
    command.add_argument(
        "--keep",
        type=int,
        default=1,
        help="prune: how many of the newest stay, besides the best; "
        "default %(default)s",
    )
    command.set_defaults(run=_checkpoint)

    command = commands.add_parser(
        "plan",
        help="tell what experiments/run_sft.py would cost",
        epilog="example: kerasgpt plan model.depth=12 --price H100=2.50",
    )
    command.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="as of experiments/run_sft.py, whose --help lists them",
    )
    command.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="GPU=DOLLARS",
        help="an hour; instead of the assumed one",
    )
    command.add_argument(
        "--mfu",
        type=float,
        default=GPU_PEAK_FRACTION,
        help="share of a GPU's peak that is reached; assumed %(default)s",
    )
    command.set_defaults(run=_plan)

    command = commands.add_parser(
        "tokenizer", help="train a tokenizer on files, or compare several"
    )
    _add_tokenizer(command)

    command = commands.add_parser(
        "serve",
        help="answer over HTTP: TF Serving's REST, OpenAI's API, a chat page",
        epilog="example: kerasgpt serve saved_models/shop_chat",
        # Defaults are ServeConfig's.
        argument_default=argparse.SUPPRESS,
    )
    _add_serving(command)
    command.set_defaults(run=_serve)
    return parser


def _add_tokenizer(command):
    actions = command.add_subparsers(required=True, metavar="ACTION")
    for name, text, config in (
        ("train", "write one to a folder, with a report", TRAIN_TOKENIZER),
        ("compare", "train several on the same texts", COMPARE_TOKENIZERS),
    ):
        action = actions.add_parser(
            name,
            help=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=f"settings, written key=value:\n{settings_table(config)}",
        )
        action.add_argument(
            "inputs",
            nargs="+",
            metavar="INPUT | key=value",
            help="files, folders, globs, tfds:NAME; and settings",
        )
        if name == "train":
            action.add_argument("--output", required=True, metavar="DIR")
            action.add_argument("--overwrite", action="store_true")
        action.set_defaults(run=_tokenizer, config=config, action=name)


def _tokenizer(options):
    inputs, settings = [], []
    for text in options.inputs:
        is_setting = "=" in text and not os.path.lexists(text)
        (settings if is_setting else inputs).append(text)
    if not inputs:
        raise InputError("an INPUT is needed: a file, a folder or tfds:NAME.")
    config = options.config.override(settings)
    if options.action == "compare":
        tokenizer_stage.compare(inputs, config)
    else:
        tokenizer_stage.train(
            inputs, options.output, config, overwrite=options.overwrite
        )


def _add_serving(command):
    command.add_argument(
        "folder", nargs="?", help="exported model: holds a folder a version"
    )
    for flag, kind, text in (
        ("--host", str, "address to listen at; default 127.0.0.1"),
        ("--rest_api_port", int, "default 8501; 0 = any that is free"),
        ("--port", int, "of gRPC; default 0 = none"),
        ("--model_name", str, "default: the folder's name"),
        ("--model_base_path", str, "the same as FOLDER"),
        ("--model_config_file", str, "several models, versions, labels"),
        ("--rest_api_timeout_in_ms", int, "default 30000"),
        ("--file_system_poll_wait_seconds", float, "default 1; 0 = once"),
        (
            "--allow_version_labels_for_unavailable_models",
            bool,
            "a label may name a version that is not served yet",
        ),
        (
            "--rest_api_enable_cors_support",
            bool,
            "let pages of other origins ask",
        ),
        ("--monitoring_config_file", str, "prometheus_config { enable: true }"),
        ("--metrics", bool, "serve /monitoring/prometheus/metrics"),
        ("--upstream", str, "URL of the TF Serving that runs the model"),
        ("--api-key", str, "bearer token; better in KERASGPT_API_KEY"),
        ("--max-body-bytes", int, "default 1048576"),
        ("--requests-per-minute", int, "of an address; default 0 = any"),
        ("--log-texts", bool, "write what is asked to the log, too"),
        ("--shutdown-seconds", int, "for answers still running; default 30"),
        ("--print-docker", bool, "print how TF Serving serves it, and exit"),
        ("--print-config", bool, "print files for TF Serving, and exit"),
    ):
        if kind is bool:
            # --flag, and --flag=false as TF Serving has it.
            options = {"nargs": "?", "const": True, "type": _switch}
            options["metavar"] = "true|false"
        else:
            options = {"type": kind, "metavar": kind.__name__.upper()}
        command.add_argument(flag, help=text, **options)


def _switch(text):
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError("must be true or false")
    return words[text.lower()]


def _add_sampling(command):
    command.add_argument("--max-new-tokens", type=int, default=128)
    command.add_argument(
        "--temperature", type=float, default=0.0, help="0 = greedy"
    )
    command.add_argument("--top-k", type=int, default=0, help="0 = all")
    command.add_argument("--top-p", type=float, default=1.0)
    command.add_argument("--min-p", type=float, default=0.0)
    command.add_argument("--repetition-penalty", type=float, default=1.0)
    command.add_argument("--seed", type=int, default=0)


def _sampling(options):
    names = (
        "max_new_tokens",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "seed",
    )
    return {name: getattr(options, name) for name in names}


def _chat(options):
    if not is_unicode(options.system):
        raise InputError("--system is no valid UTF-8.")
    talk = {"system": options.system, **_sampling(options)}
    if options.folder.startswith(("http://", "https://")):
        # Not an option: everyone on the machine can read a command line.
        api_key = os.environ.get("KERASGPT_API_KEY")
        with OpenAIClient(options.folder, api_key=api_key) as client:
            chat(RemoteGenerator(client, model=options.model), **talk)
    else:
        chat(Generator(*load_model(options.folder)), **talk)


def _generate(options):
    if options.num_sequences < 1:
        raise InputError("--num-sequences must be at least 1.")
    if not is_unicode(options.text):
        raise InputError("the text is no valid UTF-8.")
    generator = Generator(*load_model(options.folder))
    sampling = {**_sampling(options), "num_sequences": options.num_sequences}
    if options.as_chat:
        messages = [{"role": "user", "content": options.text}]
        texts = generator.reply([messages], **sampling)
        print("\n".join(texts))
    else:
        texts = generator.complete([options.text], **sampling)
        print("\n".join(options.text + text for text in texts))


def _classify(options):
    if options.top < 1:
        raise InputError("--top must be at least 1.")
    if not all(map(is_unicode, options.texts)):
        raise InputError("a text is no valid UTF-8.")
    model, tokenizer = load_model(options.folder, kinds=("classifier",))
    labels = model.config.labels
    for row in class_probabilities(model, tokenizer, options.texts):
        shown = row.argsort()[::-1][: options.top]
        print("  ".join(f"{labels[i]} {row[i]:.1%}" for i in shown))


def _export(options):
    model, tokenizer = load_model(options.folder)
    path = export_saved_model(
        model,
        tokenizer,
        options.export_dir,
        max_new_tokens=options.max_new_tokens,
    )
    print(path)


def _convert(options):
    convert(
        options.source,
        options.target,
        tokenizer_folder=options.tokenizer,
        overwrite=options.overwrite,
    )


def _quantize(options):
    quantize(options.source, options.target, overwrite=options.overwrite)


def _checkpoint(options):
    if options.keep < 1:
        raise InputError("--keep must be at least 1.")
    num_damaged = 0
    for folder in find_state_folders(options.folder):
        whole = {}
        for state in list_run_states(folder):
            size = sum(file.stat().st_size for file in state.iterdir())
            line = f"{state}  {size / 1e6:,.1f} MB"
            try:
                whole[state] = read_run_state(state)["progress"]
            except InputError as error:
                num_damaged += 1
                print(f"{line}  damaged: {error}")
                continue
            if options.action != "prune":
                loss = whole[state].get("best_loss", float("inf"))
                print(f"{line}  whole, best loss so far {loss:.4f}")
        if options.action == "prune" and whole:
            # Newest of those that can be used: damaged ones count for nothing.
            kept = [*whole][-options.keep :]
            best_step = whole[kept[-1]].get("best_step")
            for state in prune_run_states(
                folder,
                keep_last=0,
                keep_steps={best_step, *map(step_of, kept)},
            ):
                print(f"{state}  deleted")
    if options.action == "verify" and num_damaged:
        raise InputError(
            f"{options.folder}: {num_damaged} of its checkpoints are damaged."
        )


def _serve(options):
    # Not above: the other commands need no web server.
    server = importlib.import_module("kerasgpt.serving.server")
    flags = {"api_key": os.environ.get("KERASGPT_API_KEY", "")}
    flags |= vars(options)
    del flags["run"]
    is_docker = flags.pop("print_docker", False)
    is_config = flags.pop("print_config", False)
    config = server.ServeConfig(**flags)
    if is_docker or is_config:
        lines = server.docker_command if is_docker else server.config_files
        print("\n".join(lines(config)))
    else:
        server.serve(config)


def _plan(options):
    if not 0 < options.mfu <= 1:
        raise InputError("--mfu must be above 0 and at most 1.")
    prices = {}
    for text in options.price:
        name, _, dollars = text.partition("=")
        try:
            prices[name] = float(dollars)
        except ValueError:
            prices[name] = -1.0
        if not 0 <= prices[name] < float("inf"):
            raise InputError(
                f"--price {text}: must be GPU=DOLLARS, such as H100=2.50."
            )
    lines = plan_run(
        sft.SFTConfig().override(options.settings),
        sft.stages,
        prices=prices,
        gpu_peak_fraction=options.mfu,
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
