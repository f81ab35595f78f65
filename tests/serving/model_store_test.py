import pathlib
import shutil
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from kerasgpt.config import InputError
from kerasgpt.files import write_manifest
from kerasgpt.serving import model_store
from kerasgpt.serving.model_store import (
    ModelConfig,
    ModelStore,
    ServedVersion,
    read_model_config,
)
from tests.serving.toy_models import (
    save_arithmetic,
    save_documented_half_plus_two,
)

X = {"x": np.float32([1, 2, 5])}


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """A folder of versions 1, 2 and 10, that add 1, 2 and 10."""
    base_path = tmp_path_factory.mktemp("models")
    for version in (1, 2, 10):
        save_arithmetic(base_path, version, addend=float(version))
    return base_path


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "toy"
    path.mkdir()
    return path


def build_store(folder, **options):
    names = ("policy", "num_versions", "versions", "labels")
    model = ModelConfig(
        "toy",
        folder,
        **{name: options.pop(name) for name in names if name in options},
    )
    return ModelStore([model], poll_seconds=0, **options)


def put(versions, folder, version):
    """Publishes a version as it should be: copied beside, then renamed."""
    shutil.copytree(versions / str(version), folder / ".copy")
    (folder / ".copy").rename(folder / str(version))
    return folder / str(version)


def answer(store, **which):
    with store.lease("toy", **which) as served:
        return served.run("serving_default", X)["y"][0] - 0.5


def states(store):
    return {one.version: one.state for one in store.statuses("toy")}


def test_a_version_answers_as_its_graph(versions):
    served = ServedVersion("toy", 1, versions / "1")
    np.testing.assert_array_equal(
        served.run("serving_default", X)["y"], np.float32([1.5, 2, 3.5])
    )
    outputs = served.run(
        "repeat",
        {"count": np.int32([3]), "text": np.array(["天".encode()], object)},
    )
    assert outputs["copies"].tolist() == ["3天".encode()]
    assert outputs["length"].dtype == np.int32
    assert served.run("sum_up", X)["total"].shape == ()


def test_the_documented_half_plus_two_takes_a_vector(folder):
    path = save_documented_half_plus_two(folder, 123)
    served = ServedVersion("half_plus_two", 123, path)
    outputs = served.run("serving_default", X)
    assert outputs["y"].tolist() == [2.5, 3.0, 4.5]


@pytest.mark.parametrize(
    ("signature", "inputs", "message"),
    [
        ("none", X, 'Serving signature name: "none" not found in signature '
         "def"),
        ("__saved_model_init_op", {}, "Failed to get input map for "
         "signature: __saved_model_init_op"),
        ("serving_default", {}, "input size does not match signature: 0!=1. "
         "Sent extra: {}. Missing but required: {x}."),
        ("serving_default", {**X, "b": X["x"]}, "input size does not match "
         "signature: 2!=1. Sent extra: {b}. Missing but required: {}."),
        ("serving_default", {"x": np.int32([1])}, "Expects x to be float32 "
         "but int32 is provided"),
        ("repeat", {"count": np.int32([-1]), "text": np.array([b""], object)},
         "count must be at least 0"),
        ("solve", {"x": np.zeros(4, np.float32)}, "Input is not invertible."),
    ],
)  # fmt: skip
def test_what_a_version_cannot_answer_is_told_in_a_line(
    versions, signature, inputs, message
):
    served = ServedVersion("toy", 1, versions / "1")
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        served.run(signature, inputs)
    assert caught.value.message == message
    assert served.run("serving_default", X)


def test_an_error_of_shapes_names_the_shapes(versions):
    served = ServedVersion("toy", 1, versions / "1")
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        served.run("solve", X)
    assert "3" in caught.value.message
    assert "\n" not in caught.value.message
    assert "{{" not in caught.value.message


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ({}, [10]),
        ({"num_versions": 2}, [2, 10]),
        ({"policy": "all"}, [1, 2, 10]),
        ({"policy": "specific", "versions": (1, 2, 7)}, [1, 2]),
    ],
)
def test_policies(versions, policy, served):
    store = build_store(versions, **policy)
    store.start()
    assert store.versions("toy") == served
    assert store.is_ready()
    assert answer(store) == served[-1]
    for version in served:
        assert answer(store, version=version) == version
    with pytest.raises(tf.errors.NotFoundError) as caught:
        answer(store, version=7)
    assert caught.value.message == (
        "Servable not found for request: Specific(toy, 7)"
    )


def test_an_unknown_model_has_contract_words(versions):
    store = build_store(versions)
    store.start()
    for call, message in (
        (
            lambda: store.lease("other").__enter__(),
            "Servable not found for request: Latest(other)",
        ),
        (
            lambda: store.statuses("other"),
            "Could not find any versions of model other",
        ),
        (
            lambda: store.statuses("toy", 7),
            "Could not find version 7 of model toy",
        ),
    ):
        with pytest.raises(tf.errors.NotFoundError) as caught:
            call()
        assert caught.value.message == message


