"""A teacher's vectors on disk, and training that a kill does not change, with a tiny model."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from transformers import AutoTokenizer, DefaultFlowCallback

from commands import run_main
from embedding import distill, mine, neighbors, sentences
from embedding.bag_of_words import (
    leave_layers_out,
    put_words_beside,
    start_as_bag_of_words,
    token_texts,
)
from embedding.data import load_task
from embedding.distill import read_sentences
from embedding.encoder import Opening
from embedding.leakage import leaks
from embedding.run_file import TaskSpec, load_run_file
from embedding.student import keep_layers, whiten, widen_vectors
from embedding.teacher import TeacherNote, digest_of, open_vectors, read_teacher
from embedding.train import load_data, prepare_work, sampler_for, train, work_folder
from embedding.unpadded import lay_end_to_end

ROOT = Path(__file__).resolve().parent.parent.parent
SENTENCES = [
    f"{day}{weather}，{plan}。"
    for day in ("今天", "明天")
    for weather in ("下雨", "晴")
    for plan in ("我们在家看书", "他们去河边钓鱼", "图书馆照常开门")
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A complete folder of a teacher with vectors of size 8."""
    output = tmp_path_factory.mktemp("teacher")
    note = TeacherNote("t", "f", None, digest_of(SENTENCES), len(SENTENCES), 8, len(SENTENCES))
    distill.start_or_resume(output, note, SENTENCES)
    vectors = np.random.default_rng(0).normal(size=(len(SENTENCES), 8))
    open_vectors(output, note, "r+")[:] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return output


@pytest.fixture
def run_file(tiny_encoder, teacher, tmp_path):
    """Returns `run_file(name)`: a run of three tasks with an output of that name."""
    pairs, scores = tmp_path / "pairs.jsonl", tmp_path / "scores.tsv"
    pairs.write_text(
        "".join(
            f"{json.dumps({'q': text, 't': text[::-1]}, ensure_ascii=False)}\n"
            for text in SENTENCES
        ),
        encoding="utf-8",
    )
    scores.write_text(
        "".join(f"{text}\t{SENTENCES[0]}\t{n % 6}\n" for n, text in enumerate(SENTENCES)),
        encoding="utf-8",
    )
    training = {
        "max_steps": 4,
        "save_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    run = {
        "model": str(tiny_encoder),
        "dimensions": [16],
        "turns": "round_robin",
        "prompts": {"query": "查询："},
        "training": training,
        "tasks": {
            "vectors": {"kind": "teacher", "teacher": str(teacher)},
            "pairs": {"kind": "pairs", "files": [str(pairs)], "columns": ["q", "t"],
                      "prompts": ["query"], "mini_batch": 2},
            "scores": {"kind": "scored", "files": [str(scores)], "columns": [0, 1, 2],
                       "score_range": [0, 5]},
        },
    }  # fmt: skip

    def write(name: str) -> Path:
        file = tmp_path / f"{name}.yaml"
        file.write_text(json.dumps(run | {"output": str(tmp_path / name)}), encoding="utf-8")
        return file

    return write


def weights_of(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model.safetensors")


# --- training -----------------------------------------------------------------------------------


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(
    run_file, tiny_encoder, monkeypatch
):
    whole, killed = load_run_file(run_file("whole")), load_run_file(run_file("killed"))
    train(whole)
    with monkeypatch.context() as patch:

        def kill(*args, **kwargs):
            raise KeyboardInterrupt

        patch.setattr(DefaultFlowCallback, "on_save", kill, raising=False)
        with pytest.raises(KeyboardInterrupt):
            train(killed)
    assert not killed.output.exists()
    assert (work_folder(killed) / "checkpoint-2").exists()
    (work_folder(killed) / "checkpoint-3").mkdir()  # a kill while it was written
    train(killed)

    weights, start = weights_of(whole.output), weights_of(tiny_encoder)
    assert any(not torch.equal(weights[name], start[name]) for name in weights)
    for name, weight in weights_of(killed.output).items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=0, msg=name)

    model = SentenceTransformer(str(whole.output), trust_remote_code=True)
    assert model.prompts["query"] == "查询："
    vectors = model.encode(SENTENCES)
    assert vectors.shape == (len(SENTENCES), 32)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(SENTENCES)))
    # No row of the data is in what may be published: the library's card would quote some.
    assert not (whole.output / "README.md").exists()
    notes = "".join(file.read_text() for file in whole.output.glob("*.json"))
    assert SENTENCES[0] not in notes


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(run_file):
    file = run_file("other")
    work = work_folder(load_run_file(file))
    work.mkdir()
    (work / "run.json").write_text('{"digest": "another"}', encoding="utf-8")
    with pytest.raises(ValueError, match="a run of other settings or data"):
        train(load_run_file(file))


