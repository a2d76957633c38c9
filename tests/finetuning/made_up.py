"""Made-up tasks that each kind of head can learn in seconds."""

import random
from collections import Counter

from finetuning.splits import Split
from finetuning.tasks import Task

PLACES = ("青岛", "长沙", "广州", "昆明", "西安", "厦门")
FRUIT = ("苹果", "西瓜", "葡萄", "草莓", "香蕉", "桃子")
STARTS = ("昨天下午", "上个星期", "听朋友说", "没想到", "下雨的时候", "吃完晚饭")
ENDS = ("大家都很高兴。", "我想再去一次。", "孩子们也来了。", "路上没有什么人。")


def sentence(words: str, chance: random.Random) -> str:
    return f"{chance.choice(STARTS)}，{words}，{chance.choice(ENDS)}"


def _class(number: int, chance: random.Random) -> dict:
    label, words = chance.choice((("place", PLACES), ("fruit", FRUIT)))
    text = sentence(chance.choice(words), chance)
    return {"id": number, "text": text, "text_pair": None, "label": label}


def _entities(number: int, chance: random.Random) -> dict:
    place, fruit = chance.choice(PLACES), chance.choice(FRUIT)
    text = sentence(f"我在{place}买了{fruit}", chance)
    found = [[text.index(words), text.index(words) + 2] for words in (place, fruit)]
    return {"id": number, "text": text, "entities": [[*found[0], "place"], [*found[1], "fruit"]]}


def _answer(number: int, chance: random.Random) -> dict:
    place = chance.choice(PLACES)
    context = sentence(f"我去了{place}", chance)
    answer = {"text": place, "start": context.index(place)}
    return {"id": number, "context": context, "question": "去了哪里？", "answers": [answer]}


def _choice(number: int, chance: random.Random) -> dict:
    choices = [chance.choice(FRUIT), chance.choice(PLACES), chance.choice(FRUIT)]
    chance.shuffle(choices)
    label = next(index for index, choice in enumerate(choices) if choice in PLACES)
    text = sentence("我出门了", chance)
    pair = {"text": text, "text_pair": "去了哪里？"}
    return {"id": number, "group": number, **pair, "choices": choices, "label": label}


MAKERS = {"classification": _class, "tokens": _entities, "answers": _answer, "choices": _choice}
_FAST = {"max_length": 48, "batch_size": 16, "epochs": 8, "patience": 2}


def made_up_task(head: str, **settings) -> Task:
    others = {
        "classification": {"labels": ("fruit", "place")},
        "tokens": {"labels": ("fruit", "place"), "metric": "f1"},
        "answers": {"metric": "exact_match"},
        "choices": {"choices": 3},
    }
    return Task(head, head, None, {}, "made up", **_FAST | others[head] | settings)


def made_up_splits(head: str, **sizes: int) -> dict[str, Split]:
    chance = random.Random(1)
    return {
        name: Split([MAKERS[head](n, chance) for n in range(size)], (f"{name}.json",), Counter())
        for name, size in sizes.items()
    }
