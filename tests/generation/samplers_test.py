import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from kerasgpt.generation.samplers import (
    IMPOSSIBLE,
    SamplerSettings,
    TokenCounts,
    choose_next,
    penalise,
    threefry,
    uniform_numbers,
)

# Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625 of the tokens 3, 0, 4, 1, 2.
PROBABILITIES = np.array([0.25, 0.0625, 0.0625, 0.5, 0.125])
LOGITS = np.log(PROBABILITIES).astype("float32")
NUM_DRAWS = 4000


def _draw(logits=LOGITS, rows=NUM_DRAWS, position=0, **settings):
    """Returns one draw of the same logits for each of many seeds."""
    settings = SamplerSettings.constant(
        rows, **{"temperature": 1.0, **settings}
    )
    settings = settings._replace(
        seed=settings.seed + ops.arange(rows, dtype="int32")
    )
    logits = ops.array(np.tile(logits, (rows, 1)), "float32")
    chosen = choose_next(logits, settings, ops.full((rows,), position, "int32"))
    return ops.convert_to_numpy(chosen)


# Choosing.


def test_greedy_is_the_likeliest_token():
    logits = np.random.default_rng(0).normal(size=(50, 7)).astype("float32")
    chosen = choose_next(
        ops.array(logits),
        SamplerSettings.constant(50),
        ops.zeros((50,), "int32"),
    )
    assert chosen.dtype == "int32"
    np.testing.assert_array_equal(chosen, logits.argmax(-1))


@pytest.mark.parametrize(
    "settings", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}]
)
def test_the_strictest_settings_are_greedy(settings):
    assert set(_draw(**settings)) == {3}


def test_a_temperature_near_zero_is_greedy():
    assert set(_draw(temperature=1e-4)) == {3}


@pytest.mark.parametrize(
    ("settings", "support"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 2}, {3, 0}),
        ({"top_k": 3}, {3, 0, 4}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        # The smallest set whose probabilities reach p.
        ({"top_p": 0.4}, {3}),
        ({"top_p": 0.7}, {3, 0}),
        ({"top_p": 0.8}, {3, 0, 4}),
        ({"top_p": 1.0}, {0, 1, 2, 3, 4}),
        # At least this times as likely as the likeliest, which has 0.5.
        ({"min_p": 0.6}, {3}),
        ({"min_p": 0.4}, {3, 0}),
        ({"min_p": 0.2}, {3, 0, 4}),
        ({"min_p": 0.1}, {0, 1, 2, 3, 4}),
        # Temperature is judged first: at 2 the shares are 0.33 and 0.24.
        ({"temperature": 2.0, "min_p": 0.6}, {3, 0}),
        ({"temperature": 0.5, "min_p": 0.4}, {3}),
        ({"top_k": 3, "top_p": 0.7}, {3, 0}),
        ({"top_k": 1, "min_p": 0.1}, {3}),
    ],
)
def test_exactly_the_right_tokens_are_drawn(settings, support):
    assert set(_draw(**settings)) == support


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(temperature):
    expected = PROBABILITIES ** (1 / temperature)
    expected /= expected.sum()
    counts = np.bincount(_draw(temperature=temperature), minlength=5)
    # Chi-square with 4 degrees of freedom: 18.5 is passed once in a thousand.
    deviation = (counts - NUM_DRAWS * expected) ** 2 / (NUM_DRAWS * expected)
    assert deviation.sum() < 18.5


def test_frequencies_of_what_is_kept_are_normalised():
    counts = np.bincount(_draw(top_k=2), minlength=5) / NUM_DRAWS
    assert counts[3] == pytest.approx(2 / 3, abs=0.03)
    assert counts[0] == pytest.approx(1 / 3, abs=0.03)


def test_an_impossible_token_is_never_drawn():
    logits = LOGITS.copy()
    logits[3] = IMPOSSIBLE
    assert 3 not in _draw(logits)
    assert set(_draw(logits, temperature=0.0)) == {0}
    assert 3 not in _draw(logits, temperature=100.0)


# Penalties.


def _penalised(logits, *, in_prompt, generated, **settings):
    """Returns the logits of one row after penalties."""
    counts = TokenCounts(
        is_in_prompt=ops.array([in_prompt], "bool"),
        generated=ops.array([generated], "int32"),
    )
    logits = ops.array([logits], "float32")
    settings = SamplerSettings.constant(1, **settings)
    return ops.convert_to_numpy(penalise(logits, settings, counts))[0]


