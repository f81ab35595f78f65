"""Owns which key a query may see. Not: applying that to scores (attention)."""

from keras import ops


def attention_mask(
    query_positions, query_segment_ids, key_positions, key_segment_ids
):
    """Returns which keys each query may attend to, in one rule.

    A query sees a key of its own segment that is not later than itself.
    Segment 0 is padding and is seen by nobody, itself included. The rule reads
    positions, not indices, so it holds for packed documents and for padding on
    either side.

    Args:
        query_positions: int (batch, target_length). Position in its segment.
        query_segment_ids: int (batch, target_length). 0 = padding.
        key_positions: int (batch, source_length).
        key_segment_ids: int (batch, source_length).

    Returns:
        bool (batch, target_length, source_length), true = may attend.

    Example:
        Documents [5 6] and [8], then one padding position:

        >>> positions, segment_ids = [[0, 1, 0, 0]], [[1, 1, 2, 0]]
        >>> mask = attention_mask(
        ...     positions, segment_ids, positions, segment_ids)
        >>> ops.convert_to_numpy(mask)[0].astype(int)
        array([[1, 0, 0, 0],
               [1, 1, 0, 0],
               [0, 0, 1, 0],
               [0, 0, 0, 0]])
    """
    query_positions = ops.expand_dims(query_positions, 2)
    key_positions = ops.expand_dims(key_positions, 1)
    not_later = ops.less_equal(key_positions, query_positions)
    same_segment = segment_mask(query_segment_ids, key_segment_ids)
    return ops.logical_and(same_segment, not_later)


def segment_mask(query_segment_ids, key_segment_ids):
    """Returns which keys each query may attend to, whatever their order.

    A query sees the keys of its own segment; 0 is padding, seen by nobody.

    Args:
        query_segment_ids: int (batch, target_length).
        key_segment_ids: int (batch, source_length).

    Returns:
        bool (batch, target_length, source_length), true = may attend.

    Example:
        >>> mask = segment_mask(ops.array([[1, 0]]), ops.array([[1, 1, 2]]))
        >>> ops.convert_to_numpy(mask)[0].astype(int)
        array([[1, 1, 0],
               [0, 0, 0]])
    """
    query_segment_ids = ops.expand_dims(query_segment_ids, 2)
    key_segment_ids = ops.expand_dims(key_segment_ids, 1)
    return ops.logical_and(
        ops.equal(query_segment_ids, key_segment_ids),
        ops.not_equal(key_segment_ids, 0),
    )
