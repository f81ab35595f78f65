"""Owns how customers word their questions. Not: what is asked (chats.py).

Each task has, for a language, (wordings seen in training, new ones that only
held-out questions use). {n} name, {m} pieces, {o} order or colour, {k} kind,
{p} price, {w} warranty; {e}, {r}, {d}, {t}, {s} the text at hand.
"""

OPENERS = {
    "en": (
        (
            "",
            "",
            "",
            "Hello, ",
            "Hi, ",
            "Hey, ",
            "Good evening, ",
            "Good afternoon, ",
            "Good day, ",
            "Morning! ",
            "May I ask, ",
            "One thing, ",
            "Please tell me: ",
            "Excuse me, ",
            "I have a question: ",
            "Sorry, ",
            "Quick question, ",
        ),
        ("", "Good morning, ", "One question: "),
    ),
    "zh": (
        (
            "",
            "",
            "",
            "你好，",
            "您好，",
            "嗨，",
            "晚上好，",
            "下午好，",
            "早，",
            "大家好，",
            "麻烦问一句，",
            "我想知道，",
            "请告诉我：",
            "打扰一下，",
            "我有个问题：",
            "不好意思，",
            "想问一下，",
        ),
        ("", "早上好，", "请问，"),
    ),
}
FACT = {
    "kind": {
        "en": (
            (
                "what is the {n}?",
                "what kind of product is the {n}?",
                "what type of thing is {n}?",
                "can you say what the {n} is?",
                "what kind of thing is {n}?",
                "which product is the {n}?",
            ),
            ("what sort of product is {n}?",),
        ),
        "zh": (
            (
                "{n} 是什么？",
                "{n} 是什么商品？",
                "{n} 是哪种东西？",
                "商品 {n} 是什么东西？",
                "{n} 是什么样的商品？",
                "{n} 是哪种产品？",
                "{n} 是哪种物品？",
                "{n} 是一种什么商品？",
            ),
            ("{n} 是哪种商品？",),
        ),
    },
    "category": {
        "en": (
            (
                "which category does the {n} belong to?",
                "in which section do I find the {n}?",
                "what is the category of {n}?",
                "under which category is the {n} listed?",
                "which section is the {n} in?",
                "what category does {n} have?",
            ),
            ("which category is {n} in?",),
        ),
        "zh": (
            (
                "{n} 属于哪一类？",
                "{n} 在哪个区？",
                "{n} 的类别是什么？",
                "商品 {n} 归入什么类别？",
                "{n} 属于什么类别？",
                "{n} 是哪一类的商品？",
            ),
            ("{n} 是什么类别的？",),
        ),
    },
    "price": {
        "en": (
            (
                "how much does the {n} cost?",
                "what is the price of the {n}?",
                "how much is {n}?",
                "what do I pay for the {n}?",
                "price of {n}?",
                "do you know the price of {n}?",
                "how many yuan does the {n} cost?",
            ),
            ("what does the {n} cost?", "can you give me the price of {n}?"),
        ),
        "zh": (
            (
                "{n} 多少钱？",
                "{n} 的价格是多少？",
                "买一件 {n} 要多少钱？",
                "商品 {n} 卖多少元？",
                "{n} 的售价？",
                "{n} 要多少元？",
                "{n} 卖什么价格？",
            ),
            ("{n} 的价格是多少元？", "{n} 卖多少钱？"),
        ),
    },
    "colour": {
        "en": (
            (
                "what colour is the {n}?",
                "which colour does the {n} have?",
                "what is the colour of {n}?",
                "in which colour does the {n} come?",
                "what is the {n}'s colour?",
                "can you tell me the colour of the {n}?",
            ),
            ("which colour is {n}?", "what colour does the {n} have?"),
        ),
        "zh": (
            (
                "{n} 是什么颜色？",
                "{n} 的颜色是什么？",
                "商品 {n} 有什么颜色？",
                "{n} 是哪种颜色的？",
                "{n} 的颜色呢？",
                "{n} 有哪种颜色？",
            ),
            ("{n} 的颜色是哪种？", "{n} 是什么颜色的？"),
        ),
    },
    "stock": {
        "en": (
            (
                "how many {n} are in stock?",
                "how many pieces of the {n} do you have?",
                "what is the stock of {n}?",
                "how many pieces of {n} are left?",
                "how many {n} do you still have?",
                "how many pieces of the {n} can I order?",
            ),
            ("how many pieces of the {n} are in stock?",),
        ),
        "zh": (
            (
                "{n} 有多少库存？",
                "{n} 还剩几件？",
                "商品 {n} 的库存是多少？",
                "{n} 还有多少件？",
                "{n} 的库存有几件？",
                "{n} 剩多少件？",
            ),
            ("{n} 的库存还剩多少？",),
        ),
    },
    "warranty": {
        "en": (
            (
                "how long is the warranty of the {n}?",
                "what warranty does the {n} have?",
                "for how many years is the {n} covered?",
                "how long does the warranty of {n} last?",
                "what is the warranty of {n}?",
                "how many years is the {n} guaranteed?",
            ),
            ("how many years of warranty does the {n} have?",),
        ),
        "zh": (
            (
                "{n} 保修多久？",
                "{n} 的保修期是多长？",
                "商品 {n} 保修几年？",
                "{n} 有多久的质保？",
                "{n} 的质保是几年？",
                "{n} 能保修多长时间？",
            ),
            ("{n} 的保修期是几年？",),
        ),
    },
}
FOLLOW_UP = {
    "kind": {
        "en": (
            (
                "And what is it?",
                "What kind of product is it?",
                "What type of thing is it?",
                "And which product is it?",
            ),
            ("And what kind of product is it?",),
        ),
        "zh": (
            (
                "它是什么？",
                "它是什么商品？",
                "那它是什么东西？",
                "那它是哪种东西？",
                "它是一种什么商品？",
            ),
            ("那它是什么商品？",),
        ),
    },
    "category": {
        "en": (
            (
                "Which category does it belong to?",
                "And in which section do I find it?",
                "And what is its category?",
                "Under which category is it listed?",
            ),
            ("And which category does it belong to?",),
        ),
        "zh": (
            (
                "它属于哪一类？",
                "那它在哪个区？",
                "那它的类别是什么？",
                "它归入什么类别？",
            ),
            ("那它属于哪一类？",),
        ),
    },
    "price": {
        "en": (
            (
                "How much does it cost?",
                "And what is its price?",
                "And how much is it?",
                "What do I pay for it?",
            ),
            ("And how much does it cost?",),
        ),
        "zh": (
            (
                "它多少钱？",
                "那它的价格是多少？",
                "那它卖多少元？",
                "它的售价是多少？",
                "那买一件要多少钱？",
            ),
            ("那它多少钱？",),
        ),
    },
    "colour": {
        "en": (
            (
                "What colour is it?",
                "And which colour does it have?",
                "And what is its colour?",
                "In which colour does it come?",
            ),
            ("And what colour is it?",),
        ),
        "zh": (
            (
                "它是什么颜色？",
                "那它的颜色是什么？",
                "那它有什么颜色？",
                "它是哪种颜色的？",
            ),
            ("那它是什么颜色？",),
        ),
    },
    "stock": {
        "en": (
            (
                "How many pieces of it are left?",
                "And what is its stock?",
                "And how many pieces of it do you have?",
                "How many of it are in stock?",
            ),
            ("And how many pieces of it are left?",),
        ),
        "zh": (
            (
                "它还剩几件？",
                "那它有多少库存？",
                "那它还有多少件？",
                "它的库存是多少？",
                "那它剩多少件？",
            ),
            ("那它还剩几件？",),
        ),
    },
    "warranty": {
        "en": (
            (
                "How long is its warranty?",
                "And what warranty does it have?",
                "And for how many years is it covered?",
                "How long does its warranty last?",
            ),
            ("And how long is its warranty?",),
        ),
        "zh": (
            (
                "它保修多久？",
                "那它的保修期是多长？",
                "那它保修几年？",
                "它有多久的质保？",
            ),
            ("那它保修多久？",),
        ),
    },
}
POLICY = {
    "weekday_hours": {
        "en": (
            (
                "When is the shop open from Monday to Friday?",
                "What are your opening hours on Monday?",
                "When do you open on Tuesday?",
                "Are you open on Wednesday?",
                "When are you open on Thursday?",
                "When is the shop open on Tuesday?",
                "Is the shop open on Friday?",
            ),
            (
                "When are you open on Monday?",
                "When is the shop open on Friday?",
            ),
        ),
        "zh": (
            (
                "周一到周五几点营业？",
                "周一的营业时间是什么？",
                "周二几点开门？",
                "周三营业吗？",
                "周四几点营业？",
                "周二的营业时间是什么？",
                "周五营业吗？",
            ),
            ("周一几点营业？", "周五的营业时间是什么？"),
        ),
    },
    "saturday_hours": {
        "en": (
            (
                "When is the shop open on Saturday?",
                "What are your opening hours on Saturday?",
                "Are you open on Saturday?",
                "When does the shop open on Saturday?",
            ),
            ("When do you open on Saturday?",),
        ),
        "zh": (
            (
                "周六几点营业？",
                "周六的营业时间是什么？",
                "周六营业吗？",
                "周六几点关门？",
            ),
            ("周六几点开门？",),
        ),
    },
    "sunday_hours": {
        "en": (
            (
                "When is the shop open on Sunday?",
                "Do you ship on Sunday?",
                "Are you open on Sunday?",
                "When do you open on Sunday?",
            ),
            ("What are your opening hours on Sunday?",),
        ),
        "zh": (
            (
                "周日几点营业？",
                "周日发货吗？",
                "周日营业吗？",
                "周日几点开门？",
            ),
            ("周日的营业时间是什么？",),
        ),
    },
    "returns": {
        "en": (
            (
                "How long can I return a product?",
                "Can I return something?",
                "Within how many days can I return a product?",
            ),
            ("Within how many days can I return something?",),
        ),
        "zh": (
            ("多久之内可以退货？", "可以退货吗？", "几天内能退货？"),
            ("几天之内可以退货？",),
        ),
    },
    "delivery_time": {
        "en": (
            (
                "How long does delivery take?",
                "How many days does delivery take?",
                "When does my delivery arrive?",
            ),
            ("How many days until my delivery arrives?",),
        ),
        "zh": (
            ("送货需要多久？", "送货要几天？", "多久能送到？"),
            ("送货需要几天？",),
        ),
    },
    "delivery_fee": {
        "en": (
            (
                "How much does delivery cost?",
                "What is the price of delivery?",
                "What do I pay for delivery?",
            ),
            ("How much do I pay for delivery?",),
        ),
        "zh": (
            ("运费是多少？", "运费多少钱？", "送货要付多少钱？"),
            ("运费要付多少钱？",),
        ),
    },
    "free_delivery": {
        "en": (
            (
                "When is delivery free?",
                "Do you have free delivery?",
                "For which orders is delivery free?",
            ),
            ("When do I get free delivery?",),
        ),
        "zh": (
            ("什么时候免运费？", "可以免运费吗？", "满多少免运费？"),
            ("订单满多少元免运费？",),
        ),
    },
    "refund": {
        "en": (
            (
                "When do I get my refund?",
                "How long does a refund take?",
                "When does the refund arrive?",
            ),
            ("How long until my refund arrives?",),
        ),
        "zh": (
            ("退款什么时候到账？", "退款需要多久？", "几天能收到退款？"),
            ("退款几天到账？",),
        ),
    },
}
UNKNOWN_ANSWERS = {
    "en": "I am sorry, I do not know a product of that name.",
    "zh": "抱歉，我不知道这个商品。",
}
ARITHMETIC = {
    "en": (
        (
            "How much do {m} pieces of the {n} cost?",
            "What is the price of {m} pieces of {n}?",
            "I take {m} pieces of the {n}. What do I pay?",
        ),
        ("What do I pay for {m} pieces of the {n}?",),
    ),
    "zh": (
        (
            "{m} 件 {n} 多少钱？",
            "买 {m} 件 {n} 要多少钱？",
            "我要 {m} 件 {n}，一共多少钱？",
        ),
        ("{m} 件 {n} 一共多少钱？",),
    ),
}
EMAIL = {
    "en": (
        (
            "Answer this e-mail: {e}",
            "Please reply to this customer: {e}",
            "Write a reply to this e-mail: {e}",
        ),
        ("Please answer this e-mail: {e}",),
    ),
    "zh": (
        ("回复这封邮件：{e}", "请答复这位顾客：{e}", "给这封邮件写回复：{e}"),
        ("请回复这封邮件：{e}",),
    ),
}
# Problem -> (what customers write, what the shop answers), by language.
EMAIL_PROBLEMS = {
    "late": {
        "en": (
            ("my order {o} has not arrived.", "I still wait for order {o}."),
            "we are sorry that order {o} is late. It is on its way.",
        ),
        "zh": (
            ("我的订单 {o} 还没有到。", "我还在等订单 {o}。"),
            "很抱歉，订单 {o} 晚到了，它正在路上。",
        ),
    },
    "broken": {
        "en": (
            ("my order {o} arrived broken.", "order {o} was damaged."),
            "we are sorry that order {o} is broken. We send a new one.",
        ),
        "zh": (
            ("我的订单 {o} 收到时坏了。", "订单 {o} 破损了。"),
            "很抱歉，订单 {o} 损坏了，我们会寄新的。",
        ),
    },
    "wrong": {
        "en": (
            (
                "order {o} has the wrong product.",
                "in order {o} you sent me the wrong thing.",
            ),
            "we are sorry that order {o} was wrong. We exchange it.",
        ),
        "zh": (
            ("订单 {o} 发错了商品。", "你们在订单 {o} 里寄错了东西。"),
            "很抱歉，订单 {o} 发错了，我们会更换。",
        ),
    },
    "cancel": {
        "en": (
            ("please cancel order {o}.", "I do not want order {o} any more."),
            "order {o} is cancelled. You get your money back.",
        ),
        "zh": (
            ("请取消订单 {o}。", "我不要订单 {o} 了。"),
            "订单 {o} 已取消，钱会退给您。",
        ),
    },
    "invoice": {
        "en": (
            (
                "please send me the invoice of order {o}.",
                "I need an invoice for order {o}.",
            ),
            "the invoice of order {o} is attached.",
        ),
        "zh": (
            ("请把订单 {o} 的发票发给我。", "我需要订单 {o} 的发票。"),
            "订单 {o} 的发票见附件。",
        ),
    },
}
SENTIMENT = {
    "en": (
        (
            "Is this review positive or negative? {r}",
            "What is the sentiment of this review? {r}",
            "Judge this review: {r}",
        ),
        ("Is the sentiment of this review positive or negative? {r}",),
    ),
    "zh": (
        (
            "这条评价是好评还是差评？{r}",
            "这条评价的情感是什么？{r}",
            "判断这条评价：{r}",
        ),
        ("判断这条评价是好评还是差评：{r}",),
    ),
}
SENTIMENT_ANSWERS = {
    "positive": {"en": "The review is positive.", "zh": "这是好评。"},
    "negative": {"en": "The review is negative.", "zh": "这是差评。"},
    "mixed": {"en": "The review is mixed.", "zh": "这是中评。"},
}
CLASSIFY = {
    "en": (
        (
            "Which category fits this text? {d}",
            "Classify this product: {d}",
            "Sort this text into a category: {d}",
        ),
        ("Which category fits this product? {d}",),
    ),
    "zh": (
        (
            "这段文字属于哪个类别？{d}",
            "给这个商品分类：{d}",
            "把这段文字归类：{d}",
        ),
        ("这个商品属于哪个类别？{d}",),
    ),
}
CLASSIFY_TEXTS = {
    "en": (
        "A {o} {k} for {p} yuan.",
        "This {k} is {o} and costs {p} yuan.",
        "New: a {k} in {o}, only {p} yuan.",
    ),
    "zh": (
        "一款{o}的{k}，{p} 元。",
        "这款{k}是{o}的，卖 {p} 元。",
        "新品：{k}，{o}，只要 {p} 元。",
    ),
}
SUMMARY = {
    "en": (
        (
            "Summarise this page in one line: {t}",
            "Give a one-line summary: {t}",
            "Sum up this product page: {t}",
        ),
        ("Summarise this product page: {t}",),
    ),
    "zh": (
        (
            "用一句话概括这个页面：{t}",
            "写一句话的摘要：{t}",
            "概括这个商品页面：{t}",
        ),
        ("用一句话概括这个商品页面：{t}",),
    ),
}
PAGE_SENTENCES = {
    "en": (
        ("This is a {k}.", "Our new {k} is here.", "Look at this {k}."),
        ("It comes in {o}.", "It is {o}.", "Its colour is {o}."),
        ("It costs {p} yuan.", "Its price is {p} yuan.", "You pay {p} yuan."),
        (
            "It has a warranty of {w}.",
            "We guarantee it for {w}.",
            "It is covered for {w}.",
        ),
    ),
    "zh": (
        ("这是一款{k}。", "我们的新{k}来了。", "看看这款{k}。"),
        ("它是{o}的。", "颜色是{o}。", "外观为{o}。"),
        ("卖 {p} 元。", "价格是 {p} 元。", "只要 {p} 元。"),
        ("保修 {w}。", "我们提供 {w} 保修。", "享有 {w} 质保。"),
    ),
}
PAGE_FILLERS = {
    "en": ("Many customers love it.", "Order it today.", "It is easy to use."),
    "zh": ("很多顾客喜欢它。", "今天就下单吧。", "用起来很简单。"),
}
SUMMARY_ANSWERS = {
    "en": "A {o} {k} for {p} yuan with a warranty of {w}.",
    "zh": "{o}的{k}，{p} 元，保修 {w}。",
}
TRANSLATION = {
    "en": (
        (
            "Translate into Chinese: {s}",
            "How do you say this in Chinese? {s}",
            "Put this into Chinese: {s}",
        ),
        ("Translate this into Chinese: {s}",),
    ),
    "zh": (
        ("翻译成英文：{s}", "这句话用英文怎么说？{s}", "把这句话译成英文：{s}"),
        ("把这句话翻译成英文：{s}",),
    ),
}
ROLE = {
    "en": (
        (
            "Who bought what from whom? {s}",
            "Name buyer, product and seller: {s}",
            "Find the roles in this sentence: {s}",
        ),
        ("In this sentence, who bought what from whom? {s}",),
    ),
    "zh": (
        (
            "谁从谁那里买了什么？{s}",
            "找出买家、商品和卖家：{s}",
            "标出这句话的角色：{s}",
        ),
        ("这句话里谁从谁那里买了什么？{s}",),
    ),
}
ROLE_ANSWERS = {
    "en": "Buyer: {b}. Product: {i}. Seller: {s}.",
    "zh": "买家：{b}。商品：{i}。卖家：{s}。",
}
GREETINGS = {
    "en": (
        ("Hello!", "Hello! How can I help you?"),
        ("Hi!", "Hello! How can I help you?"),
        ("Who are you?", "I am the assistant of this shop."),
        ("Thank you!", "You are welcome."),
        ("Goodbye!", "Goodbye! Come back soon."),
    ),
    "zh": (
        ("你好！", "你好！有什么可以帮您？"),
        ("您好！", "你好！有什么可以帮您？"),
        ("你是谁？", "我是这家商店的助手。"),
        ("谢谢！", "不客气。"),
        ("再见！", "再见！欢迎再来。"),
    ),
}
