"""Owns which devices train together, and the loop where fit cannot.

Not: what they compute (step.py).
"""

import contextlib
import functools
import json
import os
import socket
import time

import keras
import tensorflow as tf

from kerasgpt.config import InputError
from kerasgpt.console import quiet_libraries
from kerasgpt.training.sharding import build_distribution

DISTRIBUTE_NAMES = ("auto", "none", "mirrored", "multi_worker", "tpu")
# Of a cluster; the first that there is holds the chief as its number 0.
JOB_NAMES = ("chief", "worker")
# What TensorFlow calls the strategy of one device.
ONE_DEVICE = type(tf.distribute.get_strategy())
# Queues start the processes of a job minutes apart.
WAIT_SECONDS = 300.0


@functools.cache
def build_strategy(distribute="auto"):
    """Returns what trains one model on the devices of this run.

    Model, train step and optimizer are created in its scope. Of several
    workers it must be made before anything is computed, and only once.

    Args:
        distribute: str.
            "none": one device;
            "mirrored": all GPUs of this machine (without one, its logical
            CPUs), gradients summed after each step;
            "multi_worker": the same over the processes that the environment
            variable TF_CONFIG names;
            "tpu": a TPU; never tried by us;
            "auto": "multi_worker" if TF_CONFIG names several processes,
            "mirrored" with several GPUs, else "none". Under JAX all devices
            of this process, by a `keras.distribution` that is set here unless
            one is set already.

    Returns:
        tf.distribute.Strategy; under JAX that of one device, which does
        nothing.

    Raises:
        InputError: if there are no such devices, TF_CONFIG is wrong, one of
            its workers does not come, or the backend knows no such thing.
        RuntimeError: of TensorFlow, if something was computed before several
            workers were joined.

    Example:
        >>> build_strategy("none").num_replicas_in_sync
        1
    """
    cluster = read_cluster(os.environ.get("TF_CONFIG", ""))
    if not is_tensorflow():
        _distribute_under_jax(distribute, cluster)
        return tf.distribute.get_strategy()
    if keras.distribution.distribution() is not None:
        raise InputError(
            "keras.distribution: does nothing under TensorFlow; unset it and "
            "choose with distribute."
        )
    num_gpus = len(tf.config.list_physical_devices("GPU"))
    if distribute == "auto":
        distribute = "none" if num_gpus < 2 else "mirrored"
        if cluster and len(cluster["addresses"]) > 1:
            distribute = "multi_worker"
    if distribute == "mirrored":
        return _mirrored("GPU" if num_gpus else "CPU")
    if distribute == "multi_worker":
        if not cluster:
            raise InputError(
                "distribute=multi_worker: the environment variable TF_CONFIG "
                "must name the workers."
            )
        _wait_for_workers(cluster["addresses"], cluster["number"])
        with quiet_libraries():
            return tf.distribute.MultiWorkerMirroredStrategy()
    if distribute == "tpu":
        return _tpu()
    return tf.distribute.get_strategy()


def read_cluster(text):
    """Returns the workers that a TF_CONFIG names, or None if it is empty.

    Args:
        text: str, JSON.

    Returns:
        dict: "addresses", list of "host:port", the chief's first; "number",
        int, which of them this process is.

    Raises:
        InputError: if it is not one, or names no worker, one twice, or not
            this process.

    Example:
        >>> read_cluster('{"cluster": {"worker": ["a:1", "b:1"]},'
        ...              ' "task": {"type": "worker", "index": 1}}')
        {'addresses': ['a:1', 'b:1'], 'number': 1}
    """
    if not text:
        return None
    try:
        config = json.loads(text)
        jobs, task = config["cluster"], config["task"]
        kind, index = task["type"], int(task["index"])
        lists = {name: list(jobs[name]) for name in jobs}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            'TF_CONFIG: must be {"cluster": {"worker": ["host:port", …]}, '
            '"task": {"type": "worker", "index": 0}} in JSON; received '
            f"{text[:80]!r}."
        ) from error
    for name in lists:
        if name not in JOB_NAMES:
            raise InputError(
                f"TF_CONFIG: there is no job {name!r} here, only "
                f"{' and '.join(JOB_NAMES)}."
            )
    addresses = [
        address for name in JOB_NAMES for address in lists.get(name, [])
    ]
    for address in addresses:
        host, _, port = str(address).rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise InputError(
                f"TF_CONFIG: a worker must be host:port; received {address!r}."
            )
        if addresses.count(address) > 1:
            raise InputError(f"TF_CONFIG: names {address} more than once.")
    if not 0 <= index < len(lists.get(kind, [])):
        raise InputError(
            f"TF_CONFIG: this task, {kind} {index}, is not in the cluster."
        )
    before = 0 if kind == JOB_NAMES[0] else len(lists.get(JOB_NAMES[0], []))
    return {"addresses": addresses, "number": before + index}


