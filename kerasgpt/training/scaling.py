"""Owns what a step on many GPUs takes, on paper.

Not: this machine, which is measured (plan.py, memory.py, speed.py).
"""

import dataclasses
import math

from kerasgpt.layers.feed_forward import ACTIVATIONS

# Bytes of a number: what is multiplied and kept for the backward pass, and
# what weights, gradients and each of AdamW's two slots are held in.
HALF_BYTES, FLOAT_BYTES = 2, 4
STATE_BYTES = 4 * FLOAT_BYTES
# Values that a block keeps of a token for its backward pass: so many times the
# width (inputs of both norms, of queries, keys and values, of the network), of
# the queries (them, and what attention gives), of the keys (and values), and
# of the inner width (before and after the bend; gated: gate, bent gate, what
# it multiplies, product). Korthikanti et al. 2022, section 4.1, without masks
# of dropout and with scores computed again: 32 bytes of their 34 a width.
MODEL_KEPT, QUERIES_KEPT, KEYS_KEPT = 4, 2, 2
INNER_KEPT, GATED_KEPT = 2, 4
# All-reduces of a block under tensor parallelism, forward and backward.
TENSOR_REDUCES = 4


@dataclasses.dataclass(frozen=True)
class Cluster:
    """GPUs and the links between them.

    Attributes:
        peak_flops: float, FLOP/s of a GPU's dense bfloat16 products.
        memory_bytes: float, of a GPU.
        node_gpus: int, GPUs that the fast link joins.
        node_bandwidth, network_bandwidth: floats, bytes a second that a GPU
            sends within its node, and to others.
        compute_fraction: float, share of `peak_flops` while computing.
        link_fraction: float, share of the bandwidths that is reached.
        memory_fraction: float, share of the memory that may be planned with.
    """

    peak_flops: float
    memory_bytes: float
    node_gpus: int
    node_bandwidth: float
    network_bandwidth: float
    compute_fraction: float = 0.45
    link_fraction: float = 0.8
    memory_fraction: float = 0.9