# In the prompt, generated once, both, generated three times, in neither.
TEXT = {"in_prompt": [1, 0, 1, 0, 0], "generated": [0, 1, 1, 3, 0]}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [3.0, -1.0, 4.0, -2.0, 5.0]),
        # Positive logits are divided, negative ones multiplied.
        ({"repetition_penalty": 2.0}, [1.5, -2.0, 2.0, -4.0, 5.0]),
        ({"repetition_penalty": 0.5}, [6.0, -0.5, 8.0, -1.0, 5.0]),
        # The prompt is not what was generated.
        ({"frequency_penalty": 0.5}, [3.0, -1.5, 3.5, -3.5, 5.0]),
        ({"frequency_penalty": -1.0}, [3.0, 0.0, 5.0, 1.0, 5.0]),
        ({"presence_penalty": 0.5}, [3.0, -1.5, 3.5, -2.5, 5.0]),
        # The factor comes first, then what is taken off.
        (
            {
                "repetition_penalty": 2.0,
                "frequency_penalty": 0.25,
                "presence_penalty": 1.0,
            },
            [1.5, -3.25, 0.75, -5.75, 5.0],
        ),
    ],
)
def test_penalties_by_hand(settings, expected):
    logits = [3.0, -1.0, 4.0, -2.0, 5.0]
    penalised = _penalised(logits, **TEXT, **settings)
    assert penalised.tolist() == expected


def test_a_row_has_penalties_of_its_own():
    settings = SamplerSettings.constant(3)._replace(
        repetition_penalty=ops.array([2.0, 1.0, 1.0]),
        frequency_penalty=ops.array([0.0, 1.0, 0.0]),
        presence_penalty=ops.array([0.0, 0.0, 1.0]),
    )
    counts = TokenCounts(
        is_in_prompt=ops.zeros((3, 1), "bool"),
        generated=ops.full((3, 1), 2, "int32"),
    )
    penalised = penalise(ops.full((3, 1), 5.0), settings, counts)
    assert ops.convert_to_numpy(penalised).ravel().tolist() == [2.5, 3.0, 4.0]


def test_tokens_are_counted_in_the_rows_that_are_told():
    counts = TokenCounts(
        is_in_prompt=ops.array([[1, 0, 0]] * 3, "bool"),
        generated=ops.zeros((3, 3), "int32"),
    )
    counts = counts.add(ops.array([1, 1, 0]), ops.array([1, 0, 1], "bool"))
    counts = counts.add(ops.array([1, 2, 2]), ops.array([1, 0, 1], "bool"))
    generated = ops.convert_to_numpy(counts.generated)
    assert generated.tolist() == [[0, 2, 0], [0, 0, 0], [1, 0, 1]]
    assert np.array(counts.is_in_prompt).tolist() == [[True, False, False]] * 3


# Independence.


def _mixed_settings():
    return SamplerSettings(
        temperature=ops.array([0.0, 1.0, 0.7, 2.0]),
        top_k=ops.array([0, 2, 0, 0], "int32"),
        top_p=ops.array([1.0, 1.0, 0.9, 1.0]),
        min_p=ops.array([0.0, 0.0, 0.0, 0.2]),
        repetition_penalty=ops.array([1.0, 1.5, 1.0, 1.2]),
        frequency_penalty=ops.array([0.0, 0.5, -0.5, 0.0]),
        presence_penalty=ops.array([0.0, -1.0, 0.0, 1.0]),
        seed=ops.array([5, 6, 7, 8], "int32"),
    )


def _choose(logits, in_prompt, generated, position):
    settings = _mixed_settings()
    counts = TokenCounts(in_prompt, generated)
    return choose_next(penalise(logits, settings, counts), settings, position)


def _row_inputs():
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(4, 9)).astype("float32"),
        rng.integers(0, 2, (4, 9)).astype(bool),
        rng.integers(0, 3, (4, 9)).astype("int32"),
    )


def test_a_row_does_not_depend_on_its_neighbours():
    logits, in_prompt, generated = map(ops.array, _row_inputs())
    counts = TokenCounts(in_prompt, generated)
    settings = _mixed_settings()
    for step in range(20):
        # Rows stand at positions of their own.
        position = ops.array([step, 3 * step, 7, 100 - step], "int32")
        together = _choose(logits, in_prompt, generated, position)
        for row in range(4):
            own = slice(row, row + 1)
            alone = SamplerSettings(*(field[own] for field in settings))
            penalised = penalise(
                logits[own], alone, TokenCounts(*(one[own] for one in counts))
            )
            chosen = choose_next(penalised, alone, position[own])
            assert int(chosen[0]) == int(together[row])


