"""What the export command writes does what the model in torch does, or is not there."""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from tokenizers import Tokenizer
from tokenizers.models import BPE

import modeling_chinese_modernbert as modeling
import runtimes
from commands import run_main
from embedding.bag_of_words import put_words_beside
from embedding.student import whiten, widen_vectors
from model_folders import run_export, save_with_tokenizer
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM, ChineseModernBertModel
from serving import export, javascript_cases
from serving.export_check import Agreement, batches_for, compare, timed
from serving.javascript_cases import ALPHABETS, SPELLED_OUT, hostile_texts
from serving.model_folder import Pooling, open_model_folder
from serving.runtime import FILES, Runtime, openvino_core
from tokenization_chinese_modernbert import ChineseModernBertTokenizer

ROOT = Path(__file__).resolve().parent.parent.parent
SHAPE = {
    "vocab_size": 32_000,
    "num_hidden_layers": 2,
    "layer_types": ["full_attention", "sliding_attention"],
    "max_position_embeddings": 300,
}

# The smallest logits have one digit before the point: fp32 has six behind it.
TOLERANCE = 2e-5

SENTENCE = "他们在河边的小屋里住了整整一个夏天，每天清晨都去划船。"
# One token between the two that frame a text, some, several windows, more than the context.
TEXTS = ["好", "今天[MASK]气很好，我们去公园[MASK]步吧。", SENTENCE, SENTENCE * 12, SENTENCE * 40]


def write_modules(folder: Path, *kinds: str, pooling: str = "mean") -> None:
    """What sentence-transformers writes beside an encoder."""
    modules = [
        {"idx": number, "path": f"{number}_{kind}" if number else "", "type": f"st.{kind}"}
        for number, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    at = kinds.index("Pooling")
    (folder / f"{at}_Pooling").mkdir()
    (folder / f"{at}_Pooling/config.json").write_text(json.dumps({"pooling_mode": pooling}))


@pytest.fixture(scope="module")
def masked_lm(make_model, tmp_path_factory):
    """A model folder and its export, in every format."""
    folder = tmp_path_factory.mktemp("masked-lm")
    save_with_tokenizer(
        make_model("eager", ChineseModernBertForMaskedLM, **SHAPE), folder / "model"
    )
    (folder / "model/README.md").write_text("---\nlicense: apache-2.0\n---\n# Card\n")
    run_export("--model", folder / "model", "--output", folder / "exported", "--int8")
    return folder / "model", folder / "exported"


@pytest.fixture(scope="module", params=["a dense layer", "words beside the states"])
def embedder(request, make_model, tmp_path_factory):
    """A folder of sentence-transformers with longer vectors than states, and its ONNX export."""
    folder = tmp_path_factory.mktemp("embedder")
    encoder = save_with_tokenizer(
        make_model("eager", ChineseModernBertModel, **SHAPE), folder / "encoder"
    )
    model = SentenceTransformer(str(encoder), trust_remote_code=True)
    if request.param == "a dense layer":
        widen_vectors(model, 48)
    else:
        put_words_beside(model, 48, 8)
    whiten(model, TEXTS)
    model.append(Normalize())
    model.save_pretrained(str(folder / "model"), create_model_card=False)
    run_export("--model", folder / "model", "--output", folder / "exported", "--formats", "onnx")
    return folder / "model", folder / "exported"


# --- the files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_logits_are_those_of_torch(masked_lm, runtime):
    model, exported = masked_lm
    expected = Runtime.open(model, "torch").logits(TEXTS)
    given = Runtime.open(exported, runtime).logits(TEXTS)
    assert [len(logits) for logits in given][3:] == [230, 300]
    for one, other in zip(expected, given, strict=True):
        assert np.abs(one - other).max() <= TOLERANCE * max(1, np.abs(one).max())


@pytest.mark.parametrize("runtime", ["torch", "onnx", "openvino"])
def test_several_threads_get_the_answers_to_their_own_texts(masked_lm, runtime):
    opened = Runtime.open(masked_lm[0 if runtime == "torch" else 1], runtime)
    expected = [opened.logits([text])[0] for text in TEXTS]

    def ask(number: int) -> bool:
        one, given = expected[number], opened.logits([TEXTS[number]])[0]
        same = given.shape == one.shape
        return same and np.abs(given - one).max() <= TOLERANCE * np.abs(one).max()

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(ask, [number % len(TEXTS) for number in range(80)]))


