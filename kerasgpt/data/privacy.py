"""Owns masking of personal data. Not: the order of cleaning (cleaning.py)."""

import dataclasses
import datetime
import ipaddress
import re

from kerasgpt.config import Config, setting

# What stands in place of what was found. A fixed word, so that a model learns
# "here was a number" and not a made-up one.
EMAIL, PHONE, IP, ID, CARD = "[EMAIL]", "[PHONE]", "[IP]", "[ID]", "[CARD]"


@dataclasses.dataclass(frozen=True)
class PrivacyConfig(Config):
    """Which personal data are masked, documents and conversations alike."""

    mask_emails: bool = setting(True, "e-mail addresses -> [EMAIL]")
    mask_ips: bool = setting(True, "public IP addresses -> [IP]")
    mask_ids: bool = setting(
        True, "Chinese identity numbers with a right check digit -> [ID]"
    )
    mask_cards: bool = setting(
        True, "bank card numbers with a right check digit -> [CARD]"
    )
    mask_phones: bool = setting(
        True,
        "Chinese mobile and landline numbers, North American numbers with "
        "separators, +country numbers -> [PHONE]",
    )


# The local part and labels are as long as RFC 5321 allows; the bounds keep a
# long line of letters from being scanned again for every letter of it.
EMAIL_ADDRESS = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}"
    r"[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
# Neither part of a longer number nor a version: "v1.2.3.4", "1.2.3.4.5".
IPV4_ADDRESS = re.compile(
    r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)", re.ASCII
)
IPV6_ADDRESS = re.compile(
    r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){4,7}[0-9A-Fa-f]{1,4}(?![\w:])", re.ASCII
)
IDENTITY_NUMBER = re.compile(
    r"(?<![0-9A-Za-z])[1-9]\d{5}(?:19|20)\d{9}[\dXx](?![0-9A-Za-z])", re.ASCII
)
# Written in one, or in groups with one kind of separator.
CARD_NUMBER = re.compile(
    r"(?<![\d.-])(?:[3-6]\d{14,18}|[3-6]\d{3}(?:(?: \d{4}){3}|(?:-\d{4}){3})"
    r"(?:[ -]?\d{3})?)(?![\d-]|\.\d)",
    re.ASCII,
)
PHONE_NUMBER = re.compile(
    r"(?<![\w.+/-])(?:"
    # Chinese mobile: 13800138000, 138-0013-8000, +86 138 0013 8000; not a
    # round number such as 15000000000.
    r"(?:(?:\+|00)86[ -]?)?(?!\d{5}0{6})"
    r"1[3-9]\d(?:\d{8}|([ -])\d{4}\1\d{4})"
    # Chinese landline: 010-62345678, (021) 6234 5678.
    r"|(?:\(0\d{2,3}\) ?|（0\d{2,3}）|0\d{2,3}[ -])[2-8]\d{2,3}[ -]?\d{4}"
    # North America: (555) 234-5678, 555-234-5678, 1-555-234-5678.
    r"|(?:(?:\+?1)[ .-]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d([ .-]))"
    r"[2-9]\d\d[ .-]\d{4}"
    # International: + and 9 to 15 digits in groups (E.164).
    r"|(?=\+(?:[ .()-]*\d){9,15})\+[1-9]\d{0,2}(?:[ .-]?\(?\d{1,4}\)?){2,6}\d"
    r")(?![\w]|[.-]\d)",
    re.ASCII,
)
# Where a number or address may be: most texts have none, and need no more
# than this. A number has this many digits at least.
NUMBER = re.compile(r"\d[\d .()（）-]{5,}[\dXx]", re.ASCII)
FEWEST_DIGITS = 9


def mask(text, config):
    """Returns (text with personal data masked, {rule: number masked}).

    Stands for Presidio, which also finds names and addresses by language
    models, of which many are wrong; here only what a pattern and a check
    digit can prove.

    Args:
        text: str.
        config: PrivacyConfig.

    Returns:
        str, and dict of the rules that found something.

    Example:
        >>> mask("Ring 13800138000 or ask a@example.com", PrivacyConfig())
        ('Ring [PHONE] or ask [EMAIL]',
         {'mask_emails': 1, 'mask_phones': 1})
    """
    counts = {}
    numbers = NUMBER.findall(text)
    may_hold = {
        "mask_emails": "@" in text,
        "mask_ips": text.count(":") > 3
        or any(number.count(".") > 2 for number in numbers),
    }
    has_numbers = any(
        sum(map(str.isdigit, number)) >= FEWEST_DIGITS for number in numbers
    )
    for rule, function in MASKS.items():
        if may_hold.get(rule, has_numbers) and getattr(config, rule):
            text, count = function(text)
            if count:
                counts[rule] = count
    return text, counts


