"""Owns the facts of the embedded shop. Not: the texts told about them."""

import dataclasses
import hashlib
import random

LANGUAGES = ("en", "zh")
ATTRIBUTES = ("kind", "category", "price", "colour", "stock", "warranty")

# English, Chinese.
CATEGORIES = {
    "kitchen": "厨房用品",
    "home": "家居用品",
    "sports": "运动用品",
    "clothing": "服装",
    "toys": "玩具",
    "office": "办公用品",
}
COLOURS = {
    "red": "红色",
    "blue": "蓝色",
    "green": "绿色",
    "black": "黑色",
    "white": "白色",
    "yellow": "黄色",
    "grey": "灰色",
    "purple": "紫色",
}
PEOPLE = {
    "Anna": "安娜",
    "Ben": "本杰明",
    "Carla": "卡拉",
    "David": "大卫",
    "Emma": "艾玛",
    "Felix": "菲利克斯",
    "Grace": "格蕾丝",
    "Henry": "亨利",
    "Iris": "艾丽丝",
    "Jack": "杰克",
    "Kate": "凯特",
    "Leo": "利奥",
    "Maria": "玛丽亚",
    "Nina": "妮娜",
    "Oscar": "奥斯卡",
    "Paul": "保罗",
}
WARRANTY_YEARS = (1, 2, 3, 5, 10)
PRICES_YUAN = tuple(range(10, 100, 5))
STOCKS = tuple(range(3, 21))


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a product is: its nouns in both languages and its category."""

    en: str
    en_plural: str
    zh: str
    measure_word: str
    category: str


KINDS = tuple(
    Kind(*row)
    for row in (
        ("kettle", "kettles", "水壶", "个", "kitchen"),
        ("pan", "pans", "平底锅", "口", "kitchen"),
        ("knife", "knives", "菜刀", "把", "kitchen"),
        ("toaster", "toasters", "烤面包机", "台", "kitchen"),
        ("lamp", "lamps", "台灯", "盏", "home"),
        ("chair", "chairs", "椅子", "把", "home"),
        ("rug", "rugs", "地毯", "块", "home"),
        ("clock", "clocks", "时钟", "个", "home"),
        ("ball", "balls", "皮球", "个", "sports"),
        ("tent", "tents", "帐篷", "顶", "sports"),
        ("racket", "rackets", "球拍", "支", "sports"),
        ("helmet", "helmets", "头盔", "个", "sports"),
        ("jacket", "jackets", "夹克", "件", "clothing"),
        ("shirt", "shirts", "衬衫", "件", "clothing"),
        ("hat", "hats", "帽子", "顶", "clothing"),
        ("scarf", "scarves", "围巾", "条", "clothing"),
        ("kite", "kites", "风筝", "只", "toys"),
        ("robot", "robots", "机器人", "个", "toys"),
        ("puzzle", "puzzles", "拼图", "盒", "toys"),
        ("doll", "dolls", "娃娃", "个", "toys"),
        ("pen", "pens", "钢笔", "支", "office"),
        ("notebook", "notebooks", "笔记本", "本", "office"),
        ("stapler", "staplers", "订书机", "台", "office"),
        ("folder", "folders", "文件夹", "个", "office"),
    )
)


@dataclasses.dataclass(frozen=True)
class Product:
    """One product and its ground truth; the name is the same in both languages.

    `price` is in yuan, `stock` in pieces, `warranty` in years.
    """

    name: str
    kind: Kind
    price: int
    colour: str
    stock: int
    warranty: int


@dataclasses.dataclass(frozen=True)
class Policy:
    """One rule of the shop and its ground truth in both languages."""

    key: str
    en: str
    zh: str


@dataclasses.dataclass(frozen=True)
class World:
    """A shop: products, policies, and names that are no product of it."""

    seed: int
    products: tuple
    policies: tuple
    unknown_names: tuple

    def is_held_out(self, *key, fraction=0.2):
        """Returns whether questions about `key` are kept for evaluation.

        A hash of the key and the seed decides, so the two sides of the split
        are disjoint by construction, in whatever order they are generated.

        Args:
            *key: what a question is about, for example ("Velora", "price").
            fraction: float. Share of the keys that is held out.
        """
        text = "\x1f".join(map(str, (self.seed, *key)))
        digest = hashlib.sha256(text.encode()).digest()
        return int.from_bytes(digest[:4], "big") < fraction * 2**32


def build_world(seed=0, num_products=100):
    """Returns the shop that `seed` describes.

    Args:
        seed: int. Another seed is another shop of the same difficulty.
        num_products: int.

    Raises:
        ValueError: if there are fewer than 1 or more than 2,000 products.

    Example:
        >>> world = build_world(seed=0, num_products=3)
        >>> len(world.products), len(set(world.unknown_names))
        (3, 400)
    """
    if not 1 <= num_products <= 2000:
        raise ValueError(
            f"num_products must be from 1 to 2000; received {num_products}."
        )
    rng = random.Random(f"world {seed}")
    names = _invent_names(rng, num_products + 400)
    products = tuple(
        Product(
            name=name,
            kind=rng.choice(KINDS),
            price=rng.choice(PRICES_YUAN),
            colour=rng.choice(list(COLOURS)),
            stock=rng.choice(STOCKS),
            warranty=rng.choice(WARRANTY_YEARS),
        )
        for name in names[:num_products]
    )
    return World(
        seed=seed,
        products=products,
        policies=_choose_policies(rng),
        unknown_names=tuple(names[num_products:]),
    )


def _invent_names(rng, count):
    names = []
    taken = set(PEOPLE)
    while len(names) < count:
        syllables = [
            rng.choice("bdfgklmnprstvz") + rng.choice("aeiou")
            for _ in range(rng.choice((2, 3)))
        ]
        name = "".join(syllables) + rng.choice(("", "", "n", "x", "l", "ra"))
        name = name.capitalize()
        if name not in taken:
            taken.add(name)
            names.append(name)
    return names


def _choose_policies(rng):
    opens, closes = rng.choice((7, 8, 9, 10)), rng.choice((18, 19, 20, 21))
    saturday = closes - 4
    returns = rng.choice((14, 30, 60))
    delivery = rng.choice((2, 3, 4, 5))
    fee = rng.choice((6, 8, 12))
    free = rng.choice((100, 150, 200))
    refund = rng.choice((3, 5, 7))
    return (
        Policy(
            "weekday_hours",
            f"From Monday to Friday the shop is open from {opens} to {closes}.",
            f"周一到周五的营业时间是 {opens} 点到 {closes} 点。",
        ),
        Policy(
            "saturday_hours",
            f"On Saturday the shop is open from {opens} to {saturday}.",
            f"周六的营业时间是 {opens} 点到 {saturday} 点。",
        ),
        Policy(
            "sunday_hours",
            "On Sunday the shop is closed and does not ship.",
            "周日不营业，也不发货。",
        ),
        Policy(
            "returns",
            f"You can return a product within {returns} days.",
            f"商品可以在 {returns} 天内退货。",
        ),
        Policy(
            "delivery_time",
            f"Delivery takes {delivery} days.",
            f"送货需要 {delivery} 天。",
        ),
        Policy(
            "delivery_fee",
            f"Delivery costs {fee} yuan.",
            f"运费是 {fee} 元。",
        ),
        Policy(
            "free_delivery",
            f"Delivery is free for orders over {free} yuan.",
            f"订单满 {free} 元免运费。",
        ),
        Policy(
            "refund",
            f"A refund arrives within {refund} days.",
            f"退款会在 {refund} 天内到账。",
        ),
    )
