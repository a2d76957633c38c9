"""Cross-encoders and late interaction: trained by a run file, opened again, put to rerank."""

import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from sentence_transformers import CrossEncoder, MultiVectorEncoder
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

from commands import run_main
from embedding import architectures, evaluate, reranker, search, train
from embedding.architectures import architecture_of
from embedding.encoder import Opening
from embedding.losses import loss_for
from embedding.run_file import TaskSpec, load_run_file

ROOT = Path(__file__).parent.parent.parent
PLACES = ("图书馆", "菜市场", "火车站", "游泳池")
QUESTIONS = [f"{place}几点开门？" for place in PLACES]
ANSWERS = [f"{place}每天早上八点开门。" for place in PLACES]
KINDS = {"cross_encoder": CrossEncoder, "late_interaction": MultiVectorEncoder}


@pytest.fixture(scope="module")
def trained(tiny_encoder, tmp_path_factory) -> dict[str, Path]:
    """Architecture → the folder that `embedding.train` wrote."""
    work = tmp_path_factory.mktemp("rerankers")
    pairs = work / "pairs.jsonl"
    rows = zip(QUESTIONS, ANSWERS, strict=True)
    pairs.write_text(
        "".join(
            f"{json.dumps(row)}\n"
            for row in map(
                dict, ([("question", question), ("answer", answer)] for question, answer in rows)
            )
        ),
        encoding="utf-8",
    )
    folders = {}
    for architecture in KINDS:
        file = work / f"{architecture}.yaml"
        file.write_text(
            json.dumps(
                {
                    "model": str(tiny_encoder),
                    "architecture": architecture,
                    "output": str(work / architecture),
                    "training": {
                        "max_steps": 40,
                        "per_device_train_batch_size": 4,
                        "learning_rate": 3e-3,
                        "use_cpu": True,
                        "disable_tqdm": True,
                        "save_strategy": "no",
                    },
                    "tasks": {
                        "p": {
                            "kind": "pairs",
                            "files": [str(pairs)],
                            "columns": ["question", "answer"],
                        }
                    },
                }
            ),
            encoding="utf-8",
        )
        train.train(load_run_file(file))
        folders[architecture] = work / architecture
    return folders


@pytest.mark.parametrize(("architecture", "own"), [("cross_encoder", 10), ("late_interaction", 1)])
def test_a_loss_has_its_own_scale_or_the_one_that_is_given(architecture, own, trained):
    model = Opening.of(str(trained[architecture])).open(architecture)
    for given, expected in ((None, own), (50.0, 50)):
        spec = TaskSpec("t", "pairs", (Path("x"),), loss="ranking", scale=given)
        assert loss_for(spec, model, ()).scale == expected


@pytest.mark.parametrize("architecture", KINDS)
def test_a_trained_one_opens_and_puts_the_right_text_first(architecture, trained):
    folder = trained[architecture]
    assert architecture_of(str(folder)) == architecture
    assert isinstance(search.open_reranker(str(folder)).model, KINDS[architecture])
    reranker = search.open_reranker(str(folder))
    scores = reranker.similar(
        [question for question in QUESTIONS for _ in ANSWERS], ANSWERS * len(QUESTIONS)
    )
    assert scores.reshape(4, 4).argmax(axis=1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("outputs", "architecture"), [(1, "cross_encoder"), (3, "bi_encoder")])
def test_a_classifier_with_one_output_is_a_reranker(tmp_path, outputs, architecture):
    settings = {"architectures": ["BertForSequenceClassification"]}
    settings["id2label"] = {str(number): str(number) for number in range(outputs)}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert architecture_of(str(tmp_path)) == architecture


