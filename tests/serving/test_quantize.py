"""int8 forms of an ONNX model: what they compute, and that no matrix is stored twice."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving.quantize import compress, quantize

ENTRIES, SIZE = 40, 16


def tied_model(bias=True):
    """Embeddings of some ids, and their products with all embeddings."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((ENTRIES, SIZE)).astype(np.float32)
    weights = {"matrix": weight * np.linspace(0.1, 10, ENTRIES, dtype=np.float32)[:, None]}
    if bias:
        weights["bias"] = generator.standard_normal(ENTRIES).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["matrix", "ids"], ["embedded"]),
        helper.make_node("Gemm", ["embedded", *weights], ["logits"], transB=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "tied",
        [value("ids", TensorProto.INT64, [None])],
        [value(name, TensorProto.FLOAT, [None, None]) for name in ("embedded", "logits")],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opset = helper.make_opsetid("", 18)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10), weights


def run(model, ids):
    options = onnxruntime.SessionOptions()
    if any(node.op_type == "MatMulInteger" for node in model.graph.node):
        # As serving/runtime.py has it: without VNNI, these products would saturate.
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(["embedded", "logits"], {"ids": ids})


@pytest.mark.parametrize("form", [quantize, compress])
@pytest.mark.parametrize("bias", [True, False])
def test_int8_rounds_and_no_more(form, bias):
    model, weights = tied_model(bias)
    ids = np.array([3, 0, ENTRIES - 1])
    expected, given = run(model, ids), run(form(model), ids)
    # Half a step of each row's own scale, however small the row.
    step = np.abs(weights["matrix"]).max(1) / 127
    assert (np.abs(given[0] - expected[0]) <= step[ids, None] / 2 + 1e-6).all()
    # Products: the rounding of each input times its weight, and of each weight times its input.
    inputs = given[0]
    step_of_inputs = (max(inputs.max(), 0) - min(inputs.min(), 0)) / 255
    bound = np.abs(weights["matrix"]).sum(1) * step_of_inputs
    bound = bound + np.abs(expected[0]).sum(1)[:, None] * step
    assert (np.abs(given[1] - expected[1]) <= bound + 1e-5).all()
    assert np.corrcoef(given[1].ravel(), expected[1].ravel())[0, 1] > 0.999


@pytest.mark.parametrize("form", [quantize, compress])
def test_embeddings_and_decoder_share_one_int8_matrix(form):
    model, _ = tied_model()
    stored = {tensor.name: tensor.data_type for tensor in form(model).graph.initializer}
    assert stored.pop("matrix_int8") == TensorProto.INT8
    assert "matrix" not in stored
    assert TensorProto.INT8 not in stored.values()


def test_the_given_model_stays_as_it_was():
    model, _ = tied_model()
    before = model.SerializeToString()
    quantize(model)
    assert model.SerializeToString() == before


def test_products_are_of_integers():
    operators = [node.op_type for node in quantize(tied_model()[0]).graph.node]
    assert operators.count("MatMulInteger") == 1
    assert "Gemm" not in operators


@pytest.mark.parametrize("attribute", [{"transB": 0}, {"transB": 1, "alpha": 2.0}])
def test_another_product_is_left_alone(attribute):
    model, weights = tied_model(bias=False)
    square = numpy_helper.from_array(weights["matrix"][:SIZE], "square")
    del model.graph.node[:]
    model.graph.node.extend(
        [
            helper.make_node("Gather", ["matrix", "ids"], ["embedded"]),
            helper.make_node("Gemm", ["embedded", "square"], ["logits"], **attribute),
        ]
    )
    model.graph.initializer.append(square)
    quantized = quantize(model)
    assert "Gemm" in [node.op_type for node in quantized.graph.node]
    assert "square" in [tensor.name for tensor in quantized.graph.initializer]
    onnx.checker.check_model(quantized)


def test_a_model_without_matrices_is_refused():
    node = helper.make_node("Relu", ["x"], ["y"])
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "g", [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])]
    )
    with pytest.raises(ValueError, match="no matrix"):
        quantize(helper.make_model(graph, ir_version=10))
