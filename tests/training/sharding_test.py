import importlib.util
import re

import keras
import pytest

from kerasgpt.config import InputError
from kerasgpt.models import GPTCausalLM, GPTConfig
from kerasgpt.training.sharding import LAYOUT, build_distribution
from tests.training import backend_worker

NEEDS_JAX = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="jax is not installed"
)


def _axes(path):
    """Returns how a variable is cut; at most one rule may match."""
    (axes,) = [
        axes for rule, axes in LAYOUT.items() if re.fullmatch(rule, path)
    ] or [None]
    return axes


@pytest.mark.parametrize("is_plain", [True, False])
def test_each_kernel_is_cut_along_one_dimension_and_no_norm(is_plain):
    config = GPTConfig.from_depth(
        1,
        use_bias=not is_plain,
        tie_embeddings=is_plain,
        activation="relu2" if is_plain else "swiglu",
    )
    model = GPTCausalLM(config)
    model.build()
    for variable in model.trainable_variables:
        axes = _axes(variable.path)
        # Biases of what is added up behind the cut are added once, whole.
        is_whole = re.search(r"norm|(output|down)/bias", variable.path)
        if is_whole:
            assert axes is None
        else:
            assert axes.count("model") == 1
            assert len(axes) == len(variable.shape)


def test_what_a_kernel_cuts_the_next_one_takes():
    into = _axes("gpt/backbone/block_0/attention/query/kernel")
    back = _axes("gpt/backbone/block_0/attention/output/kernel")
    assert into == back[::-1] == (None, "model")


def test_tensorflow_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"^keras.distribution: .*KERAS_BACK"):
        build_distribution(backend_worker.CONFIG)


def test_devices_that_cannot_share_are_told(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    devices = [f"cpu:{number}" for number in range(6)]
    with pytest.raises(InputError, match="6 devices cannot be cut"):
        build_distribution(
            backend_worker.CONFIG, model_devices=4, devices=devices
        )
    with pytest.raises(InputError, match="does not divide vocabulary_size="):
        build_distribution(
            backend_worker.CONFIG, model_devices=3, devices=devices
        )


@NEEDS_JAX
def test_pairs_of_devices_train_as_one_device_does():
    found = backend_worker.results()
    backend_worker.check_same(found["both"], found["one"])


@NEEDS_JAX
def test_the_parts_of_a_model_lie_on_different_devices():
    found = backend_worker.results()
    shards = found["both"]["shards"]
    weights = {
        path.replace("/", "_"): path for path in shards if "gpt/" in path
    }
    for path in weights.values():
        shape, part, num_devices, num_parts = shards[path]
        axes = _axes(path) or (None,) * len(shape)
        cut = [
            size // 2 if axis else size
            for size, axis in zip(shape, axes, strict=True)
        ]
        assert (part, num_devices) == (cut, 4), path
        assert num_parts == (2 if "model" in axes else 1), path
    # Slots of the optimizer lie where their weights do.
    slots = {
        path: re.fullmatch(r"\w+/(gpt_.*)_(momentum|velocity)", path)
        for path in shards
    }
    slots = {path: match[1] for path, match in slots.items() if match}
    assert set(slots.values()) == set(weights)
    for path, weight in slots.items():
        assert shards[path] == shards[weights[weight]], path


@NEEDS_JAX
@pytest.mark.slow
def test_four_devices_with_all_or_a_quarter_of_the_weights_do_too(tmp_path):
    backend_worker.save_first(tmp_path)
    cases = {
        "one": {},
        "data": {"model_devices": 1},
        "model": {"model_devices": 4},
        "accumulated": {"model_devices": 1, "accumulate_steps": 2},
    }
    found = backend_worker.result(backend_worker.start_jax(tmp_path, cases))
    for name in cases:
        backend_worker.check_same(found[name], found["one"])
    for name, count in (("data", 1), ("model", 4)):
        shards = found[name]["shards"]
        kernel = "gpt/backbone/block_0/feed_forward/up/kernel"
        inner_dim = backend_worker.CONFIG.inner_dim
        assert shards[kernel] == [
            [32, inner_dim],
            [32, inner_dim // count],
            4,
            count,
        ]
