"""Owns frozen configurations: JSON, dotted overrides, help. Not: any values."""

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
import unicodedata


class InputError(Exception):
    r"""A mistake of the user's, told in one line: what, where, rule and cure.

    Scripts and the command line print it without a traceback and exit with
    status 2. Names out of foreign files may hold anything: what cannot be
    printed, line breaks and the codes that steer a terminal, is escaped.

    Example:
        >>> print(InputError("node a\nb: \x1b[2J 你好"))
        node a\nb: \x1b[2J 你好
    """

    def __init__(self, message):
        super().__init__(
            "".join(
                one
                if one.isprintable() or unicodedata.category(one) == "Zs"
                else one.encode("unicode_escape").decode()
                for one in message
            )
        )


def setting(
    default, description, *, unit="", choices=(), minimum=None, maximum=None
):
    """Declares one field of a `Config`.

    Args:
        default: the default value; a `Config` instance nests a section.
        description: str. What the field means, for `--help`.
        unit: str. Unit of the quantity, where it has one.
        choices: tuple. The values allowed; empty = any of the type.
        minimum, maximum: numbers. The range allowed, ends included.

    Returns:
        A `dataclasses` field.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "description": description,
            "unit": unit,
            "choices": tuple(choices),
            "minimum": minimum,
            "maximum": maximum,
        },
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """A frozen dataclass that reads and writes JSON and dotted overrides.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Train(Config):
        ...     steps: int = setting(10, "optimizer updates", unit="steps")
        >>> @dataclasses.dataclass(frozen=True)
        ... class Run(Config):
        ...     train: Train = setting(Train(), "the training stage")
        >>> Run().override(["train.steps=20"])
        Run(train=Train(steps=20))
        >>> Run().override(["train.step=20"])
        Traceback (most recent call last):
          ...
        kerasgpt.config.InputError: train.step=20: there is no setting \
train.step; did you mean train.steps?
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{field.name}={value}: must be finite.")
            low = field.metadata.get("minimum")
            high = field.metadata.get("maximum")
            if low is not None and value is not None and value < low:
                raise InputError(
                    f"{field.name}={value}: must be at least {low}."
                )
            if high is not None and value is not None and value > high:
                raise InputError(
                    f"{field.name}={value}: must be at most {high}."
                )

    def to_dict(self):
        """Returns the configuration as plain, JSON-serialisable data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values):
        """Rebuilds a configuration from `to_dict`; unknown keys are refused.

        Raises:
            InputError: for an unknown key or a value of the wrong type.
        """
        return cls()._updated(values, prefix="", source="config.json")

    def override(self, arguments):
        """Returns a copy with `section.key=value` arguments applied in order.

        Args:
            arguments: list of str, as typed on the command line.

        Raises:
            InputError: for an argument without "=", an unknown key, or a value
                that does not fit the type or the choices.
        """
        config = self
        for argument in arguments:
            key, separator, text = argument.partition("=")
            if not separator:
                raise InputError(
                    f"{argument}: settings are written key=value, for example "
                    f"train.steps=200; --help lists all keys."
                )
            nested = text
            for name in reversed(key.split(".")):
                nested = {name: nested}
            config = config._updated(nested, prefix="", source=argument)
        return config

    def _updated(self, values, *, prefix, source):
        hints = typing.get_type_hints(type(self))
        changes = {}
        for name, value in values.items():
            path = f"{prefix}{name}"
            if name not in hints:
                known = [key for key, *_ in self.describe(prefix)]
                near = difflib.get_close_matches(path, known, 1, 0.5)
                hint = (
                    f"; did you mean {near[0]}?"
                    if near
                    else ("; --help lists all keys.")
                )
                raise InputError(f"{source}: there is no setting {path}{hint}")
            current = getattr(self, name)
            if isinstance(current, Config):
                if not isinstance(value, dict):
                    raise InputError(
                        f"{source}: {path} is a section; set one of its keys, "
                        f"for example {current.describe(path + '.')[0][0]}=…"
                    )
                changes[name] = current._updated(
                    value, prefix=f"{path}.", source=source
                )
            else:
                if isinstance(value, dict):
                    raise InputError(
                        f"{source}: {path} is a single value, not a section."
                    )
                changes[name] = _convert(
                    value, hints[name], self._field(name), path, source
                )
        try:
            return dataclasses.replace(self, **changes)
        except InputError as error:
            raise InputError(f"{prefix}{error}") from error

    def _field(self, name):
        return next(f for f in dataclasses.fields(self) if f.name == name)

    def describe(self, prefix=""):
        """Returns rows of (key, type, unit, value, description) for help."""
        hints = typing.get_type_hints(type(self))
        rows = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            path = f"{prefix}{field.name}"
            if isinstance(value, Config):
                rows.extend(value.describe(f"{path}."))
                continue
            kind = _type_name(hints[field.name])
            if field.metadata.get("choices"):
                kind = "|".join(field.metadata["choices"])
            rows.append(
                (
                    path,
                    kind,
                    field.metadata.get("unit", ""),
                    value,
                    field.metadata.get("description", ""),
                )
            )
        return rows

    def fingerprint(self):
        """Returns 12 hex digits that change when any value changes."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _type_name(hint):
    if isinstance(hint, types.UnionType):
        names = [_type_name(part) for part in typing.get_args(hint)]
        return " or ".join(names)
    return "none" if hint is type(None) else hint.__name__


def _convert(value, hint, field, path, source):
    accepted = (
        typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    )
    choices = field.metadata.get("choices")
    # None first: the word "none" is a str too.
    for kind in sorted(accepted, key=lambda kind: kind is not type(None)):
        converted, fits = _convert_to(value, kind)
        if fits and (not choices or converted in choices):
            return converted
    rule = "one of " + ", ".join(choices) if choices else _type_name(hint)
    raise InputError(f"{source}: {path} must be {rule}; received {value!r}.")


def _convert_to(value, kind):
    """Returns (converted value, whether `value` is one of `kind`)."""
    if kind is type(None):
        return None, value is None or value in ("none", "None", "null")
    if kind is bool:
        words = {"true": True, "false": False}
        if isinstance(value, str):
            return words.get(value.lower()), value.lower() in words
        return value, isinstance(value, bool)
    if kind is str:
        return value, isinstance(value, str)
    if isinstance(value, bool):
        return None, False
    if isinstance(value, str):
        try:
            value = float(value) if kind is float else int(value)
        except ValueError:
            return None, False
    if kind is float and isinstance(value, (int, float)):
        return float(value), value == value
    return value, isinstance(value, kind)
