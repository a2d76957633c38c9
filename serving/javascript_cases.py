"""What other implementations must give for an exported model: token ids and fills, by Python.

    python -m serving.javascript_cases --exported exported --output cases.json

Writes 1,000 texts made to break tokenizers (scripts side by side, emoji, combining and control
characters, white space of every kind, full-width forms, special tokens spelled out) with their ids,
and a few sentences with the likeliest tokens for their masks, in fp32 and int8.
`examples/javascript/check.mjs` compares them.
"""

import argparse
import random
from pathlib import Path

from pretraining.command import readable_errors
from pretraining.files import write_json
from serving.runtime import FILES, Runtime

ALPHABETS = (
    "天地人学习编码字符测试语言很好的是在了不有我他这个们来到",
    "臺灣學習繁體資料處理",
    "abcXYZ hello World",
    "0123456789",
    "ÀéîõüñßçøžŁαβγДЖЩאבגدعربहिन्दी",
    "ひらがなカタカナ한국어",
    "😀🎉👨\u200d👩\u200d👧🏳️\u200d🌈👍🏽❤️",
    "\u0301\u0308\u0303\u035c\u0360",
    "\x00\x01\x07\x1b\x7f\x85\u00ad\u200b\u200e\u202e\ufeff",
    "𠀀𠮷𡃁𪚥𫝀𝓐𝔸",
    " \t\u00a0\u2003\u2028\u3000",
    "\n\r",
    "ＡＢＣ１２３！＂＃（）",
    "，。！？、；：“”《》【】…—·～",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "⺀㐀豈〇々〻㌀㈱",
)
SPELLED_OUT = ("[MASK]", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[mask]", "[ MASK ]", "<0xE4>", "</s>")
WORDS = (0, 1, 2, 3, 8, 20, 60)

MASKED = (
    "今天[MASK]气很好，我们去公园散步吧。",
    "这本书一共有三百[MASK]，我还没有看完。",
    "他把[MASK]放在桌子上，然后离开了房间。",
    "火车晚上八点到达[MASK]站，请提前做好下车的准备。",
    "[MASK]天早上七点起床，八点出门[MASK]班。",
)


def hostile_texts(count: int) -> list[str]:
    """Texts that are always the same."""
    draw = random.Random(0)

    def word() -> str:
        kind = draw.random()
        if kind < 0.06:
            return draw.choice(SPELLED_OUT)
        if kind < 0.6:  # a few characters, each of another kind
            return "".join(draw.choice(draw.choice(ALPHABETS)) for _ in range(draw.randint(1, 4)))
        return "".join(draw.choices(ALPHABETS[0] + ALPHABETS[1], k=draw.randint(1, 6)))

    return ["".join(word() for _ in range(draw.choice(WORDS))) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--exported", type=Path, required=True, help="what serving.export wrote")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    with readable_errors("javascript_cases"):
        fills = {}
        for int8, dtype in ((False, "fp32"), (True, "q8")):
            if (arguments.exported / FILES["onnx", int8]).is_file():
                runtime = Runtime.open(arguments.exported, "onnx", int8)
                mask = runtime.tokenizer.id_to_token(runtime.mask_id)
                masked = [text.replace("[MASK]", mask) for text in MASKED]
                # One at a time, as there: in int8 the texts of a batch share a scale.
                fills[dtype] = [runtime.fill_masks([text])[0] for text in masked]
        if not fills:
            raise ValueError(f"{arguments.exported} holds no ONNX file.")
    runtime.tokenizer.no_truncation()  # as there
    texts = hostile_texts(1000)
    cases = {
        "tokens": [{"text": text, "ids": runtime.tokenizer.encode(text).ids} for text in texts],
        "fills": [
            {
                "text": text,
                "tokens": {
                    dtype: [[fill.token for fill in mask] for mask in of_texts[number]]
                    for dtype, of_texts in fills.items()
                },
            }
            for number, text in enumerate(masked)
        ],
    }
    write_json(arguments.output, cases)
    print(f"{arguments.output}: {len(texts)} texts, {len(MASKED)} sentences with masks")


if __name__ == "__main__":
    main()
