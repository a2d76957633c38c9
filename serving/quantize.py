"""int8 forms of an ONNX model: weights by output channel, activations as they come.

    y = x W^T  ~  (s_x s_w) * (q_x q_w^T)

with `q_w` int8 and one `s_w` for each row of W, and `q_x` uint8 with one scale and zero point for a
whole input, found while it runs (DynamicQuantizeLinear). All of it is standard ONNX. A matrix that
is both the embeddings and the decoder is stored once, which onnxruntime's own tool does not do.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

# Operator -> which of its inputs is the matrix of a Linear or an Embedding layer.
_MATRIX = {"Gemm": 1, "Gather": 0}

_LAST_AXIS = "last_axis"


def quantize(model: ModelProto) -> ModelProto:
    """The form with integer products, which ONNX Runtime runs.

    Args:
        model: with its weights, as (out, in) in Gemm nodes, and (entries, size) in Gather nodes.

    Raises:
        ValueError: if it has no such matrix.
    """
    model, matrices = _with_int8_weights(model)
    axis = numpy_helper.from_array(np.array([-1]), _LAST_AXIS)
    model.graph.initializer.append(axis)
    nodes: list[NodeProto] = []
    inputs: dict[str, list[str]] = {}
    for node in model.graph.node:
        if _matrix_of(node) not in matrices:
            nodes.append(node)
        elif node.op_type == "Gather":
            nodes += _rows(node)
        else:
            x = node.input[0]
            if x not in inputs:  # several layers may read the same
                inputs[x] = [f"{x}_{part}" for part in ("rounded", "step", "zero")]
                nodes.append(helper.make_node("DynamicQuantizeLinear", [x], inputs[x]))
            nodes += _product(node, *inputs[x])
    return _finished(model, nodes)


def compress(model: ModelProto) -> ModelProto:
    """The form with int8 weights alone; OpenVINO, which reads it, rounds activations itself.

    Args:
        model: as for `quantize`.

    Raises:
        ValueError: if it has no such matrix.
    """
    model, matrices = _with_int8_weights(model)
    nodes = [
        helper.make_node("DequantizeLinear", [f"{x}_int8", f"{x}_scale"], [f"{x}_exact"], axis=0)
        for x in matrices
    ]
    for node in model.graph.node:
        if (matrix := _matrix_of(node)) in matrices:
            node.input[_MATRIX[node.op_type]] = f"{matrix}_exact"
        nodes.append(node)
    return _finished(model, nodes)


def _with_int8_weights(model: ModelProto) -> tuple[ModelProto, list[str]]:
    """A copy with `NAME_int8` (out, in) and `NAME_scale` (out,) of each matrix, and their names."""
    copy = ModelProto()
    copy.CopyFrom(model)
    initializers = {tensor.name: tensor for tensor in copy.graph.initializer}
    names = dict.fromkeys(filter(None, map(_matrix_of, copy.graph.node)))
    names = [name for name in names if len(getattr(initializers.get(name), "dims", ())) == 2]
    if not names:
        raise ValueError("the model has no matrix of a Linear or Embedding layer to quantize.")
    for name in names:
        weight = numpy_helper.to_array(initializers[name])
        scale = np.maximum(np.abs(weight).max(axis=1), 1e-12).astype(np.float32) / 127
        rounded = np.round(weight / scale[:, None]).clip(-127, 127).astype(np.int8)
        for part, value in (("int8", rounded), ("scale", scale)):
            copy.graph.initializer.append(numpy_helper.from_array(value, f"{name}_{part}"))
    return copy, names


def _matrix_of(node: NodeProto) -> str | None:
    """The name of the matrix that a node multiplies with, or takes rows of, if it may be one."""
    if node.op_type not in _MATRIX:
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    usual = {"transB": 1} if node.op_type == "Gemm" else {"axis": 0}
    others = {"transA": 0, "alpha": 1.0, "beta": 1.0}
    if any(attributes.get(name, 0) != value for name, value in usual.items()):
        return None
    if any(attributes.get(name, value) != value for name, value in others.items()):
        return None
    return node.input[_MATRIX[node.op_type]]


def _rows(node: NodeProto) -> Iterator[NodeProto]:
    """Rows of a matrix, times their scales."""
    (weight, places), out = node.input, node.output[0]
    yield helper.make_node("Gather", [f"{weight}_int8", places], [f"{out}_int8"])
    yield helper.make_node("Cast", [f"{out}_int8"], [f"{out}_rows"], to=TensorProto.FLOAT)
    yield helper.make_node("Gather", [f"{weight}_scale", places], [f"{out}_scales"])
    yield helper.make_node("Unsqueeze", [f"{out}_scales", _LAST_AXIS], [f"{out}_scale"])
    yield helper.make_node("Mul", [f"{out}_rows", f"{out}_scale"], [out])


def _product(node: NodeProto, rounded: str, step: str, zero: str) -> Iterator[NodeProto]:
    """A product of integers, times its scales, plus its bias."""
    _, weight, *bias = node.input
    out = node.output[0]
    product = f"{out}_product" if bias else out
    # A runtime transposes it when it loads the file.
    yield helper.make_node("Transpose", [f"{weight}_int8"], [f"{out}_weight"], perm=[1, 0])
    yield helper.make_node("MatMulInteger", [rounded, f"{out}_weight", zero], [f"{out}_int32"])
    yield helper.make_node("Cast", [f"{out}_int32"], [f"{out}_sums"], to=TensorProto.FLOAT)
    yield helper.make_node("Mul", [step, f"{weight}_scale"], [f"{out}_scale"])
    yield helper.make_node("Mul", [f"{out}_sums", f"{out}_scale"], [product])
    if bias:
        yield helper.make_node("Add", [product, *bias], [out])


def _finished(model: ModelProto, nodes: list[NodeProto]) -> ModelProto:
    """The model with these nodes, without the weights that none of them reads."""
    graph = model.graph
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]  # shapes of what is there no more
    onnx.checker.check_model(model)
    return model