def test_an_openvino_that_computes_wrongly_is_refused(monkeypatch):
    old = SimpleNamespace(__version__="2025.4.1-20426-82bbf0292c5-releases/2025/4")
    monkeypatch.setitem(sys.modules, "openvino", old)
    with pytest.raises(ImportError, match=r"openvino 2025\.4\.1.* install 2026\.0 or newer"):
        openvino_core.__wrapped__()


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_int8_is_close_and_small(masked_lm, runtime):
    model, exported = masked_lm
    expected = Runtime.open(model, "torch").logits(TEXTS)
    given = Runtime.open(exported, runtime, int8=True).logits(TEXTS)
    for one, other in zip(expected, given, strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] >= 0.99
        assert np.abs(one - other).max() > TOLERANCE  # it is another file
    sizes = [export.weight_of(exported / FILES[runtime, int8]) for int8 in (False, True)]
    # A quarter, and what stays in fp32: a bias and a scale for each row of 32 numbers.
    assert sizes[1] <= (1 / 4 + 2 / 32 + 0.04) * sizes[0]


def test_embeddings_and_decoder_are_stored_once(masked_lm):
    model, exported = masked_lm
    parameters = (model / "model.safetensors").stat().st_size
    graph = 600_000  # nodes and their names
    assert (exported / FILES["onnx", False]).stat().st_size <= parameters + graph


def test_masks_are_filled_alike(masked_lm):
    model, exported = masked_lm
    expected = Runtime.open(model, "torch").fill_masks(TEXTS)
    given = Runtime.open(exported, "onnx").fill_masks(TEXTS)
    assert [len(masks) for masks in given] == [0, 2, 0, 0, 0]
    for one, other in zip(expected[1], given[1], strict=True):
        assert [fill.token for fill in one] == [fill.token for fill in other]
        assert one[0].probability == pytest.approx(other[0].probability, rel=1e-3)


def test_vectors_are_those_of_sentence_transformers(embedder):
    model, exported = embedder
    expected = SentenceTransformer(str(model), trust_remote_code=True).encode(TEXTS)
    assert expected.shape == (len(TEXTS), 48)
    for runtime in (Runtime.open(model, "torch"), Runtime.open(exported, "onnx")):
        vectors = runtime.vectors(TEXTS)
        assert np.abs(vectors - expected).max() <= TOLERANCE
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)