def is_tensorflow():
    """Returns whether Keras computes with TensorFlow, not with JAX."""
    return keras.backend.backend() == "tensorflow"


def is_chief(strategy):
    """Returns whether this process writes files; of workers, the first."""
    resolver = strategy.cluster_resolver
    if not spans_workers(strategy):
        return True
    jobs = resolver.cluster_spec().as_dict()
    first = next(name for name in JOB_NAMES if name in jobs)
    return (resolver.task_type, resolver.task_id) == (first, 0)


def spans_workers(strategy):
    """Returns whether several processes train together."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def is_one_device(strategy):
    """Returns whether nothing is distributed."""
    return type(strategy) is ONE_DEVICE


def on_chief(strategy, function):
    """Calls a function on the chief, for which the other workers wait.

    What it writes they find: workers share the folder of a run.

    Args:
        strategy: tf.distribute.Strategy.
        function: without arguments.
    """
    if is_chief(strategy):
        function()
    if spans_workers(strategy):
        meet = tf.function(
            lambda: strategy.run(lambda: sum_over_replicas(tf.constant(1.0)))
        )
        with lost_workers_told():
            meet()


def on_chief_only(tell, strategy):
    """Returns the function that tells a line, or one that does not."""
    return tell if is_chief(strategy) else lambda line: None


def resolve_jit_compile(jit_compile, strategy):
    """Returns whether to compile the step with XLA.

    Args:
        jit_compile: bool. `None` = if there is one device.
        strategy: tf.distribute.Strategy.

    Raises:
        InputError: if it is asked for on several devices.
    """
    is_alone = is_one_device(strategy)
    if jit_compile and not is_alone:
        raise InputError(
            f"jit_compile=true: XLA compiles for one device, not under "
            f"{type(strategy).__name__}; leave it out."
        )
    return is_alone if jit_compile is None else jit_compile


def num_shares(strategy):
    """Returns into how many equal parts the rows of a batch are cut.

    Args:
        strategy: tf.distribute.Strategy.
    """
    shared = keras.distribution.distribution()
    if shared is None or is_tensorflow():
        return strategy.num_replicas_in_sync
    return shared.num_model_replicas


def num_replicas():
    """Returns how many replicas the current strategy has."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def sum_over_replicas(values):
    """Returns the sums of tensors, the same on each replica.

    Args:
        values: structure of tensors, of this replica.
    """
    if num_replicas() == 1:
        return values
    # What is summed must have a device, which variables and arguments of the
    # only replica of a process have not.
    values = keras.tree.map_structure(tf.identity, values)
    replica = tf.distribute.get_replica_context()
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, values)


def check_rows(rows, *, replicas, accumulate_steps):
    """Checks that a batch can be cut into equal parts.

    Args:
        rows: int, of a batch of all replicas.
        replicas: int.
        accumulate_steps: int, micro-batches of each.

    Raises:
        InputError: if it cannot.
    """
    if rows % (replicas * accumulate_steps):
        raise InputError(
            f"batch_tokens: {rows} rows a step cannot be cut into "
            f"{replicas} replicas times accumulate_steps="
            f"{accumulate_steps}; take a multiple of "
            f"{replicas * accumulate_steps} rows."
        )


