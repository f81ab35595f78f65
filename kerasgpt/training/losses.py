"""Owns losses as pure functions. Not: reducing them over devices (step.py)."""

import math

import keras
from keras import ops, tree

from kerasgpt.layers.projection import is_faster_wide

# Logits that exist at a time: of the size of a processor's last cache, and of
# the widest chunks that were still fast (experiments/benchmarks/loss_head.py).
CHUNK_BYTES = 16 * 2**20
# And at least so many times the kernel, whose gradient each chunk adds to.
LEAST_KERNELS = 0.5


def next_token_loss(
    hidden_states, kernel, targets, sample_weight, *, total_weight=None
):
    """Returns the mean cross-entropy of the targets, chunk by chunk.

    Logits and their gradient exist for a chunk of tokens at a time. Since the
    loss is one number, its gradient is known up to a factor as soon as a
    chunk's logits are, so these are never computed twice, as rematerialisation
    (`keras.remat`) would.

    Args:
        hidden_states: float (batch, length, model_dim).
        kernel: float (vocabulary_size, model_dim). Logits are
            `hidden_states @ kernel.T`, in float32.
        targets: int (batch, length).
        sample_weight: float (batch, length). Weight of each token.
        total_weight: float (). Sum of the weights of the whole batch, of
            which these tokens are a part: the parts' losses then add up to
            its mean. `None` = these are all.

    Returns:
        Mean loss, float32 (), in nats, over the sum of weights, which counts
        as 1 if it is less; then, without gradients, float32 (batch, length)
        each: the loss of each token, and whether its target was the first of
        the highest logits, 1 or 0.

    Example:
        Even logits over 4 tokens cost ln 4 nats:

        >>> loss, losses, hits = next_token_loss(
        ...     ops.ones((1, 2, 3)), ops.zeros((4, 3)), [[2, 0]], [[1.0, 0.0]])
        >>> round(float(loss), 4), losses.numpy().round(4)
        (1.3863, array([[1.3863, 1.3863]], dtype=float32))

    Reference: Wijmans et al. 2024, Cut cross-entropy (arXiv 2411.09009), for
    logits that never exist whole.
    """
    return _mean_loss(
        _chunk,
        hidden_states,
        kernel,
        targets,
        sample_weight,
        total_weight=total_weight,
    )


def distillation_loss(
    hidden_states,
    kernel,
    targets,
    sample_weight,
    *,
    teacher_states,
    teacher_kernel,
    temperature,
    teacher_fraction,
    total_weight=None,
):
    """Returns the mean loss of a model that learns from another's logits.

    Of a token with logits z, the teacher's v and the target y, with softmaxes
    p_T = softmax(z / T) and q_T = softmax(v / T):

        (1 - a) (-log p_1[y]) + a T^2 KL(q_T || p_T)

    T^2 keeps the size of the second gradient, whatever T is. As in
    `next_token_loss`, logits, the teacher's too, exist a chunk at a time.

    Args:
        hidden_states, kernel, targets, sample_weight, total_weight: see
            `next_token_loss`.
        teacher_states: float (batch, length, teacher_dim).
        teacher_kernel: float (vocabulary_size, teacher_dim). Both get no
            gradient.
        temperature: float, T above. Higher = what is unlikely counts more.
        teacher_fraction: float, a above. 0 = the targets alone.

    Returns:
        As `next_token_loss`; the loss of each token is that of its target, so
        that it can be compared with training without a teacher.

    Example:
        A teacher that is sure of token 1, against even logits over two
        tokens: KL = ln 2.

        >>> loss, _, _ = distillation_loss(
        ...     ops.zeros((1, 1, 1)), ops.ones((2, 1)), [[0]], [[1.0]],
        ...     teacher_states=ops.ones((1, 1, 1)),
        ...     teacher_kernel=ops.array([[0.0], [99.0]]),
        ...     temperature=1.0, teacher_fraction=1.0)
        >>> round(float(loss), 4)
        0.6931

    Reference: Hinton, Vinyals and Dean 2015 (arXiv 1503.02531), section 2.
    """
    teacher_kernel = ops.cast(ops.stop_gradient(teacher_kernel), "float32")

    def chunk(hidden_states, kernel, targets, weights, teacher_states):
        return _distilled_chunk(
            hidden_states,
            kernel,
            targets,
            weights,
            ops.matmul(teacher_states, ops.transpose(teacher_kernel)),
            temperature=temperature,
            teacher_fraction=teacher_fraction,
        )

    return _mean_loss(
        chunk,
        hidden_states,
        kernel,
        targets,
        sample_weight,
        ops.cast(ops.stop_gradient(teacher_states), "float32"),
        total_weight=total_weight,
    )


