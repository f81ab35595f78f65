"""Owns how often each source is learned from. Not: reading, nor shuffling."""

import dataclasses
import functools

from kerasgpt.config import Config, InputError, setting


@dataclasses.dataclass(frozen=True)
class MixtureConfig(Config):
    """Weights of sources in the training split."""

    weights: str = setting(
        "",
        "how often a source's documents are learned from, such as "
        "wiki.jsonl=2,forum=0.5; an input as it was given, or the end of its "
        "path; others once",
    )

    def __post_init__(self):
        super().__post_init__()
        parse_weights(self.weights)


@functools.lru_cache(maxsize=8)
def parse_weights(text):
    """Returns ((source, weight), …).

    Raises:
        InputError: for a weight that is no number of 0 to 1,000.

    Example:
        >>> parse_weights("wiki=2, forum=0.5")
        (('wiki', 2.0), ('forum', 0.5))
    """
    weights = []
    for part in filter(str.strip, text.split(",")):
        name, _, number = part.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = -1.0
        if not name.strip() or not 0 <= weight <= 1000:
            raise InputError(
                f"weights={text}: {part.strip()!r} must be SOURCE=NUMBER, such "
                f"as wiki=2."
            )
        weights.append((name.strip(), weight))
    return tuple(weights)


def source_weight(source, config):
    """Returns the weight of an input; of several that fit it, the last's.

    Example:
        >>> config = MixtureConfig(weights="wiki=2,b/wiki=3")
        >>> [source_weight(source, config)
        ...  for source in ("a/wiki", "b/wiki", "a/mywiki")]
        [2.0, 3.0, 1.0]
    """
    result = 1.0
    for name, weight in parse_weights(config.weights):
        if source == name or source.endswith(f"/{name}"):
            result = weight
    return result


def num_copies(place, weight):
    """Returns how often a document is written to the training split.

    The whole part of the weight for all, once more for a share of them that
    is chosen by the hash: on average exactly the weight, and stable.

    Args:
        place: float in [0, 1), from a hash of the text.
        weight: float.

    Example:
        >>> [num_copies(place, 2.5) for place in (0.1, 0.4, 0.6)]
        [3, 3, 2]
        >>> [num_copies(place, 0.25) for place in (0.1, 0.4)]
        [1, 0]
    """
    whole = int(weight)
    return whole + (place < weight - whole)


def check_weights(sources, config):
    """Refuses weights of sources that there are not.

    Raises:
        InputError: naming the sources there are.
    """
    for name, _ in parse_weights(config.weights):
        if not any(s == name or s.endswith(f"/{name}") for s in sources):
            raise InputError(
                f"mixture.weights={config.weights}: there is no input {name}; "
                f"inputs are {', '.join(sources)}."
            )