def test_a_seed_and_a_position_decide():
    np.testing.assert_array_equal(_draw(), _draw())
    assert (_draw() != _draw(position=1)).mean() > 0.3
    # Row 7 of the seeds from 0 has the seed of row 0 of those from 7.
    np.testing.assert_array_equal(_draw(seed=7)[:-7], _draw()[7:])


def test_a_row_draws_at_its_own_position():
    settings = SamplerSettings.constant(50, temperature=1.0, seed=3)
    chosen = choose_next(
        ops.array(np.tile(LOGITS, (50, 1))),
        settings,
        ops.arange(50, dtype="int32"),
    )
    expected = [
        int(_draw(rows=1, position=place, seed=3)[0]) for place in range(50)
    ]
    assert ops.convert_to_numpy(chosen).tolist() == expected
    assert len(set(expected)) > 2


def test_compiled_equals_plain():
    inputs = [tf.constant(one) for one in _row_inputs()]
    compiled = tf.function(_choose, jit_compile=True)
    for step in range(20):
        position = tf.range(4) + step
        np.testing.assert_array_equal(
            compiled(*inputs, position), _choose(*inputs, position)
        )


# Settings.


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": -0.1},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": -1.0},
        {"frequency_penalty": -2.1},
        {"frequency_penalty": 2.1},
        {"presence_penalty": -2.1},
        {"presence_penalty": float("nan")},
    ],
)
def test_a_setting_out_of_range_is_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        SamplerSettings.constant(1, **settings)


def test_settings_are_one_value_a_row():
    settings = SamplerSettings.constant(
        3, temperature=0.5, top_k=4, presence_penalty=-2.0, seed=7
    )
    assert settings.temperature.numpy().tolist() == [0.5] * 3
    assert settings.top_k.numpy().tolist() == [4] * 3
    assert settings.presence_penalty.numpy().tolist() == [-2.0] * 3
    assert settings.seed.numpy().tolist() == [7] * 3
    assert settings.top_p.dtype == "float32"


# Random numbers.


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        # Known answers of Random123 (DEShawResearch/random123,
        # tests/kat_vectors, lines "threefry2x32 20").
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        (
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0x1CB996FC, 0xBB002BE7),
        ),
        (
            (0x13198A2E, 0x03707344),
            (0x243F6A88, 0x85A308D3),
            (0xC4923A9C, 0x483DF7A0),
        ),
    ],
)
def test_threefry_gives_the_known_answers(key, counter, expected):
    words = threefry(
        *(
            ops.convert_to_tensor(np.array([value], "uint32"))
            for value in (*key, *counter)
        )
    )
    actual = tuple(int(ops.convert_to_numpy(word)[0]) for word in words)
    assert actual == expected


@hypothesis.given(
    seed=st.integers(-(2**31), 2**31 - 1), position=st.integers(0, 2**31 - 1)
)
@hypothesis.settings(max_examples=30)
def test_uniform_numbers_are_from_zero_to_below_one(seed, position):
    number = uniform_numbers(
        ops.array([seed], "int32"), ops.array([position], "int32")
    )
    assert 0.0 <= float(number[0]) < 1.0


def test_uniform_numbers_are_uniform_over_seeds_and_positions():
    count = 20_000
    zeros, numbers = ops.zeros(count, "int32"), ops.arange(count, dtype="int32")
    for drawn in (
        uniform_numbers(numbers, zeros),
        uniform_numbers(zeros, numbers),
    ):
        drawn = ops.convert_to_numpy(drawn)
        # The mean of 20,000 has a standard deviation of 0.002.
        assert drawn.mean() == pytest.approx(0.5, abs=0.008)
        counts, _ = np.histogram(drawn, bins=20, range=(0, 1))
        # Chi-square with 19 degrees of freedom, once in a thousand: 43.8.
        assert ((counts - count / 20) ** 2 / (count / 20)).sum() < 43.8
        neighbours = np.corrcoef(drawn[1:], drawn[:-1])[0, 1]
        assert abs(neighbours) < 0.03