def mask_emails(text):
    """Returns (text, count) with e-mail addresses masked.

    Example:
        >>> mask_emails("来信请寄 wang@163.com。")
        ('来信请寄 [EMAIL]。', 1)
    """
    return EMAIL_ADDRESS.subn(EMAIL, text)


def mask_ips(text):
    """Returns (text, count) with public IPv4 and IPv6 addresses masked.

    Addresses of private, local and documentation networks name nobody.

    Example:
        >>> mask_ips("from 8.8.8.8 to 192.168.0.1, version 10.15.7")
        ('from [IP] to 192.168.0.1, version 10.15.7', 1)
    """
    count = 0
    if text.count(".") > 2:
        text, count = _mask_where(IPV4_ADDRESS, _is_public, IP, text)
    if text.count(":") > 3:
        text, more = _mask_where(IPV6_ADDRESS, _is_public, IP, text)
        count += more
    return text, count


def mask_ids(text):
    """Returns (text, count) with Chinese identity numbers masked.

    Eighteen places: region, date of birth, serial number, check digit.

    Example:
        >>> mask_ids("身份证 11010519491231002X，订单 110105194912310021")
        ('身份证 [ID]，订单 110105194912310021', 1)

    Reference: GB 11643-1999; check digit ISO 7064:1983, MOD 11-2.
    """
    return _mask_where(IDENTITY_NUMBER, is_identity_number, ID, text)


def mask_cards(text):
    """Returns (text, count) with bank card numbers masked.

    Example:
        >>> mask_cards("4111 1111 1111 1111, 4111 1111 1111 1112")
        ('[CARD], 4111 1111 1111 1112', 1)
    """
    return _mask_where(CARD_NUMBER, is_card_number, CARD, text)


def mask_phones(text):
    """Returns (text, count) with telephone numbers masked.

    Example:
        >>> mask_phones("(555) 234-5678, 010-62345678, 2024-05-06, 12345678")
        ('[PHONE], [PHONE], 2024-05-06, 12345678', 2)
    """
    return PHONE_NUMBER.subn(PHONE, text)


def is_identity_number(text):
    """Returns whether 18 places are a Chinese identity number.

    Example:
        >>> is_identity_number("11010519491231002X")
        True
    """
    try:
        datetime.date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    total = sum(
        int(digit) * pow(2, 17 - place, 11)
        for place, digit in enumerate(text[:17])
    )
    return "10X98765432"[total % 11] == text[17].upper()


def is_card_number(text):
    """Returns whether digits are a bank card's: network, length, check digit.

    Networks: Visa 4, Mastercard 51-55, JCB 35, Discover 6011 and 65 (16
    places), American Express 34 and 37 (15), UnionPay 62 (16 to 19). One
    random number in ten has a right check digit, so the network counts too.

    Example:
        >>> is_card_number("4111 1111 1111 1111")
        True

    Reference: ISO/IEC 7812-1, annex B (the Luhn formula).
    """
    digits = re.sub(r"[ -]", "", text)
    lengths = next(
        (
            lengths
            for start, lengths in (
                ("4", (16,)),
                ("5[1-5]", (16,)),
                ("3[47]", (15,)),
                ("62", (16, 17, 18, 19)),
                ("35|6011|65", (16,)),
            )
            if re.match(start, digits)
        ),
        (),
    )
    if len(digits) not in lengths:
        return False
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    # A run of one digit has a right check digit and is nobody's card.
    return total % 10 == 0 and len(set(digits)) > 1


def _mask_where(pattern, is_personal, word, text):
    count = 0

    def replace(match):
        nonlocal count
        if not is_personal(match[0]):
            return match[0]
        count += 1
        return word

    return pattern.sub(replace, text), count


def _is_public(address):
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


# In their order: an identity number is no card, a card no telephone.
MASKS = {
    "mask_emails": mask_emails,
    "mask_ips": mask_ips,
    "mask_ids": mask_ids,
    "mask_cards": mask_cards,
    "mask_phones": mask_phones,
}