@pytest.mark.parametrize(
    ("head", "outputs"),
    [
        ("SequenceClassification", {"logits": (3, 2)}),
        ("TokenClassification", {"logits": (3, 140, 2)}),
        ("QuestionAnswering", {"start_logits": (3, 140), "end_logits": (3, 140)}),
        ("MultipleChoice", {"logits": (1, 3)}),
    ],
)
def test_a_file_of_each_head_gives_what_torch_gives(make_model, tmp_path, head, outputs):
    cls = getattr(modeling, f"ChineseModernBertFor{head}")
    length = 64 if head == "MultipleChoice" else 140  # a context shorter than the example, too
    shape = SHAPE | ({"max_position_embeddings": 64} if length == 64 else {})
    save_with_tokenizer(make_model("eager", cls, **shape), tmp_path / "model")
    exported = tmp_path / "exported"
    run_export("--model", tmp_path / "model", "--output", exported, "--formats", "onnx")
    ids = np.random.default_rng(0).integers(5, SHAPE["vocab_size"], (3, length))
    mask = np.ones_like(ids)
    mask[0, 40:] = mask[1, : length // 2] = 0
    if head == "MultipleChoice":
        ids, mask = ids[None], mask[None]
    expected = Runtime.open(tmp_path / "model", "torch").forward(ids, mask)
    given = Runtime.open(exported, "onnx").forward(ids, mask)
    assert {name: output.shape for name, output in given.items()} == outputs
    for name, output in given.items():
        real = mask == 1 if output.shape == mask.shape or output.ndim == 3 else ...
        assert np.abs(output - expected[name])[real].max() <= TOLERANCE


def test_what_the_hubs_tools_look_for_lies_beside(masked_lm, embedder):
    _, exported = masked_lm
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", *FILES.values()):
        assert (exported / name).is_file(), name
    assert (exported / "openvino/openvino_model.bin").is_file()
    assert not list(exported.glob("*.safetensors"))
    assert not [path for path in exported.iterdir() if path.name.startswith((".", "tmp"))]
    for name in ("modules.json", "2_Pooling/config.json"):
        assert (embedder[1] / name).is_file(), name
    assert not (embedder[1] / "openvino").exists()
    # sentence-transformers would look for its weights, and apply it a second time.
    modules = json.loads((embedder[1] / "modules.json").read_text())
    assert [each["path"] for each in modules] == ["", "2_Pooling", "3_Dense", "4_Normalize"]
    assert (embedder[1] / "3_Dense/model.safetensors").is_file()
    assert not list(embedder[1].glob("1_*"))


def test_the_report_and_the_card_have_a_line_for_each_file(masked_lm):
    _, exported = masked_lm
    report = json.loads((exported / "export_report.json").read_text())
    names = [file["name"] for file in report["files"]]
    assert names == ["torch", *FILES.values()]
    for file in report["files"]:
        assert file["times"]["milliseconds"] > 0
        assert file["times"]["tokens_per_second"] > 0
    for file in report["files"][1:]:
        assert file["size"] == export.weight_of(exported / file["name"])
        assert file["agreement"]["cosine"] > 0.99
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n---\n")
    assert all(f"| {name} |" in card for name in names)


# --- what does not hold up ----------------------------------------------------------------------


@pytest.fixture
def converted(masked_lm, monkeypatch):
    """The command, but for the conversion: its files are there already."""
    _, exported = masked_lm
    monkeypatch.setattr(
        export,
        "convert",
        lambda *arguments: [
            shutil.copytree(exported / kind, arguments[-1] / kind) for kind in ("onnx", "openvino")
        ],
    )
    return masked_lm[0]


def test_nan_and_labels_of_another_size_are_far_from_torch(masked_lm):
    folder = open_model_folder(masked_lm[0])
    classifier = replace(folder, head="ForSequenceClassification")
    batches = batches_for(folder)[1:3]

    def sides(name: str, shape) -> tuple:
        return (
            lambda ids, mask: {name: np.ones(shape(ids), dtype=np.float32)},
            lambda ids, mask: {name: np.full(shape(ids), np.nan if len(ids) > 1 else 1.0)},
        )

    apart = compare(folder, *sides("logits", lambda ids: (*ids.shape, 7)), batches)
    assert np.isnan(apart.difference) and not apart.holds(int8=False)

    def one(ids, mask):
        return {"logits": np.arange(len(ids), dtype=np.float32)[:, None] - 1}

    def other(ids, mask):  # each with the right sign
        return {"logits": np.sign(one(ids, mask)["logits"]) * [[9.0]] + (len(ids) == 1)}

    assert not compare(classifier, one, other, batches).holds(int8=True)


def test_each_output_has_a_bound_of_its_own_size(masked_lm):
    """A vector of length 1 has small numbers beside the states of the tokens."""
    folder = replace(open_model_folder(masked_lm[0]), pooling=Pooling("mean", True))
    size = {"token_embeddings": 20.0, "sentence_embedding": 0.2}

    def side(error: float):
        def forward(ids, mask):
            shapes = {"token_embeddings": (*ids.shape, 3), "sentence_embedding": (len(ids), 3)}
            return {
                name: np.full(shape, size[name]) + error * (name == "sentence_embedding")
                for name, shape in shapes.items()
            }

        return forward

    apart = compare(folder, side(0.0), side(1e-4), batches_for(folder)[:2])
    assert apart.largest == pytest.approx(0.2)
    assert not apart.holds(int8=False)
    assert compare(folder, side(0.0), side(1e-6), batches_for(folder)[:2]).holds(int8=False)


def test_an_int8_file_that_is_not_close_is_left_out(converted, tmp_path, monkeypatch, capsys):
    apart = Agreement(difference=0.0, largest=1.0, cosine=0.9)
    monkeypatch.setattr(export, "compare", lambda *_: apart)
    run_export("--model", converted, "--output", tmp_path / "out", "--int8")
    for (_, int8), name in FILES.items():
        assert (tmp_path / "out" / name).exists() is not int8
    assert not (tmp_path / "out/openvino/openvino_model_qint8_quantized.bin").exists()
    assert capsys.readouterr().out.count("not close enough, left out") == 2


def test_a_file_that_differs_from_torch_stops_the_export(converted, tmp_path, monkeypatch):
    apart = Agreement(difference=0.01, largest=10.0, cosine=1.0)
    monkeypatch.setattr(export, "compare", lambda *_: apart)
    with pytest.raises(SystemExit, match=r"model.onnx differs from torch by 1.0e-02"):
        run_export("--model", converted, "--output", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# --- bad input ----------------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path):
    """Returns `refused(*arguments)`: the message of a command that writes nothing."""

    def refused(model, *arguments) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as ended:
            run_export("--model", model, "--output", tmp_path / "out", *arguments)
        assert sorted(tmp_path.rglob("*")) == before
        return str(ended.value)

    return refused


@pytest.fixture
def folder(masked_lm, tmp_path):
    """A copy of the model folder, to be spoiled."""
    return Path(shutil.copytree(masked_lm[0], tmp_path / "model"))


def change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_an_output_folder_that_holds_something_is_refused(masked_lm, tmp_path, refused):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    assert "out is not an empty folder" in refused(masked_lm[0])


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_folder_without_a_model_is_refused(folder, refused, name):
    (folder / name).unlink()
    assert f"is no model folder: it has no {name}" in refused(folder)


def test_missing_weights_are_refused(folder, refused):
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in refused(folder)


def test_a_head_that_the_weights_lack_is_named(folder, refused):
    change(folder / "config.json", architectures=["ChineseModernBertForSequenceClassification"])
    message = refused(folder)
    assert f"{folder}: its weights lack classifier.bias, classifier.weight (2 in all)" in message


def test_outputs_that_a_folder_asks_for_do_no_harm(folder):
    expected = Runtime.open(folder, "torch").logits(TEXTS[:1])
    asked = {"output_hidden_states": True, "output_attentions": True, "return_dict": False}
    change(folder / "config.json", **asked)
    assert np.array_equal(Runtime.open(folder, "torch").logits(TEXTS[:1]), expected)


def test_a_tokenizer_that_knows_none_of_the_texts_can_be_exported(folder):
    Tokenizer(BPE({"A": 0, "C": 1}, [])).save(str(folder / "tokenizer.json"))
    opened = open_model_folder(folder)
    assert all(mask.any(axis=-1).all() for _, mask in batches_for(opened))
    timed(opened, {"torch": lambda ids, mask: mask[:, 0].any() or pytest.fail("no token")})


def test_another_model_is_sent_to_the_conversion(folder, refused):
    change(folder / "config.json", model_type="modernbert")
    message = refused(folder)
    assert "model_type is 'modernbert'" in message
    assert "serving.convert_modernbert" in message


@pytest.mark.parametrize("architectures", [None, [], ["ChineseModernBertForPoetry"]])
def test_an_unknown_head_is_refused(folder, refused, architectures):
    change(folder / "config.json", architectures=architectures)
    assert "expected one of ChineseModernBertModel" in refused(folder)


def test_modules_that_do_something_else_are_refused(folder, refused):
    write_modules(folder, "Transformer", "Normalize", "Pooling")
    assert "the modules are Transformer, Normalize, Pooling" in refused(folder)


def test_prompts_are_refused(folder, refused):
    write_modules(folder, "Transformer", "Pooling")
    settings = {"prompts": {"query": "查询：", "document": ""}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    assert "puts prompts before its texts ({'query': '查询：'})" in refused(folder)


def test_another_dense_layer_is_refused(folder, refused):
    write_modules(folder, "Transformer", "Dense", "Pooling")
    (folder / "1_Dense").mkdir()
    settings = {"activation_function": "torch.nn.modules.activation.Tanh"}
    (folder / "1_Dense/config.json").write_text(json.dumps(settings))
    message = refused(folder)
    assert "activation_function is 'torch.nn.modules.activation.Tanh'" in message
    assert "'torch.nn.modules.activation.GELU' is supported" in message
    gelu = {"activation_function": "torch.nn.modules.activation.GELU"}
    (folder / "1_Dense/config.json").write_text(json.dumps(gelu))
    assert "module_input_name is 'sentence_embedding'" in refused(folder)


def test_a_dense_layer_with_a_residual_or_states_made_unit_length_are_refused(folder, refused):
    write_modules(folder, "Transformer", "Pooling", "Dense", "Normalize")
    for number, kind in ((2, "Dense"), (3, "Normalize")):
        (folder / f"{number}_{kind}").mkdir()
    dense = {"activation_function": "torch.nn.modules.linear.Identity"}  # as older versions write
    file = folder / "2_Dense/config.json"
    file.write_text(json.dumps(dense | {"use_residual": True}))
    assert f"{file}: use_residual is true" in refused(folder)
    file.write_text(json.dumps(dense))
    assert open_model_folder(folder).pooling.linear == file.parent
    file = folder / "3_Normalize/config.json"
    file.write_text(json.dumps({"module_input_name": "token_embeddings"}))
    assert f"{file}: module_input_name is 'token_embeddings'" in refused(folder)


def test_a_reranker_is_what_its_head_is(masked_lm, folder):
    modules = [{"idx": 0, "name": "0", "path": "", "type": "st.Transformer"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    opened = open_model_folder(folder)
    assert (opened.head, opened.pooling) == ("ForMaskedLM", None)
    export.copy_beside(opened, folder / "beside")
    assert json.loads((folder / "beside/modules.json").read_text()) == modules


def test_texts_are_cut_where_the_folder_says(folder):
    def longest() -> tuple[int, int]:
        opened = open_model_folder(folder)
        return opened.longest_text, len(opened.tokenizer().encode(SENTENCE * 40).ids)

    assert longest() == (300, 300)
    change(folder / "tokenizer_config.json", model_max_length=50)
    assert longest() == (50, 50)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    assert longest() == (32, 32)


def test_texts_are_cut_at_the_side_that_the_folder_names(folder):
    change(folder / "tokenizer_config.json", model_max_length=6, truncation_side="left")
    tokenizer = ChineseModernBertTokenizer.from_pretrained(folder)
    expected = tokenizer(SENTENCE, truncation=True)["input_ids"]
    assert open_model_folder(folder).tokenizer().encode(SENTENCE).ids == expected


def test_special_tokens_in_a_text_are_split_where_the_folder_says(folder):
    text = "他写了[SEP]两个字"
    for splits in (False, True):
        change(folder / "tokenizer_config.json", split_special_tokens=splits)
        expected = ChineseModernBertTokenizer.from_pretrained(folder)(text)["input_ids"]
        assert (3 in expected[1:-1]) is not splits
        assert open_model_folder(folder).tokenizer().encode(text).ids == expected


def test_what_a_configuration_leaves_out_has_its_default(folder):
    file = folder / "config.json"
    content = json.loads(file.read_text())
    for key in ("max_position_embeddings", "mask_token_id", "pad_token_id", "vocab_size"):
        del content[key]
    file.write_text(json.dumps(content))
    opened = open_model_folder(folder)
    assert (opened.max_tokens, opened.pad_id) == (8192, 0)
    assert opened.config["mask_token_id"] == 4 and opened.config["vocab_size"] == 32_000


def test_weights_of_another_size_are_named(folder, monkeypatch):
    change(folder / "config.json", hidden_size=64)
    with pytest.raises(OSError, match=r"its weights do not fit its config\.json"):
        open_model_folder(folder).load()

    def no_memory(*_, **__):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr("transformers.AutoModelForMaskedLM.from_pretrained", no_memory)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        open_model_folder(folder).load()


def test_a_card_that_cannot_be_read_is_told_before_the_work(folder, refused, monkeypatch):
    (folder / "README.md").write_bytes("模型说明".encode("gbk"))
    monkeypatch.setattr(export, "convert", lambda *_: pytest.fail("converted"))
    assert "README.md: not UTF-8" in refused(folder)


@pytest.mark.parametrize("key", ["do_lower_case", "processing_kwargs"])
def test_texts_that_are_changed_before_they_are_read_are_refused(folder, refused, key):
    write_modules(folder, "Transformer", "Pooling")
    (folder / "sentence_bert_config.json").write_text(json.dumps({key: {"text": True}}))
    assert f"{key} is {{'text': True}}" in refused(folder)


def test_a_damaged_tokenizer_is_named(folder, refused):
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer.json is no file of a tokenizer" in refused(folder)


def test_another_pooling_is_refused(folder, refused):
    write_modules(folder, "Transformer", "Pooling", pooling="max")
    assert "the pooling is 'max'" in refused(folder)


def test_poolings_are_known_by_their_older_names_too(folder, refused):
    """sentence-transformers wrote a key for each, and still reads them."""
    write_modules(folder, "Transformer", "Pooling")
    file = folder / "1_Pooling/config.json"
    older = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": False}
    for name, mode in (("cls_token", "cls"), ("mean_tokens", "mean"), ("none", "mean")):
        file.write_text(json.dumps(older | {f"pooling_mode_{name}": name != "none"}))
        assert open_model_folder(folder).pooling.mode == mode
    both = {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}
    file.write_text(json.dumps(older | both))
    assert "the pooling is 'cls and pooling_mode_max_tokens'" in refused(folder)


def test_a_missing_package_is_named_before_work_starts(masked_lm, refused, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    message = refused(masked_lm[0], "--formats", "openvino")
    assert "not installed: onnx, onnxscript, openvino." in message
    assert ".[export]" in message


def test_an_unknown_format_is_refused(masked_lm, refused, capsys):
    refused(masked_lm[0], "--formats", "tflite")
    assert "invalid choice: 'tflite'" in capsys.readouterr().err


# --- the runtime --------------------------------------------------------------------------------


def test_results_are_in_the_order_of_the_texts_whatever_the_batches(masked_lm):
    model, _ = masked_lm
    runtime = Runtime.open(model, "torch")
    alone = [runtime.logits([text])[0] for text in TEXTS]
    runtime.batch_size = 2
    widths = [ids.shape for _, ids, _ in runtime.batches(TEXTS)]
    assert [rows for rows, _ in widths] == [2, 2, 1]
    assert sorted(width for _, width in widths) == [width for _, width in widths]
    for one, other in zip(alone, runtime.logits(TEXTS), strict=True):
        assert np.abs(one - other).max() <= TOLERANCE * np.abs(one).max()


def test_a_runtime_says_what_it_cannot_do(masked_lm, embedder):
    model, _ = masked_lm
    with pytest.raises(ValueError, match="choose torch, onnx, openvino"):
        Runtime.open(model, "tflite")
    with pytest.raises(ValueError, match="no int8 in torch"):
        Runtime.open(model, "torch", int8=True)
    with pytest.raises(ValueError, match=r"serving\.export"):
        Runtime.open(model, "onnx")
    with pytest.raises(ValueError, match="gives logits, no sentence_embedding"):
        Runtime.open(model, "torch").vectors(TEXTS)
    with pytest.raises(ValueError, match="no MLM head"):
        Runtime.open(embedder[1], "onnx").fill_masks(TEXTS)


def test_no_texts_have_no_vectors(embedder):
    assert Runtime.open(embedder[1], "onnx").vectors([]).shape == (0, 48)


# --- what is built on it ------------------------------------------------------------------------


def test_the_benchmark_has_a_line_for_each_file(masked_lm, tmp_path, monkeypatch, capsys):
    model, exported = masked_lm
    monkeypatch.setattr(runtimes, "LATENCY", (1, 9))
    monkeypatch.setattr(runtimes, "THROUGHPUT", (2, 9))
    command = ["--model", model, "--exported", exported, "--rounds", 1, "--output", tmp_path]
    run_main(runtimes, *command)
    lines = capsys.readouterr().out.split("\n")
    names = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert names == [
        *("", "torch fp32", "torch bf16"),
        *("onnx fp32", "onnx int8", "openvino fp32", "openvino int8"),
    ]
    columns = json.loads((tmp_path / "runtimes.json").read_text())["columns"]
    assert all(value > 0 for values in columns.values() for value in values.values())


def test_the_benchmark_counts_masked_tokens_that_are_named_right(masked_lm):
    side = Runtime.open(masked_lm[0], "torch")
    ids = np.array([2, 4, 700, 4, 3])
    named = side.forward(ids[None], np.ones((1, 5), dtype=np.int64))["logits"][0].argmax(-1)
    right = np.array([-100, named[1], -100, named[3], -100])
    wrong = np.array([-100, named[1], -100, named[3] + 1, -100])
    assert runtimes.masked_accuracy(side, [(ids, right)]) == 1
    assert runtimes.masked_accuracy(side, [(ids, right), (ids, wrong)]) == 0.75


def test_hostile_texts_are_always_the_same_and_hold_everything():
    texts = hostile_texts(1000)
    assert texts == hostile_texts(1000)
    joined = "".join(texts)
    assert set("".join(ALPHABETS)) <= set(joined)
    assert all(token in joined for token in SPELLED_OUT)
    assert "" in texts


def test_the_runtime_reads_hostile_texts_as_the_tokenizer_does(masked_lm):
    runtime = Runtime.open(masked_lm[0], "torch")
    tokenizer = ChineseModernBertTokenizer.from_pretrained(ROOT)
    for text in hostile_texts(200):
        assert runtime.tokenizer.encode(text).ids == tokenizer(text)["input_ids"][:300]


def test_the_cases_for_javascript_hold_tokens_and_fills(masked_lm, tmp_path):
    _, exported = masked_lm
    run_main(javascript_cases, "--exported", exported, "--output", tmp_path / "cases.json")
    cases = json.loads((tmp_path / "cases.json").read_text())
    assert len(cases["tokens"]) == 1000
    runtime = Runtime.open(exported, "onnx")
    for case in cases["fills"]:
        (masks,) = runtime.fill_masks([case["text"]])
        assert case["tokens"]["fp32"] == [[fill.token for fill in mask] for mask in masks]
        assert len(case["tokens"]["q8"]) == len(masks) > 0


def test_cases_for_javascript_are_not_cut_at_the_context(masked_lm, tmp_path, monkeypatch):
    monkeypatch.setattr(javascript_cases, "hostile_texts", lambda count: ["雨" * 400])
    run_main(javascript_cases, "--exported", masked_lm[1], "--output", tmp_path / "cases.json")
    (case,) = json.loads((tmp_path / "cases.json").read_text())["tokens"]
    assert len(case["ids"]) == 402 > SHAPE["max_position_embeddings"]