def _mean_loss(
    chunk,
    hidden_states,
    kernel,
    targets,
    sample_weight,
    *others,
    total_weight,
):
    """Returns the mean cost, loss and hit of tokens, in chunks.

    Args:
        chunk: function of a chunk's hidden_states, the kernel, and the
            chunk's targets, weights and others. Returns (cost, which is
            trained; loss, which is told; hit) of each token and the gradient
            of the weighed costs to the logits.
        others: floats (batch, length, width).
    """
    shape = ops.shape(targets)
    hidden_states, *others = (
        ops.reshape(tensor, (-1, tensor.shape[-1]))
        for tensor in (hidden_states, *others)
    )
    targets = ops.reshape(ops.cast(targets, "int32"), (-1,))
    weights = ops.reshape(ops.cast(sample_weight, "float32"), (-1,))
    if total_weight is None:
        total_weight = ops.sum(weights)
    weights = weights / ops.maximum(total_weight, 1.0)

    @ops.custom_gradient
    def mean_loss(hidden_states, kernel):
        costs, losses, hits, hidden_gradient, kernel_gradient = _chunks(
            chunk,
            ops.cast(hidden_states, "float32"),
            ops.cast(kernel, "float32"),
            [targets, weights, *others],
        )

        def gradient(*upstreams):
            # One an output under TensorFlow, all in one tuple under JAX.
            upstream = tree.flatten(upstreams)[0]
            return (
                ops.cast(upstream * hidden_gradient, hidden_states.dtype),
                ops.cast(upstream * kernel_gradient, kernel.dtype),
            )

        return (ops.sum(costs * weights), losses, hits), gradient

    loss, losses, hits = mean_loss(hidden_states, kernel)
    return (
        loss,
        ops.reshape(ops.stop_gradient(losses), shape),
        ops.reshape(ops.stop_gradient(hits), shape),
    )