def test_data_that_changed_under_a_run_is_noticed(run_file):
    run = load_run_file(run_file("run"))
    assert prepare_work(run) is None
    assert prepare_work(run) is None
    data = run.tasks[1].files[0]
    data.write_text(data.read_text(encoding="utf-8").replace("q", "Q"))  # as many bytes
    with pytest.raises(ValueError, match="a run of other settings or data"):
        prepare_work(run)


def test_an_output_that_holds_something_is_left_alone(run_file, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(ValueError, match="is not an empty folder"):
        train(load_run_file(run_file("full")))
    assert (tmp_path / "full/mine.txt").read_text() == "keep"


def test_a_folder_beside_the_output_that_is_not_the_runs_is_left_alone(run_file, tmp_path):
    (tmp_path / "mine.run").mkdir()
    (tmp_path / "mine.run/notes.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine\.run is not an empty folder"):
        prepare_work(load_run_file(run_file("mine")))
    assert (tmp_path / "mine.run/notes.txt").read_text() == "keep"


def test_a_model_is_trained_whole(run_file, tiny_encoder):
    with pytest.raises(ValueError, match=r"@16: all dimensions are trained; leave @… out"):
        train(load_run_file(run_file("student"), [f"model={tiny_encoder}@16"]))


@pytest.mark.parametrize("key", ["layers=1", "vector_size=64", "whiten=true", "compile=true"])
def test_what_changes_an_encoder_is_refused_where_there_is_none(run_file, tmp_path, key):
    vocabulary = Tokenizer.from_file(str(ROOT / "tokenizer.json"))
    static = StaticEmbedding(vocabulary, embedding_dim=16)
    SentenceTransformer(modules=[static]).save(str(tmp_path / "static"))
    with pytest.raises(ValueError, match=rf"{key.split('=')[0]}: .* is a StaticEmbedding"):
        train(load_run_file(run_file("student"), [f"model={tmp_path / 'static'}", key]))


def test_vectors_that_were_cut_off_are_not_taken_for_zeros(tmp_path):
    note = TeacherNote("teacher", "", "", "", 3, 8, 0)
    open_vectors(tmp_path, note, "w+").flush()
    file = next(tmp_path.glob("vectors*"))
    assert file.stat().st_blocks * 512 >= file.stat().st_size == 48  # no hole
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match="has 40 bytes, not 48"):
        open_vectors(tmp_path, note, "r+")


def test_leaks_of_a_run_are_listed_by_task(run_file):
    held_out = SimpleNamespace(holds=lambda text: text == SENTENCES[0])
    found = leaks(load_run_file(run_file("leaky")), held_out)
    assert found == {name: [SENTENCES[0]] for name in ("vectors", "pairs", "scores")}


# --- hard negatives -----------------------------------------------------------------------------


def test_mined_rows_train_as_triplets(tiny_encoder, tmp_path, capsys):
    pairs, output = tmp_path / "pairs.jsonl", tmp_path / "mined.jsonl"
    rows = [{"q": text, "t": f"{text}真的"} for text in SENTENCES]
    pairs.write_text(
        "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8"
    )
    arguments = ["--model", tiny_encoder, "--pairs", pairs, "--output", output]
    arguments += ["--columns", "q", "t"]
    # An untrained model says little of what is close; any margin would leave few.
    arguments += ["--negatives", 2, "--relative_margin", -10]
    run_main(mine, *arguments)
    assert f"of {len(rows)} pairs with 2 negatives each" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_main(mine, *arguments, "--negatives", 20)
    assert "--negatives 20 needs --range_max 60 or more" in capsys.readouterr().err
    spec = TaskSpec("t", "triplets", (output,), columns=("anchor", "positive", "negatives"))
    mined = load_task(spec, 0).rows.to_list()
    assert {row["anchor"] for row in mined} == set(SENTENCES)
    for row in mined:
        own = {row["anchor"], row["positive"]}
        assert len({row["negative_1"], row["negative_2"]} - own) == 2