def test_a_model_of_the_hub_is_known_by_its_files_and_its_commit(tmp_path, monkeypatch):
    def download(model: str, name: str) -> str:
        if name != "config.json":
            raise LocalEntryNotFoundError(f"{model} has no {name}")
        return str(snapshot / name)

    monkeypatch.setattr(architectures, "hf_hub_download", download)
    prints = set()
    for commit in ("a1", "b2"):
        snapshot = tmp_path / commit
        snapshot.mkdir()
        settings = {"architectures": ["XLMRobertaForSequenceClassification"], "id2label": {"0": ""}}
        (snapshot / "config.json").write_text(json.dumps(settings))
        assert architecture_of("user/reranker") == "cross_encoder"
        prints.add(Opening.of("user/reranker").fingerprint())
    assert len(prints) == 2


def test_only_the_best_of_bm25_are_read_again(trained, monkeypatch):
    monkeypatch.setattr(reranker, "DEPTH", 2)
    documents = [*ANSWERS, "面条要煮五分钟。", "磨坊建在河边。"]
    scores = search.open_reranker(str(trained["cross_encoder"])).search(QUESTIONS[:1], documents)[0]
    lowest = scores == scores.min()
    assert lowest.sum() == 4 and not lowest[0]


@pytest.mark.parametrize("architecture", KINDS)
def test_evaluation_and_search_take_one_by_its_folder(
    architecture, trained, tiny_encoder, tmp_path, capsys
):
    contender = evaluate.Contender(str(trained[architecture]), None)
    assert np.isfinite(contender.scorer.similar(QUESTIONS, ANSWERS)).all()
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(ANSWERS), encoding="utf-8")
    index = tmp_path / "index"
    for arguments in (
        ("build", lines, "--index", index, "--model", tiny_encoder),
        ("query", QUESTIONS[2], "--index", index, "--rerank", trained[architecture], "--top", 1),
    ):
        run_main(search, *arguments)
    assert ANSWERS[2] in capsys.readouterr().out


def test_a_cross_encoder_that_tells_several_labels_apart_is_no_reranker(tmp_path):
    settings = {"architectures": ["BertForSequenceClassification"]}
    settings["id2label"] = {str(number): str(number) for number in range(3)}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    own = {"model_type": "CrossEncoder"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(own))
    with pytest.raises(ValueError, match="tells 3 labels apart; a cross-encoder has one output"):
        search.open_reranker(str(tmp_path))


def test_a_cross_encoder_has_no_dimensions(trained):
    folder = trained["cross_encoder"]
    with pytest.raises(ValueError, match="@8: a cross-encoder has no vectors; leave @… out"):
        Opening.of(f"{folder}@8").open("cross_encoder")


def test_a_bi_encoder_is_no_reranker(tiny_encoder):
    with pytest.raises(ValueError, match="is no reranker: train one with architecture"):
        search.open_reranker(str(tiny_encoder))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("architecture=colbert", "architecture: 'colbert'; one of bi_encoder"),
        (
            "tasks.p.kind=scored",
            "'scored'; one of pairs, triplets, ranked, nli, questions expected",
        ),
        ("dimensions=[16]", "only a bi_encoder has one vector a text"),
        ("tasks.p.loss=triplet", "kind pairs has ranking"),
    ],
)
def test_what_an_architecture_cannot_do_is_refused(override, message, trained):
    file = trained["late_interaction"].with_suffix(".yaml")
    with pytest.raises(ValueError, match=message):
        load_run_file(file, [override])


def test_a_cross_encoder_has_no_prompt_for_each_text(trained):
    overrides = ["prompts={query: 问：}", "tasks.p.prompts=[query]"]
    with pytest.raises(ValueError, match="a cross_encoder reads both texts as one input"):
        load_run_file(trained["cross_encoder"].with_suffix(".yaml"), overrides)


def test_scored_pairs_train_a_cross_encoder_by_cross_entropy(trained):
    file = trained["cross_encoder"].with_suffix(".yaml")
    columns = "tasks.p.columns=[question, answer, score]"
    (task,) = load_run_file(file, ["tasks.p.kind=scored", columns]).tasks
    model = CrossEncoder(str(trained["cross_encoder"]), trust_remote_code=True)
    assert isinstance(loss_for(task, model, ()), BinaryCrossEntropyLoss)