def compile_on_workers(strategy, function):
    """Returns a function that runs a step on all replicas of all workers.

    A worker that wants to stop may not leave the others waiting: they learn
    of it with the next step.

    Args:
        strategy: tf.distribute.Strategy.
        function: of (inputs, targets, sample_weight) of one replica's rows;
            returns dict of tensors, equal on all replicas.

    Returns:
        Function of a global batch, the same in each process, and a bool, stop
        after this step; returns the dict, and whether any worker said so.
    """

    def on_replica(data, wish):
        return function(data), sum_over_replicas(wish) > 0.0

    compiled = tf.function(
        lambda data, wish: strategy.run(on_replica, args=(data, wish)),
        autograph=False,
    )

    def spread(value):
        return strategy.experimental_distribute_values_from_function(value)

    def run(batch, is_stopping):
        data = spread(
            lambda context: keras.tree.map_structure(
                lambda rows: _rows_of(rows, context), batch
            )
        )
        wish = spread(lambda context: tf.constant(float(is_stopping)))
        return keras.tree.map_structure(
            lambda value: strategy.experimental_local_results(value)[0],
            compiled(data, wish),
        )

    return run


@contextlib.contextmanager
def lost_workers_told():
    """Turns the loss of another worker, found within seconds, into one line.

    Raises:
        InputError: if one was lost.
    """
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        raise InputError(
            "a worker was lost: start all of them again, they go on from the "
            "last checkpoint."
        ) from error


def _distribute_under_jax(distribute, cluster):
    """Sets which devices train together under JAX.

    Raises:
        InputError: for what is TensorFlow's alone.
    """
    backend = keras.backend.backend()
    if backend != "jax":
        raise InputError(
            f"KERAS_BACKEND={backend}: training knows tensorflow and jax."
        )
    if distribute not in ("auto", "none"):
        raise InputError(
            f"distribute={distribute}: is TensorFlow's; under "
            f"KERAS_BACKEND=jax choose auto or none."
        )
    if cluster and len(cluster["addresses"]) > 1:
        raise InputError(
            "TF_CONFIG: its workers train under TensorFlow; leave out "
            "KERAS_BACKEND=jax, or unset it."
        )
    is_free = keras.distribution.distribution() is None
    if (
        distribute == "auto"
        and is_free
        and len(keras.distribution.list_devices()) > 1
    ):
        keras.distribution.set_distribution(build_distribution())


def _rows_of(rows, context):
    """Returns the part of a global batch that one replica takes."""
    number, count = context.replica_id_in_sync_group, len(rows)
    size = count // context.num_replicas_in_sync
    return rows[number * size : (number + 1) * size]


def _mirrored(kind):
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    if len(devices) < 2:
        raise InputError(
            f"distribute=mirrored: this machine has one {kind}; choose auto."
        )
    return tf.distribute.MirroredStrategy(devices)


def _tpu():
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, tf.errors.OpError) as error:
        line = str(error).splitlines()[0]
        raise InputError(f"distribute=tpu: found no TPU: {line}") from error
    return tf.distribute.TPUStrategy(resolver)


def _wait_for_workers(addresses, number):
    """Returns once all workers are there.

    TensorFlow would wait for a missing one, and end the process in the middle
    of its log.
    """
    port = int(addresses[number].rpartition(":")[2])
    missing = [a for i, a in enumerate(addresses) if i != number]
    end = time.monotonic() + WAIT_SECONDS
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            raise InputError(
                f"TF_CONFIG: port {port} of this worker, number {number}, is "
                f"taken; was it started twice?"
            ) from error
        listener.listen(len(addresses))
        while missing := [a for a in missing if not _answers(a)]:
            if time.monotonic() > end:
                raise InputError(
                    f"TF_CONFIG: no worker answers at {', '.join(missing)} "
                    f"after {WAIT_SECONDS:.0f} seconds; start all of them."
                )
            time.sleep(0.2)


def _answers(address):
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), 1.0).close()
    except OSError:
        return False
    return True