def test_labels(versions):
    options = {"policy": "all", "labels": {"stable": 1, "canary": 10}}
    store = build_store(versions, **options)
    store.start()
    assert answer(store, label="stable") == 1
    assert answer(store, label="canary") == 10
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        answer(store, label="beta")
    assert caught.value.message == ("Unrecognized servable version label: beta")


def test_a_label_of_a_version_that_does_not_run(versions):
    with pytest.raises(InputError, match="a label names version 1"):
        build_store(versions, labels={"stable": 1}).start()
    store = build_store(
        versions, labels={"stable": 1}, allow_labels_for_unavailable=True
    )
    store.start()
    with pytest.raises(tf.errors.NotFoundError, match=r"Specific\(toy, 1\)"):
        answer(store, label="stable")


def test_a_new_version_takes_over_and_the_old_one_ends(versions, folder):
    put(versions, folder, 1)
    store = build_store(folder)
    store.start()
    put(versions, folder, 2)
    store.poll()
    assert answer(store) == 2
    assert states(store) == {1: "END", 2: "AVAILABLE"}


def test_an_old_version_answers_until_its_last_request_is_done(
    versions, folder
):
    put(versions, folder, 1)
    store = build_store(folder)
    store.start()
    with store.lease("toy") as old:
        put(versions, folder, 2)
        store.poll()
        assert states(store) == {1: "UNLOADING", 2: "AVAILABLE"}
        assert answer(store) == 2
        assert old.run("serving_default", X)["y"][0] == 1.5
    store.poll()
    assert states(store)[1] == "END"


def test_the_highest_version_is_withdrawn(versions, folder):
    put(versions, folder, 1)
    put(versions, folder, 2)
    store = build_store(folder)
    store.start()
    shutil.rmtree(folder / "2")
    store.poll()
    assert answer(store) == 1
    assert states(store) == {1: "AVAILABLE", 2: "END"}
    put(versions, folder, 2)
    store.poll()
    assert answer(store) == 2


def test_without_the_folder_what_runs_runs_on(versions, folder):
    put(versions, folder, 1)
    store = build_store(folder)
    store.start()
    folder.rename(folder.with_name("moved"))
    store.poll()
    assert answer(store) == 1


def break_hash(path):
    write_manifest(path)
    with open(path / "saved_model.pb", "ab") as file:
        file.write(b"\n")


def break_manifest(path):
    (path / "manifest.json").write_text("{")