def test_a_judge_is_a_cross_encoder(tiny_encoder):
    with pytest.raises(ValueError, match="is no CrossEncoder"):
        mine.open_judge(str(tiny_encoder))


def test_an_epoch_sees_all_rows_however_few_their_answers():
    rows = [(f"第{number}个问题", f"答案{number % 20}") for number in range(400)]
    data = Dataset.from_list([{"anchor": question, "positive": text} for question, text in rows])
    options = {"batch_size": 64, "drop_last": False, "generator": torch.Generator(), "seed": 0}
    sampler = sampler_for(data, **options)
    batches = list(itertools.islice(sampler, len(sampler)))
    assert sorted(itertools.chain(*batches)) == list(range(400))
    assert all(len({rows[place][1] for place in batch}) == len(batch) for batch in batches)
    few = Dataset.from_dict({"anchor": list("abcdef"), "positive": list("ABCDEF")})
    assert len(sampler_for(few, **options | {"batch_size": 4})) == 2


# --- teacher ------------------------------------------------------------------------------------


@pytest.fixture
def distilled(tiny_encoder, tmp_path, monkeypatch, capsys):
    """Returns `distilled(*options)`: what the command printed; blocks of five sentences."""
    (tmp_path / "sentences.txt").write_text(
        "".join(f"{text}\n" for text in SENTENCES), encoding="utf-8"
    )
    monkeypatch.setattr(distill, "BLOCK", 5)

    def run(*options) -> str:
        arguments = ["--teacher", tiny_encoder, "--sentences", tmp_path / "sentences.txt"]
        arguments += ["--output", tmp_path / "vectors", *options]
        run_main(distill, *arguments)
        return capsys.readouterr().out

    return run