def _chunks(chunk, hidden_states, kernel, others):
    """Returns what `chunk` does, over chunks of tokens."""
    num_tokens = ops.shape(hidden_states)[0]
    vocabulary_size, model_dim = kernel.shape
    # A length that is not known when traced cannot be cut.
    is_known = isinstance(num_tokens, int)
    num_chunks = (
        math.ceil(
            4
            * num_tokens
            * vocabulary_size
            / max(CHUNK_BYTES, LEAST_KERNELS * 4 * vocabulary_size * model_dim)
        )
        if is_known
        else 1
    )
    is_wide = is_known and is_faster_wide(
        num_tokens, vocabulary_size, model_dim
    )

    def differentiate(hidden_states, *others):
        *outputs, gradient = chunk(hidden_states, kernel, *others)
        factors = gradient, hidden_states
        if is_wide:
            factors = hidden_states, gradient
        return (
            *outputs,
            ops.matmul(gradient, kernel),
            ops.matmul(ops.transpose(factors[0]), factors[1]),
        )

    def upright(kernel_gradient):
        return ops.transpose(kernel_gradient) if is_wide else kernel_gradient

    if num_chunks == 1:
        *outputs, kernel_gradient = differentiate(hidden_states, *others)
        return (*outputs, upright(kernel_gradient))
    length = math.ceil(num_tokens / num_chunks)
    padding = num_chunks * length - num_tokens

    # Tokens that stand together are on one device of those that share a batch
    # under JAX: of a chunk, all should have some.
    is_spread = keras.backend.backend() == "jax"

    def cut(tensor):
        widths = [(0, padding)] + [(0, 0)] * (len(tensor.shape) - 1)
        tensor = ops.pad(tensor, widths)
        if is_spread:
            tensor = ops.reshape(
                tensor, (length, num_chunks, *tensor.shape[1:])
            )
            return ops.swapaxes(tensor, 0, 1)
        return ops.reshape(tensor, (num_chunks, length, *tensor.shape[1:]))

    def join(output):
        if is_spread:
            output = ops.swapaxes(output, 0, 1)
        return ops.reshape(output, (-1, *output.shape[2:]))[:num_tokens]

    inputs = [cut(tensor) for tensor in (hidden_states, *others)]

    def advance(index, state):
        *outputs, kernel_gradient = state
        *chunks, added = differentiate(*(tensor[index] for tensor in inputs))
        for place, part in enumerate(chunks):
            start = (index,) + (0,) * len(part.shape)
            outputs[place] = ops.slice_update(outputs[place], start, part[None])
        return (*outputs, kernel_gradient + added)

    # Not `ops.scan`, whose outputs must have the shape of the carry under
    # TensorFlow.
    *outputs, kernel_gradient = ops.fori_loop(
        0,
        num_chunks,
        advance,
        (
            *(ops.zeros((num_chunks, length), "float32") for _ in range(3)),
            ops.zeros((num_chunks, length, model_dim), "float32"),
            ops.zeros(kernel.shape[::-1] if is_wide else kernel.shape),
        ),
    )
    return (*map(join, outputs), upright(kernel_gradient))


def _chunk(hidden_states, kernel, targets, weights):
    logits = ops.matmul(hidden_states, ops.transpose(kernel))
    losses, hits, gradient = _cross_entropy(logits, targets, weights)
    return losses, losses, hits, gradient


def _distilled_chunk(
    hidden_states,
    kernel,
    targets,
    weights,
    teacher_logits,
    *,
    temperature,
    teacher_fraction,
):
    logits = ops.matmul(hidden_states, ops.transpose(kernel))
    losses, hits, gradient = _cross_entropy(logits, targets, weights)
    own = ops.log_softmax(logits / temperature, axis=-1)
    teacher = ops.log_softmax(teacher_logits / temperature, axis=-1)
    likely = ops.exp(teacher)
    divergence = ops.sum(likely * (teacher - own), axis=-1)
    # One T of the two is taken by the derivative of z / T.
    share = teacher_fraction * temperature
    costs = (1 - teacher_fraction) * losses + share * temperature * divergence
    gradient = (1 - teacher_fraction) * gradient
    gradient += share * weights[:, None] * (ops.exp(own) - likely)
    return costs, losses, hits, gradient


def _cross_entropy(logits, targets, weights):
    """Returns losses, hits, and the gradient of the weighed losses."""
    highest = ops.max(logits, axis=-1)
    exponentials = ops.exp(logits - highest[:, None])
    total = ops.sum(exponentials, axis=-1)
    columns = ops.arange(logits.shape[-1], dtype="int32")
    is_target = ops.equal(columns[None], targets[:, None])
    target_logits = ops.sum(ops.where(is_target, logits, 0.0), axis=-1)
    losses = ops.log(total) + highest - target_logits
    # `ops.argmax` compiles to a loop that is not vectorised.
    is_highest = ops.equal(logits, highest[:, None])
    first = ops.min(
        ops.where(is_highest, columns[None], logits.shape[-1]), axis=-1
    )
    hits = ops.cast(ops.equal(first, targets), "float32")
    gradient = exponentials * (weights / total)[:, None]
    return losses, hits, gradient - ops.where(is_target, weights[:, None], 0.0)