def break_graph(path):
    content = (path / "saved_model.pb").read_bytes()
    (path / "saved_model.pb").write_bytes(content[: len(content) // 2])


def break_variables(path):
    (path / "variables" / "variables.index").unlink()


def break_copy(path):
    (path / "saved_model.pb").unlink()


def break_ops(path):
    class Reader(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
        def __call__(self, path):
            return {"content": tf.io.read_file(path)}

    shutil.rmtree(path)
    tf.saved_model.save(Reader(), str(path), signatures=Reader().__call__)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (break_hash, "SHA-256"),
        (break_manifest, "manifest.json"),
        (break_graph, "saved_model.pb"),
        (break_variables, ""),
        (break_copy, "saved_model.pb"),
        (break_ops, "ReadFile"),
    ],
)
def test_a_broken_version_harms_nobody_until_it_is_mended(
    versions, folder, damage, word
):
    put(versions, folder, 1)
    store = build_store(folder)
    store.start()
    broken = shutil.copytree(versions / "2", folder / ".copy")
    damage(broken)
    broken.rename(folder / "2")
    store.poll()
    store.poll()
    assert answer(store) == 1
    new, old = store.statuses("toy")
    assert (new.state, old.state) == ("END", "AVAILABLE")
    assert new.error_code != "OK"
    assert word in new.error_message
    assert "\n" not in new.error_message
    shutil.copytree(versions / "2", folder / "2", dirs_exist_ok=True)
    (folder / "2" / "manifest.json").unlink(missing_ok=True)
    store.poll()
    assert answer(store) == 2
    assert states(store) == {1: "END", 2: "AVAILABLE"}


def test_a_version_that_fails_is_tried_five_times_again(
    versions, folder, monkeypatch
):
    times, attempts = [0.0], []

    def refuse(path):
        attempts.append(path)
        raise InputError("no more")

    monkeypatch.setattr(model_store, "check_ops", refuse)
    monkeypatch.setattr(model_store.time, "monotonic", lambda: times[0])
    put(versions, folder, 1)
    store = build_store(folder)
    with pytest.raises(InputError, match="no more"):
        store.start()
    for _ in range(20):
        times[0] += 30
        store.poll()
    assert len(attempts) == 1 + 5


@pytest.mark.parametrize("entries", [(), ("abc", "-1", ".1", "9" * 20)])
def test_without_a_version_nothing_starts(folder, entries):
    for entry in entries:
        (folder / entry).mkdir()
    with pytest.raises(InputError, match="holds no version"):
        build_store(folder).start()


def test_a_first_version_that_is_broken_is_told(versions, folder):
    break_copy(put(versions, folder, 1))
    with pytest.raises(InputError, match="saved_model"):
        build_store(folder).start()


def test_backends_are_made_for_our_exports_and_closed(
    versions, folder, tmp_path, monkeypatch
):
    class Backend:
        def __init__(self, module, path):
            self.module, self.path = module, path
            self.num_closed = 0

        def close(self):
            self.num_closed += 1

    for version in (1, 2, 10):
        shutil.copytree(versions / str(version), tmp_path / str(version))
        write_manifest(tmp_path / str(version))
    versions = tmp_path
    put(versions, folder, 1)
    store = build_store(folder, make_backend=Backend)
    store.start()
    with store.lease("toy") as served:
        assert served.backend is None
    monkeypatch.setattr(model_store, "_BACKEND_SIGNATURE", "repeat")
    put(versions, folder, 2)
    store.poll()
    with store.lease("toy") as served:
        backend = served.backend
        assert (backend.module, backend.path) == (served.module, folder / "2")
        put(versions, folder, 10)
        store.poll()
        assert backend.num_closed == 0
    store.poll()
    assert backend.num_closed == 1
    with store.lease("toy") as served:
        last = served.backend
    store.close()
    assert (backend.num_closed, last.num_closed) == (1, 1)
    assert not store.is_ready()


def test_an_export_of_ours_that_nobody_can_verify_gets_no_backend(
    versions, folder, monkeypatch
):
    monkeypatch.setattr(model_store, "_BACKEND_SIGNATURE", "repeat")
    put(versions, folder, 1)
    store = build_store(folder, make_backend=lambda *_: 1 / 0)
    store.start()
    assert answer(store) == 1


def test_no_request_fails_while_versions_change(versions, folder):
    """Threads ask without a pause; versions come, go and are broken."""
    put(versions, folder, 1)
    store = build_store(folder)
    store.start()
    stop = threading.Event()
    answers, failures = [], []

    def ask():
        while not stop.is_set():
            try:
                answers.append(float(answer(store)))
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in (2, 10):
        put(versions, folder, version)
        store.poll()
        while version not in answers and not failures:
            time.sleep(0.001)
        store.poll()
    break_copy(shutil.copytree(versions / "2", folder / "11"))
    store.poll()
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert {1.0, 2.0, 10.0} == set(answers)
    assert answer(store) == 10


def test_the_thread_finds_a_new_version_by_itself(versions, folder):
    put(versions, folder, 1)
    model = ModelConfig("toy", folder)
    store = ModelStore([model], poll_seconds=0.01)
    store.start()
    put(versions, folder, 2)
    is_new = threading.Event()
    for _ in range(1000):
        if store.versions("toy") == [2]:
            break
        is_new.wait(0.01)
    assert answer(store) == 2
    store.close()


# The configuration file.


def write_config(tmp_path, text):
    path = tmp_path / "model.config"
    path.write_text(text)
    return path


def test_a_model_config_file_is_read(tmp_path):
    path = write_config(
        tmp_path,
        """model_config_list {
          config { name: "a" base_path: "/models/a" model_platform: "tensorflow"
            model_version_policy { specific { versions: 42 versions: 43 } }
            version_labels { key: "stable" value: 42 } }
          config { name: "b" base_path: "/models/b"
            model_version_policy { latest { num_versions: 2 } } }
          config { name: "c" base_path: "/models/c"
            model_version_policy { all {} } }
          config { name: "d" base_path: "/models/d" }
        }""",
    )
    a, b, c, d = read_model_config(path)
    assert a == ModelConfig(
        "a",
        pathlib.Path("/models/a"),
        policy="specific",
        versions=(42, 43),
        labels={"stable": 42},
    )
    assert (b.policy, b.num_versions) == ("latest", 2)
    assert c.policy == "all"
    assert (d.policy, d.num_versions) == ("latest", 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model_config_list {",
        "model_config_list { config { nam: 'a' } }",
        "model_config_list { config { name: 'a' } }",
        "model_config_list { config { name: 'a' base_path: '/a' } "
        "config { name: 'a' base_path: '/b' } }",
        "model_config_list { config { name: 'a' base_path: '/a' "
        "model_platform: 'pytorch' } }",
        "custom_model_config { }",
    ],
)
def test_a_bad_model_config_file_is_refused_in_a_line(tmp_path, text):
    path = write_config(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_model_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_model_config_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_model_config(tmp_path / "none")