def test_a_teachers_vectors_are_those_of_the_model_and_a_kill_loses_one_block(
    distilled, tiny_encoder, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        written = distill.write_note

        def kill(output: Path, note: TeacherNote):
            written(output, note)
            if note.done == 5:
                raise KeyboardInterrupt

        patch.setattr(distill, "write_note", kill)
        with pytest.raises(KeyboardInterrupt):
            distilled()
    with pytest.raises(ValueError, match="5 of 12 vectors are written"):
        read_teacher(tmp_path / "vectors")
    assert distilled().startswith("10 of 12")
    sentences, vectors = read_teacher(tmp_path / "vectors")
    assert sentences == SENTENCES
    expected = Opening.of(str(tiny_encoder)).open().encode(SENTENCES, normalize_embeddings=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-3)  # fp16 beside fp32


def test_a_byte_order_mark_within_a_file_is_no_part_of_a_sentence(tmp_path):
    """Where files were concatenated; read back at a line's start it would be dropped."""
    (tmp_path / "a.txt").write_text("　\ufeff带标记的句子。\n\ufeff \n", encoding="utf-8")
    assert read_sentences([tmp_path / "a.txt"]) == ["带标记的句子。"]


def test_a_folder_that_holds_something_else_is_left_alone(distilled, tmp_path):
    with pytest.raises(SystemExit, match="is not an empty folder"):
        distilled("--output", tmp_path)
    assert read_sentences([tmp_path / "sentences.txt"]) == SENTENCES


def test_vectors_of_other_sentences_are_kept(distilled, tmp_path):
    distilled()
    (tmp_path / "sentences.txt").write_text("换了一句话。\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="of another teacher, prompt or other sentences"):
        distilled()
    assert read_teacher(tmp_path / "vectors")[0] == SENTENCES


def test_what_cannot_be_distilled_is_refused(distilled, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="no prompt 'q'; it has query, document"):
        distilled("--prompt", "q")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
        with pytest.raises(SystemExit, match="are free"):
            distilled()
    (tmp_path / "sentences.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="has no text"):
        distilled()


def test_changed_sentences_are_noticed(teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / "copy")
    (tmp_path / "copy/sentences.txt").write_text("别的句子。\n", encoding="utf-8")
    with pytest.raises(ValueError, match="was changed"):
        read_teacher(tmp_path / "copy")


def test_a_student_may_have_fewer_layers_longer_vectors_and_half_the_bytes(run_file):
    file = run_file("student")
    model = train(load_run_file(file, ["layers=2", "vector_size=40", "whiten=true", "dtype=bf16"]))
    assert not [name for name in model.state_dict() if ".layers.2." in name]
    opened = SentenceTransformer(str(load_run_file(file).output), trust_remote_code=True)
    assert len(opened[0].auto_model.layers) == 2
    assert {weight.dtype for weight in opened.parameters()} == {torch.float32}
    for name in ("model.safetensors", "1_Dense/model.safetensors"):
        stored = load_file(load_run_file(file).output / name)
        assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    assert opened.encode(SENTENCES).shape == (len(SENTENCES), 40)
    again = load_run_file(run_file("again"), [f"model={load_run_file(file).output}"])
    with pytest.raises(ValueError, match="whiten: a Dense follows the pooling already"):
        train(replace(again, whiten=True))
    assert not work_folder(again).exists()  # refused before any training
    with pytest.raises(ValueError, match="vector_size: a Dense follows the encoder"):
        train(replace(again, vector_size=50))


@pytest.fixture(scope="module")
def teacher_of_words():
    """Words and a teacher's vectors of them, in which rain is nearly snow."""
    words = list(
        filter(None, token_texts(AutoTokenizer.from_pretrained(ROOT, trust_remote_code=True)))
    )
    vectors = np.random.default_rng(0).normal(size=(len(words), 40))
    rain, snow = (words.index(word) for word in "雨雪")
    vectors[snow] = vectors[rain] + 0.1 * vectors[snow]
    return words, vectors


def bag_of_words(tiny_encoder, texts, teacher) -> SentenceTransformer:
    model = SentenceTransformer(str(tiny_encoder), trust_remote_code=True, device="cpu")
    keep_layers(model, 2)
    put_words_beside(model, 400, 32)
    start_as_bag_of_words(model, texts, teacher)
    return model


def test_vectors_begin_as_bags_of_words_in_which_rare_words_count_most(
    tiny_encoder, teacher_of_words
):
    often = [f"今天的{what}，我们都觉得很好。" for what in SENTENCES]
    texts = [*often, "昆曲很好听。", "图书馆在河边。"]
    model = bag_of_words(tiny_encoder, texts, teacher_of_words)
    words = ["昆曲，今天的", "今天的，昆曲", "昆曲我们", "今天的我们", "圖書館", "图书馆"]
    with_states = model.encode(words)
    leave_layers_out(model)
    vectors = model.encode(words)
    same = model.similarity(vectors, vectors)
    assert same[0, 1] > 0.99  # their order says nothing
    assert same[0, 2] > same[0, 3] + 0.1
    assert same[4, 5] > 0.99
    # States are all that differs, as many as the encoder has.
    np.testing.assert_allclose(vectors[:, :368], with_states[:, :368], atol=1e-5)
    assert not vectors[:, 368:].any() and with_states[:, 368:].any(axis=0).all()


def test_states_begin_with_a_quarter_of_the_variance(tiny_encoder, teacher_of_words):
    texts = [f"{text}{number}" for text in SENTENCES for number in range(20)]
    model = bag_of_words(tiny_encoder, texts, teacher_of_words)
    variances = model.encode(texts).var(axis=0)
    assert variances[368:].sum() / variances.sum() == pytest.approx(0.25, abs=0.01)


def test_words_begin_as_alike_as_a_teacher_finds_them(tiny_encoder, teacher_of_words):
    words, vectors = teacher_of_words
    # Some words often, most hardly ever.
    drawn = [word for step in range(1, 60) for word in words[::step]]
    texts = ["，".join(drawn[at : at + 100]) for at in range(0, len(drawn), 100)]
    model = bag_of_words(tiny_encoder, texts, teacher_of_words)
    leave_layers_out(model)
    same = model.similarity(*2 * [model.encode(["雨", "雪", "书"])])
    assert same[0, 1] > same[0, 2] + 0.2
    with pytest.raises(ValueError, match="the teacher's words hold 2 of the model's 32,000 tokens"):
        bag_of_words(tiny_encoder, SENTENCES, (["雨", "雪"], vectors[:2]))


@pytest.fixture
def words_beside(teacher_of_words, tmp_path) -> list[str]:
    """What a run that starts from the teacher's words has in its file."""
    words, vectors = teacher_of_words
    folder = tmp_path / "word-vectors"
    note = TeacherNote("t", "f", None, digest_of(words), len(words), vectors.shape[1], len(words))
    distill.start_or_resume(folder, note, words)
    open_vectors(folder, note, "r+")[:] = vectors
    return ["start=words", f"word_vectors={folder}", "word_size=32", "vector_size=64"]


def test_words_are_set_before_vectors_are_made_white(run_file, words_beside):
    untrained = [
        *words_beside,
        "whiten=true",
        "training.num_train_epochs=0",
        "training.max_steps=-1",
    ]
    texts = [*SENTENCES, *(text[::-1] for text in SENTENCES)]  # those of the run
    vectors = train(load_run_file(run_file("words"), untrained)).encode(texts)
    # 0.16; made white before the words are set, vectors share most of their direction: 0.76.
    assert np.linalg.norm(vectors.mean(axis=0)) < 0.3


def test_a_run_of_words_is_saved_with_its_code_and_goes_on_with_the_layers(run_file, words_beside):
    run = load_run_file(run_file("words"), [*words_beside, "train_layers=false"])
    before = load_file(Path(run.model) / "model.safetensors")
    trained = train(run)
    after = load_file(run.output / "model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in after)  # layers are left out
    opened = SentenceTransformer(str(run.output), trust_remote_code=True, device="cpu")
    # The codes, which are trained; the states count again.
    codes = [model.encode(SENTENCES)[:, :48] for model in (trained, opened)]
    codes = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in codes]
    np.testing.assert_allclose(*codes, atol=1e-5)
    both = load_run_file(run_file("both"), [f"model={run.output}", "whiten=true"])
    train(both)
    assert not torch.equal(
        load_file(both.output / "model.safetensors")["layers.0.attn.Wo.weight"],
        before["layers.0.attn.Wo.weight"],
    )
    again = SentenceTransformer(str(both.output), trust_remote_code=True, device="cpu")
    assert again.encode(SENTENCES).shape == (len(SENTENCES), 64)


def test_whitened_vectors_have_no_direction_in_common(tiny_encoder):
    model = SentenceTransformer(str(tiny_encoder), trust_remote_code=True, device="cpu")
    texts = [f"{text}{number}" for text in SENTENCES for number in range(60)]
    before = model.encode(texts)
    whiten(model, texts)
    after = model.encode(texts)
    variances = after.var(axis=0)
    assert np.abs(after.mean(axis=0)).max() < 0.01 < np.abs(before.mean(axis=0)).max()
    assert np.all(np.diff(variances) < 1e-4) and variances.max() < 1  # the widest first
    assert np.abs(np.corrcoef(after[:, :10].T) - np.eye(10)).max() < 0.01
    with pytest.raises(ValueError, match="whiten: a Dense follows the pooling already"):
        whiten(model, texts)


def test_texts_laid_end_to_end_have_the_same_vectors(tiny_encoder):
    model = SentenceTransformer(str(tiny_encoder), trust_remote_code=True, device="cpu")
    widen_vectors(model, 40)
    texts = ["雨", *SENTENCES, SENTENCES[0] * 30]
    padded = model.encode(texts)
    lay_end_to_end(model)
    tokens = model.preprocess(texts)["input_ids"]
    assert tokens.shape[0] == 1
    np.testing.assert_allclose(model.encode(texts), padded, atol=1e-5)


def test_a_run_may_be_compiled_for_batches_of_any_size(run_file, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **options: compiled.append((module, options))
    )
    model = train(load_run_file(run_file("compiled"), ["compile=true"]))
    assert compiled and all(options == {"dynamic": True} for _, options in compiled)
    assert {module for module, _ in compiled} <= set(model[0].auto_model.modules())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("layers=4", "layers: 4, but the model has 3"),
        ("layers=0", "layers: a whole number above 0"),
        ("train_layers=false", "train_layers: false needs"),
        ("word_vectors=words", "word_vectors needs `start: words`"),
        ("start=words", "start: 'words', but `words` together with vector_size"),
        ("vector_size=-1", "vector_size: a whole number above 0"),
        ("dtype=int8", "dtype: 'int8'; one of fp32, bf16 expected"),
        ("training.learning_rate_mapping={auto_model: 0.1}", "no parameter matches 'auto_model'"),
    ],
)
def test_a_student_that_cannot_be_is_refused(run_file, override, message):
    with pytest.raises(ValueError, match=message):
        train(load_run_file(run_file("student"), [override]))


def test_the_texts_of_a_runs_tasks_are_what_it_would_train_on(run_file, tmp_path):
    output = tmp_path / "texts.txt"
    arguments = ["--run", run_file("run"), "--output", output]
    run_main(sentences, *arguments)
    mirrored = [text[::-1] for text in SENTENCES]
    assert sorted(output.read_text(encoding="utf-8").splitlines()) == sorted(SENTENCES + mirrored)
    run_main(sentences, *arguments, "--count", 5, "--longest", 12)
    drawn = output.read_text(encoding="utf-8").splitlines()
    assert len(drawn) == 5 and max(map(len, drawn)) <= 12


def test_the_texts_of_a_vocabulary_are_words_without_spaces(tiny_encoder, tmp_path):
    output = tmp_path / "words.txt"
    arguments = ["--vocabulary", tiny_encoder, "--output", output]
    run_main(sentences, *arguments)
    words = output.read_text(encoding="utf-8").splitlines()
    assert len(set(words)) == len(words) > 30_000
    assert {"雨", "图书馆"} <= set(words) and not {"", "[CLS]", "\ufffd"} & set(words)
    with pytest.raises(SystemExit):
        run_main(sentences, *arguments, "--count", 5)


def test_a_teachers_neighbors_are_learned_in_groups(run_file, teacher, monkeypatch):
    monkeypatch.setattr(neighbors, "RANKS", (1, 4))
    settings = ["kind=neighbors", "limit=9"]
    settings = [*(f"tasks.vectors.{each}" for each in settings), "training.logging_steps=1"]
    run = load_run_file(run_file("run"), settings)
    rows = load_data(run)[0]["vectors"]
    assert len(rows) == 9 and rows.column_names == ["text_0", "text_1", "text_2", "label"]
    sentences, _ = read_teacher(teacher)
    for row in rows:
        texts = [row["text_0"], row["text_1"], row["text_2"]]
        assert texts == [sentences[place] for place in row["label"]]
    train(run)
    log = json.loads((run.output / "training_run.json").read_text(encoding="utf-8"))["log"]
    near = [entry["near"] for entry in log if entry.get("step") in (1, 4) and "near" in entry]
    assert near[0] > near[1] > 0


def test_embeddings_may_be_left_as_they_are(run_file, tiny_encoder):
    run = load_run_file(run_file("run"), ["train_embeddings=false"])
    train(run)
    weights, start = weights_of(run.output), weights_of(tiny_encoder)
    same = {name for name in weights if torch.equal(weights[name], start[name])}
    assert {name for name in same if weights[name].ndim > 1} == {"embeddings.tok_embeddings.weight"}


def test_a_teachers_sentences_may_be_limited(run_file):
    rows, _ = load_data(load_run_file(run_file("run"), ["tasks.vectors.limit=5"]))
    assert len(rows["vectors"]) == 5
    with pytest.raises(ValueError, match="limit 99, but only 12 rows"):
        load_data(load_run_file(run_file("run"), ["tasks.vectors.limit=99"]))
