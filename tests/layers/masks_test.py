import hypothesis
import hypothesis.strategies as st
import numpy as np
from keras import ops

from kerasgpt.layers.masks import attention_mask, segment_mask


def _mask(positions, segment_ids, *keys):
    keys = keys or (positions, segment_ids)
    return ops.convert_to_numpy(attention_mask(positions, segment_ids, *keys))


def test_one_document_is_a_lower_triangle():
    mask = _mask([[0, 1, 2]], [[1, 1, 1]])
    np.testing.assert_array_equal(mask[0], np.tril(np.ones((3, 3), bool)))


def test_packed_documents_do_not_see_each_other():
    mask = _mask([[0, 1, 0, 1]], [[1, 1, 2, 2]])
    triangle = np.tril(np.ones((2, 2), bool))
    np.testing.assert_array_equal(mask[0], np.kron(np.eye(2), triangle) > 0)


def test_padding_sees_nothing_and_is_not_seen():
    mask = _mask([[0, 0, 1]], [[0, 1, 1]])
    assert not mask[0, 0].any()
    assert not mask[0, :, 0].any()


def test_a_query_over_a_cache_sees_filled_slots_in_any_order():
    # Slots hold positions 2, 0, 1 and one empty slot; the query stands at 1.
    mask = _mask([[1]], [[1]], [[2, 0, 1, 0]], [[1, 1, 1, 0]])
    assert mask[0, 0].tolist() == [False, True, True, False]


@hypothesis.given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=6
    )
)
@hypothesis.settings(max_examples=30)
def test_the_rule_holds_pair_by_pair(tokens):
    positions = np.array([[position for position, _ in tokens]], "int32")
    segment_ids = np.array([[segment for _, segment in tokens]], "int32")
    mask = _mask(positions, segment_ids)
    for query, (query_position, query_segment) in enumerate(tokens):
        for key, (key_position, key_segment) in enumerate(tokens):
            assert mask[0, query, key] == (
                query_segment == key_segment != 0
                and key_position <= query_position
            )


def test_segments_see_themselves_whatever_the_order():
    mask = segment_mask(ops.array([[1, 2, 0]]), ops.array([[2, 1, 0, 1]]))
    np.testing.assert_array_equal(
        mask, [[[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]]
    )