# Peak, memory and NVLink (900 GB/s, half of it each way): NVIDIA's data sheet
# of H100 SXM; eight 400 Gb/s adapters a node: that of DGX H100. The fractions
# are assumed: 44 to 52 % were reached by Narayanan et al. 2021 (table 1).
H100_CLUSTER = Cluster(
    peak_flops=989.4e12,
    memory_bytes=80e9,
    node_gpus=8,
    node_bandwidth=450e9,
    network_bandwidth=50e9,
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How GPUs share the work: `data * tensor * pipeline` of them.

    Attributes:
        data: int. Groups that take different rows.
        tensor: int. GPUs of a group that share each matrix, with the sequence
            cut where no matrix is; within a node.
        pipeline: int. Stages of blocks, one after the other.
        is_sharded: bool. Weights, gradients and slots are cut over `data`;
            weights are gathered, gradients summed, for each micro-batch
            (ZeRO-3, FSDP).
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    is_sharded: bool = False

    @property
    def gpus(self):
        """Int. How many there are."""
        return self.data * self.tensor * self.pipeline


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What one step of a layout takes on each GPU.

    Attributes:
        micro_rows: int, rows of a group that are computed together.
        memory_bytes: float.
        compute_seconds: float.
        weights_seconds: float, to sum gradients and gather weights.
        activations_seconds: float, to send what tokens become, for which the
            next product waits.
        idle_seconds: float, in which a pipeline fills and empties.
        model_flops_fraction: float. FLOPs of the model over those that the
            GPUs could do in the step, nothing being hidden.
    """

    micro_rows: int
    memory_bytes: float
    compute_seconds: float
    weights_seconds: float
    activations_seconds: float
    idle_seconds: float
    model_flops_fraction: float

    @property
    def seconds(self):
        """Float. The step if nothing is sent while computing."""
        return (
            self.compute_seconds
            + self.weights_seconds
            + self.activations_seconds
            + self.idle_seconds
        )

    @property
    def least_seconds(self):
        """Float. The step if gradients and weights are."""
        hidden = min(self.compute_seconds, self.weights_seconds)
        return self.seconds - hidden


def ring_seconds(num_bytes, members, bandwidth):
    """Returns the time of an all-reduce around a ring.

    Each member sends `2 (n - 1) / n` times the bytes; half of that for a
    reduce-scatter or an all-gather.

    Args:
        num_bytes: float, that each member has.
        members: int.
        bandwidth: float, bytes a second that each sends.

    Example:
        Two send all of 10 bytes, four one and a half times as many:

        >>> ring_seconds(10, 2, 1.0), ring_seconds(10, 4, 1.0)
        (10.0, 15.0)

    Reference: Patarasuk and Yuan 2009, Bandwidth optimal all-reduce
    algorithms, section 3.
    """
    return 2 * (members - 1) / members * num_bytes / bandwidth


def all_reduce_seconds(num_bytes, members, cluster, *, stride=1):
    """Returns the time of an all-reduce in and between nodes.

    First within each node, then each GPU its share of the result with its
    counterparts in the others, then within again.

    Args:
        num_bytes: float.
        members: int, GPUs.
        cluster: Cluster.
        stride: int. GPUs from one member to the next: those between belong to
            other groups, which communicate at the same time.
    """
    inside = min(members, max(1, cluster.node_gpus // stride))
    fraction = cluster.link_fraction
    within = ring_seconds(num_bytes, inside, fraction * cluster.node_bandwidth)
    between = ring_seconds(
        num_bytes / inside,
        math.ceil(members / inside),
        fraction * cluster.network_bandwidth,
    )
    return within + between


def activation_bytes(config):
    """Returns bytes that a block keeps of a token for its backward pass.

    Args:
        config: GPTConfig.

    Example:
        GPT-2, whose keys are as wide as the model and its network four times:
        32 bytes a width.

        >>> from kerasgpt.models import GPTConfig
        >>> activation_bytes(GPTConfig.from_depth(12, activation="gelu")) / 768
        32.0
    """
    is_gated = ACTIVATIONS[config.activation][1]
    return HALF_BYTES * (
        MODEL_KEPT * config.model_dim
        + QUERIES_KEPT * config.num_heads * config.head_dim
        + KEYS_KEPT * config.num_kv_heads * config.head_dim
        + (GATED_KEPT if is_gated else INNER_KEPT) * config.inner_dim
    )


def step_cost(config, layout, cluster, *, batch_tokens, micro_rows=None):
    """Returns the StepCost of AdamW in bfloat16, weights in float32.

    Args:
        config: GPTConfig, `context_length` tokens a row.
        layout: Layout.
        cluster: Cluster.
        batch_tokens: int, of all groups together.
        micro_rows: int. `None` = the most that fit, at least 1.

    Returns:
        StepCost, or None if there are fewer rows than groups of GPUs.

    Raises:
        ValueError: if GPUs cannot share the heads equally.

    Reference: Rajbhandari et al. 2020, ZeRO (arXiv 1910.02054), sections 3 and
    7; Shoeybi et al. 2019, Megatron-LM (arXiv 1909.08053), section 3;
    Narayanan et al. 2021 (arXiv 2104.04473), section 2; Korthikanti et al.
    2022 (arXiv 2205.05198), section 4.
    """
    if config.num_kv_heads % layout.tensor:
        raise ValueError(
            f"tensor must divide num_kv_heads={config.num_kv_heads}; received "
            f"{layout.tensor}."
        )
    rows = batch_tokens // config.context_length // layout.data
    if rows < 1:
        return None
    if micro_rows is None:
        micro_rows = _most_rows(config, layout, cluster, rows)
    micro_batches = math.ceil(rows / micro_rows)
    memory = _state_bytes(config, layout)
    memory += micro_rows * _row_bytes(config, layout, micro_batches)
    flops = config.training_flops_per_token * batch_tokens
    peak = layout.gpus * cluster.peak_flops
    compute = flops / (peak * cluster.compute_fraction)
    weights = _weights_seconds(config, layout, cluster, micro_batches)
    activations = _tensor_seconds(config, layout, cluster, rows)
    activations += _pipeline_seconds(config, layout, cluster, rows)
    idle = (layout.pipeline - 1) / micro_batches * compute
    seconds = compute + weights + activations + idle
    return StepCost(
        micro_rows=micro_rows,
        memory_bytes=memory,
        compute_seconds=compute,
        weights_seconds=weights,
        activations_seconds=activations,
        idle_seconds=idle,
        model_flops_fraction=flops / (peak * seconds),
    )


def break_even_tokens(cluster, *, gpus):
    """Returns the tokens of a GPU whose computing takes as long as summing.

    With fewer a step, data parallelism spends more on the all-reduce of the
    gradients than on the model, however large that is: both grow with its
    parameters (attention left out).

    Args:
        cluster: Cluster.
        gpus: int.
    """
    parameter_seconds = all_reduce_seconds(FLOAT_BYTES, gpus, cluster)
    flops = cluster.peak_flops * cluster.compute_fraction
    return parameter_seconds * flops / 6


def _state_bytes(config, layout):
    """Returns bytes of weights, gradients, slots, and what is gathered."""
    parameters = config.num_parameters / (layout.tensor * layout.pipeline)
    if not layout.is_sharded:
        # Products take a copy of the weights in bfloat16.
        return (STATE_BYTES + HALF_BYTES) * parameters
    block = parameters / (config.num_layers / layout.pipeline)
    # One is computed with while the next one is gathered.
    return STATE_BYTES * parameters / layout.data + 2 * HALF_BYTES * block


def _row_bytes(config, layout, micro_batches):
    """Returns bytes of what is kept of a row for the backward pass."""
    blocks = config.num_layers / layout.pipeline
    # The first stage has begun so many micro-batches before one comes back.
    in_flight = min(layout.pipeline, micro_batches)
    tokens = config.context_length / layout.tensor
    return tokens * blocks * in_flight * activation_bytes(config)


def _most_rows(config, layout, cluster, rows):
    """Returns how many rows fit together, of a pipeline one."""
    if layout.pipeline > 1:
        return 1
    room = cluster.memory_fraction * cluster.memory_bytes
    room -= _state_bytes(config, layout)
    fitting = int(room / _row_bytes(config, layout, 1))
    return max(1, min(rows, fitting))


def _weights_seconds(config, layout, cluster, micro_batches):
    """Returns the time to sum gradients, and to gather weights, over `data`."""
    parameters = config.num_parameters / (layout.tensor * layout.pipeline)
    stride = layout.tensor * layout.pipeline
    reduce = all_reduce_seconds(
        FLOAT_BYTES * parameters, layout.data, cluster, stride=stride
    )
    if not layout.is_sharded:
        return reduce
    # An all-reduce's half each: weights forward and backward, and gradients,
    # which nobody has room to add up whole.
    gather = all_reduce_seconds(
        HALF_BYTES * parameters, layout.data, cluster, stride=stride
    )
    return micro_batches * (gather + reduce / 2)


def _tensor_seconds(config, layout, cluster, rows):
    """Returns the time to add up what the GPUs of a matrix have."""
    hidden = HALF_BYTES * rows * config.context_length * config.model_dim
    blocks = config.num_layers / layout.pipeline
    return (
        TENSOR_REDUCES
        * blocks
        * all_reduce_seconds(hidden, layout.tensor, cluster)
    )


def _pipeline_seconds(config, layout, cluster, rows):
    """Returns the time to hand states to the next stage, and gradients back."""
    if layout.pipeline == 1:
        return 0.0
    hidden = HALF_BYTES * rows * config.context_length * config.model_dim
    bandwidth = cluster.link_fraction * cluster.network_bandwidth
    return 2 * hidden / layout.tensor / bandwidth
