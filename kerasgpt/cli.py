"""Owns the command line: parse, one call."""

import argparse
import functools
import importlib
import os
import pathlib
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
        importlib.import_module("keras")
except (ImportError, ValueError):
    # Keras loads its backend.
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
from kerasgpt.checkpoints.model_folder import load_model, load_tokenizer
from kerasgpt.checkpoints.run_state import (
    find_state_folders,
    list_run_states,
    prune_run_states,
    read_run_state,
    step_of,
)
from kerasgpt.config import InputError
from kerasgpt.data import preparation
from kerasgpt.data.beam_runner import stage_by_beam
from kerasgpt.data.formats import is_unicode
from kerasgpt.data.report import write_data_report
from kerasgpt.evaluation.classification import class_probabilities
from kerasgpt.evaluation.mask_filling import MaskFiller
from kerasgpt.files import read_json
from kerasgpt.generation.beam import Translator
from kerasgpt.generation.generate import Generator
from kerasgpt.serving.chat import RemoteGenerator, chat
from kerasgpt.serving.client import OpenAIClient
from kerasgpt.serving.saved_model import export_saved_model
from kerasgpt.training import sft
from kerasgpt.training import tokenizer as tokenizer_stage
from kerasgpt.training.distribution import build_strategy, is_tensorflow
from kerasgpt.training.plan import GPU_PEAK_FRACTION, plan_run

PREPARE_DATA = preparation.PreparationConfig()
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
    parser = _parser()
    options, more = parser.parse_known_args()
    # Inputs and settings may stand on both sides of a flag.
    if more and (
        "inputs" not in options or any(text[:1] == "-" for text in more)
    ):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        options.inputs += more

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
        "fill-mask",
        help="fill in what a text leaves out",
        epilog='example: kerasgpt fill-mask runs/mlm "It is [MASK]."',
    )
    command.add_argument("folder", help="run of experiments/run_mlm.py")
    command.add_argument("text", help="with [MASK] where something is missing")
    command.add_argument(
        "--count", type=int, default=5, help="how many; default %(default)s"
    )
    command.add_argument(
        "--most-tokens",
        type=int,
        default=6,
        help="longest filling of a mask; default %(default)s",
    )
    command.set_defaults(run=_fill_mask)

    command = commands.add_parser("translate", help="translate a text")
    command.add_argument("folder", help="run of experiments/run_translate.py")
    command.add_argument("text", help="in either language of the model")
    command.add_argument(
        "--num-beams", type=int, default=4, help="1 = greedy; default 4"
    )
    command.set_defaults(run=_translate)

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
        "(GPT-1, GPT-2, Llama, Qwen2, Qwen3, BERT) or keras_hub:PRESET "
        "(GPT-2), and becomes a model folder; or it is a run or model folder, "
        "and becomes one of transformers.",
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
        help="write a model with weights of 8 or 4 bits",
        description="Matrices become integers: of 8 bits with a factor a "
        "channel, a quarter of the size; of 4 with one for 32 weights, a "
        "seventh. For storage: a loaded model computes in float32, as fast as "
        "before.",
    )
    command.add_argument("source", help="as of convert")
    command.add_argument("target", help="model folder to write")
    command.add_argument("--bits", type=int, choices=(8, 4), default=8)
    command.add_argument(
        "--fit-to",
        metavar="RUN",
        help="run folder whose training data 4 bits are fitted to, by GPTQ",
    )
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

    _add_data(commands.add_parser("data", help="prepare files for training"))

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
        _add_inputs(action)
        if name == "train":
            action.add_argument("--output", required=True, metavar="DIR")
            action.add_argument("--overwrite", action="store_true")
        action.set_defaults(run=_tokenizer, config=config, action=name)


def _tokenizer(options):
    inputs, settings = _inputs_and_settings(options)
    config = options.config.override(settings)
    if options.action == "compare":
        tokenizer_stage.compare(inputs, config)
    else:
        tokenizer_stage.train(
            inputs, options.output, config, overwrite=options.overwrite
        )


def _add_data(parser):
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "prepare",
        help="clean, deduplicate, split and write training data",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: kerasgpt data prepare raw/ --output ready\n"
        "         python experiments/run_pretrain.py data.path=ready\n\n"
        f"settings, written key=value:\n{settings_table(PREPARE_DATA)}",
    )
    _add_inputs(command)
    command.add_argument("--output", required=True, metavar="DIR")
    command.add_argument("--config", metavar="FILE", help="settings as JSON")
    command.add_argument(
        "--runner",
        choices=("local", "beam"),
        default="local",
        help="beam: inputs are cleaned by Apache Beam",
    )
    command.add_argument(
        "--beam",
        action="append",
        default=[],
        metavar="OPTION",
        help="such as --beam=--runner=FlinkRunner; default DirectRunner",
    )
    command.set_defaults(run=_prepare_data)

    command = commands.add_parser(
        "report", help="write DIR/report/report.html and report.md"
    )
    command.add_argument("folder", metavar="DIR")
    command.add_argument(
        "--tokenizer", metavar="FOLDER", help="run or model folder: for tokens"
    )
    command.add_argument(
        "--parameters",
        type=float,
        default=0,
        help="of the model, such as 124e6: for epochs",
    )
    command.set_defaults(run=_report_data)


def _add_inputs(command):
    command.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT | key=value",
        help="files, folders, globs, tfds:NAME; and settings",
    )


def _inputs_and_settings(options):
    """Returns two lists of str: what `_add_inputs` took."""
    inputs, settings = [], []
    for text in options.inputs:
        is_setting = "=" in text and not os.path.lexists(text)
        (settings if is_setting else inputs).append(text)
    if not inputs:
        raise InputError("an INPUT is needed: a file, a folder or tfds:NAME.")
    return inputs, settings


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


def _fill_mask(options):
    if not is_unicode(options.text):
        raise InputError("the text is no valid UTF-8.")
    if min(options.count, options.most_tokens) < 1:
        raise InputError("--count and --most-tokens must be at least 1.")
    filler = MaskFiller(*load_model(options.folder, kinds=("encoder",)))
    for filling in filler.fill(
        options.text, count=options.count, most_tokens=options.most_tokens
    ):
        print(f"{filling.score:8.3f}  {filling.text}")


def _translate(options):
    if not is_unicode(options.text):
        raise InputError("the text is no valid UTF-8.")
    translator = Translator(
        *load_model(options.folder, kinds=("encoder_decoder",))
    )
    print(translator.translate([options.text], num_beams=options.num_beams)[0])


def _export(options):
    model, tokenizer = load_model(options.folder, kinds=("gpt",))
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
    quantize(
        options.source,
        options.target,
        bits=options.bits,
        fit_to=options.fit_to,
        overwrite=options.overwrite,
    )


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


def _prepare_data(options):
    inputs, settings = _inputs_and_settings(options)
    config = PREPARE_DATA
    if options.config:
        config = config.from_dict(read_json(options.config))
    config = config.override(settings)
    stage_all = None
    if options.runner == "beam":
        stage_all = functools.partial(stage_by_beam, options=options.beam)
    preparation.prepare_files(
        inputs, options.output, config, stage_all=stage_all
    )
    print(f"kerasgpt data report {options.output} tells more.")


def _report_data(options):
    tokenizer = None
    if options.tokenizer:
        folder = pathlib.Path(options.tokenizer)
        inner = folder / "tokenizer"
        tokenizer = load_tokenizer(inner if inner.is_dir() else folder)
    print(
        write_data_report(
            options.folder,
            tokenizer=tokenizer,
            num_parameters=int(options.parameters),
        )
    )


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
