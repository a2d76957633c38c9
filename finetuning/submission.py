"""CLUE's and FewCLUE's submission files: answers to the hidden tests.

    python -m finetuning.submission RESULTS --model NAME --output FOLDER

For each task the seed that was best on dev answers; of fine-tuned models only those that
`finetuning.clue --save_models` kept have answers. The names are those of CLUE 1.1
(https://github.com/CLUEbenchmark/CLUE) and of FewCLUE; CLUEWSC's 290 examples are the test of 1.0.
TNEWS's `test.json` is that of 1.1 in today's archive; with an older one, name the file
tnews10_predict.json.
"""

import argparse
from collections import Counter
from pathlib import Path

from finetuning.predictions import read_predictions
from finetuning.results import best_of, collect
from pretraining.command import readable_errors
from pretraining.files import write_json, write_json_lines

WSC_1_0 = 290  # examples; 1.1 has 2,574
FILES = {
    "afqmc": "afqmc_predict.json",
    "tnews": "tnews11_predict.json",
    "iflytek": "iflytek_predict.json",
    "cmnli": "cmnli_predict.json",
    "ocnli": "ocnli_50k_predict.json",
    "cluewsc2020": "cluewsc11_predict.json",
    "csl": "csl_predict.json",
    "cmrc2018": "cmrc2018_predict.json",
    "c3": "c311_predict.json",
    "chid": "chid11_predict.json",
    "cluener": "cluener_predict.json",
    "fewclue_bustm": "bustm_predict.json",
    "fewclue_chid": "chidf_predict.json",
    "fewclue_cluewsc": "cluewscf_predict.json",
    "fewclue_csl": "cslf_predict.json",
    "fewclue_csldcp": "csldcp_predict.json",
    "fewclue_eprstmt": "eprstmt_predict.json",
    "fewclue_iflytek": "iflytekf_predict.json",
    "fewclue_ocnli": "ocnlif_predict.json",
    "fewclue_tnews": "tnewsf_predict.json",
}


def best_result(results: list[dict], model: str, task: str) -> dict | None:
    """The result of a model on a task that has answers to the hidden test and is best on dev."""
    those = [
        result
        for result in results
        if (result["settings"]["model"], result["settings"]["task"]) == (model, task)
        and "hidden" in result["predictions"]
    ]
    return best_of(those) if those else None


def write_submission(results: list[dict], model: str, folder: Path) -> list[Path]:
    """Writes a file for each task that the model has answered the hidden test of.

    Args:
        results: with their predictions.

    Raises:
        ValueError: if there is none.
    """
    written = []
    for task, name in FILES.items():
        result = best_result(results, model, task)
        if result is None:
            continue
        answers = result["predictions"]["hidden"]
        if task == "cluewsc2020" and len(answers) == WSC_1_0:
            name = name.replace("11", "10")
        file = folder / name
        head = result["settings"]["head"]
        if head == "answers":
            write_json(file, {name: answer["text"] for name, answer in answers})
        elif task == "chid":
            write_json(file, dict(answers))
        else:
            write_json_lines(
                file, (_line(task, head, number, answer) for number, answer in answers)
            )
        written.append(file)
    if not written:
        models = Counter(result["settings"]["model"] for result in results)
        raise ValueError(
            f"{model!r} has answered no hidden test; run finetuning.clue with --save_models. There "
            f"are results of {', '.join(models)}."
        )
    return written


def _line(task: str, head: str, number, answer) -> dict:
    if head == "classification":
        return {"id": number, "label": answer["label"]}
    if head == "choices":
        return {"id": number, "label" if task == "c3" else "answer": answer}
    labels: dict = {}  # CLUENER2020's own form, the last character inclusive
    for start, end, label, words in answer:
        labels.setdefault(label, {}).setdefault(words, []).append([start, end - 1])
    return {"id": number, "label": labels}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m finetuning.submission", description="Answers to CLUE's hidden tests."
    )
    parser.add_argument("results", type=Path, help="the --output of finetuning.clue")
    parser.add_argument("--model", required=True, help="its name in the table")
    parser.add_argument("--output", type=Path, required=True, help="folder for the files")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    with readable_errors("submission"):
        results = [
            result | {"predictions": read_predictions(Path(result["file"]))}
            for result in collect(options.results)
        ]
        for file in write_submission(results, options.model, options.output):
            print(file)


if __name__ == "__main__":
    main()
