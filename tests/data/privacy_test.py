"""Owns the proof that personal data is masked, and nothing else."""

import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasgpt.data.privacy import (
    MASKS,
    PrivacyConfig,
    is_card_number,
    is_identity_number,
    mask,
)

CONFIG = PrivacyConfig()


def identity_number(birthday="19900307", region="110105", serial="123"):
    digits = f"{region}{birthday}{serial}"
    weights = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2]
    total = sum(w * int(d) for w, d in zip(weights, digits, strict=True))
    return digits + "10X98765432"[total % 11]


def card_number(start, length, seed=0):
    """Returns a number with the right last digit, tried out one by one."""
    digits = random.Random(seed).choices(string.digits, k=length)
    body = (start + "".join(digits))[: length - 1]
    for last in string.digits:
        doubled = [
            int(d) * (2 if place % 2 else 1)
            for place, d in enumerate(reversed(body + last))
        ]
        if sum(sum(map(int, str(value))) for value in doubled) % 10 == 0:
            return body + last
    raise AssertionError


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Mail bob.smith+x@mail.example.co.uk!", "Mail [EMAIL]!"),
        ("邮箱：wang_li@163.com，谢谢", "邮箱：[EMAIL]，谢谢"),
        ("a@b.cn,c@d.org", "[EMAIL],[EMAIL]"),
        ("电话13800138000。", "电话[PHONE]。"),
        ("+86 138 0013 8000", "[PHONE]"),
        ("手机：139-1234-5678", "手机：[PHONE]"),
        ("010-62345678 或 (021)62345678", "[PHONE] 或 [PHONE]"),
        ("（0755）8234 5678", "[PHONE]"),
        ("call (555) 234-5678 or 555.234.5678", "call [PHONE] or [PHONE]"),
        ("1-800-555-2199", "[PHONE]"),
        ("Berlin +49 30 901820", "Berlin [PHONE]"),
        ("London +44 (20) 7946 0958.", "London [PHONE]."),
        ("from 8.8.8.8, port 53", "from [IP], port 53"),
        ("2001:4860:4860:0:0:0:0:8888", "[IP]"),
        (f"身份证{identity_number()}，", "身份证[ID]，"),
        (identity_number(serial="001").lower(), "[ID]"),
        ("4111 1111 1111 1111", "[CARD]"),
        ("5500-0000-0000-0004", "[CARD]"),
        ("银行卡 " + card_number("622202", 19), "银行卡 [CARD]"),
        ("378282246310005", "[CARD]"),
    ],
)
def test_personal_data_is_masked(text, masked):
    assert mask(text, CONFIG)[0] == masked


@pytest.mark.parametrize(
    "text",
    [
        "v1.2.3.4 and 1.2.3.4.5 and 256.1.1.1",
        "127.0.0.1, 192.168.1.1, 10.0.0.7, ::1, fe80::1:2:3:4",
        "std::vector<std::pair<a::b::c, d>>",
        "12:34:56:78:9a:bc",
        "2024-05-06 12:30:45.678, 2010-2019, 1949—1976",
        "3.14159265358979323846 2718281828459045",
        "1,380,013,800 and 15000000000 and 13000000000",
        "ISBN 978-7-111-54742-6",
        "QQ 123456789，编号 20240506123456",
        "4212883012996 and 3600000000000",
        "4111 1111 1111 1112",
        "0000 0000 0000 0000",
        identity_number()[:-1]
        + str((int("0" + identity_number()[-1:].replace("X", "9")) + 1) % 9),
        "110105190002301238",
        "@user, name@host, a @ b.com",
        "1500 × 4000 = 6000000",
        "x" * 5000 + "@" + "1" * 5000,
    ],
)
def test_what_is_no_personal_data_stays(text):
    assert mask(text, CONFIG) == (text, {})


@pytest.mark.parametrize("rule", MASKS)
def test_each_rule_counts_what_it_finds_and_can_be_off(rule):
    text = (
        f"a@b.cn c@d.cn 8.8.8.8 {identity_number()} 4111111111111111 "
        f"13800138000"
    )
    text, counts = mask(text, CONFIG)
    assert counts == {
        "mask_emails": 2,
        "mask_ips": 1,
        "mask_ids": 1,
        "mask_cards": 1,
        "mask_phones": 1,
    }
    original = (
        f"a@b.cn c@d.cn 8.8.8.8 {identity_number()} 4111111111111111 "
        f"13800138000"
    )
    off = PrivacyConfig(**{rule: False})
    assert mask(original, off)[1] == {
        key: count for key, count in counts.items() if key != rule
    }


def test_check_digits_are_those_of_the_standards():
    # The examples of GB 11643-1999 and ISO/IEC 7812.
    assert is_identity_number("11010519491231002X")
    assert is_identity_number("11010519491231002x")
    assert not is_identity_number("110105194912310021")
    assert not is_identity_number("110105194913310026")
    assert is_card_number("4111111111111111")
    assert not is_card_number("4111111111111112")
    assert not is_card_number("7992739871300000")


@pytest.mark.parametrize(
    ("start", "length"),
    [("4", 16), ("51", 16), ("34", 15), ("62", 16), ("62", 17), ("6011", 16)],
)
def test_card_numbers_of_every_network_are_known(start, length):
    for seed in range(20):
        number = card_number(start, length, seed)
        assert is_card_number(number)
        wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
        assert not is_card_number(wrong)


def test_few_random_numbers_are_taken_for_cards():
    generator = random.Random(0)
    taken = sum(
        is_card_number("".join(generator.choices(string.digits, k=16)))
        for _ in range(10_000)
    )
    assert taken < 300


TEXT = st.text(st.sampled_from("0123456789 -+.()@:aX你。[]") | st.characters())


@given(TEXT)
def test_masking_what_is_masked_changes_nothing(text):
    once, counts = mask(text, CONFIG)
    assert mask(once, CONFIG) == (once, {})
    assert sum(counts.values()) == sum(
        once.count(word) - text.count(word)
        for word in ("[EMAIL]", "[PHONE]", "[IP]", "[ID]", "[CARD]")
    )
