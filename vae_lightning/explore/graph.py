"""Graphs of networks for the page of ``vae explore``: exported, folded, and packed as JSON."""

import base64
import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vae_lightning.errors import UserError

OPERATORS = frozenset(
    {
        *("abs.default", "add.Tensor", "addmm.default", "alias.default", "cat.default"),
        *("clamp.default", "clone.default", "constant_pad_nd.default", "convolution.default"),
        *("div.Tensor", "exp.default", "expand.default", "expm1.default", "gelu.default"),
        *("getitem", "gt.Scalar", "le.Scalar", "leaky_relu.default", "log.default"),
        *("_softmax.default", "log1p.default", "lt.Scalar", "minimum.default", "mm.default"),
        *("mul.Tensor", "native_layer_norm.default", "neg.default"),
        *("permute.default", "pow.Tensor_Scalar", "reciprocal.default", "relu.default"),
        *(
            "scalar_tensor.default",
            "select.int",
            "sigmoid.default",
            "slice.Tensor",
            "split_with_sizes.default",
        ),
        *("sqrt.default", "squeeze.dims", "sub.Tensor", "sum.dim_IntList", "tanh.default"),
        *("unsqueeze.default", "view.default", "where.self"),
    }
)
"""Operators that ``page/interpreter.js`` knows."""

_LARGEST_HALF = 65504.0


class UnknownOperatorError(UserError):
    """A network uses an operator that the page cannot run.

    Args:
        operator: Name of the operator.
    """

    def __init__(self, operator: str) -> None:
        super().__init__(
            f"the page cannot run the operator {operator}, which a network of this model uses: use "
            "vae traverse and vae interpolate instead"
        )


def export_graph(network: nn.Module, *inputs: Tensor) -> dict[str, Any]:
    """Export a network for the page.

    The network is traced on the meta device, where no code that is specific to a device is taken,
    and what depends on weights alone is computed here.

    Args:
        network: A module that takes ``inputs`` and returns one tensor.
        *inputs: Examples of the inputs, each with one row.

    Returns:
        The graph as plain data: ``inputs``, ``nodes``, ``output`` and packed ``weights``.

    Raises:
        UnknownOperatorError: If the page does not know an operator of it.
        UserError: If the network cannot be exported.
    """
    meta = copy.deepcopy(network).eval().to("meta")
    try:
        program = torch.export.export(meta, tuple(x.to("meta") for x in inputs))
        program = program.run_decompositions()
    except Exception as error:  # whatever the code of a network may raise when it is traced
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"a network of this model cannot be exported for the page ({reason}): it has to be one "
            "that torch.export takes"
        ) from error
    return _Folded(network, program).to_dict()


class _Folded:
    """A graph whose constant parts are computed.

    Args:
        network: The network, with its weights.
        program: What ``torch.export`` made of it.
    """

    def __init__(self, network: nn.Module, program: torch.export.ExportedProgram) -> None:
        self.constants: dict[str, Any] = {}
        self.inputs: list[dict[str, Any]] = []
        self.nodes: list[dict[str, Any]] = []
        self.weights: dict[str, Tensor] = {}
        self.output = ""
        signature = program.graph_signature
        sources = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in sources:
                self.constants[node.name] = tensors[sources[node.name]].detach().cpu().float()
            elif node.op == "placeholder":
                self.inputs.append({"name": node.name, "shape": list(node.meta["val"].shape)})
            elif node.op == "call_function":
                self._add(node)
            elif node.op == "output":
                self.output = node.args[0][0].name

    def _add(self, node: Any) -> None:
        operator = str(node.target).removeprefix("aten.")
        if "getitem" in operator:
            operator = "getitem"
        if "_assert" in operator:  # checks of types and sizes, without a value
            return
        if all(other.name in self.constants for other in node.all_input_nodes):
            self._compute(node)
            return
        if operator == "_to_copy.default":
            operator = "clone.default"  # a change of type or device
        elif operator not in OPERATORS:
            raise UnknownOperatorError(operator)
        arguments = list(node.args)
        if operator == "clone.default":
            arguments = arguments[:1]
        self.nodes.append(
            {
                "name": node.name,
                "operator": operator,
                "arguments": [self._encode(argument) for argument in arguments],
            }
        )

    def _compute(self, node: Any) -> None:
        """Compute a node that does not depend on the inputs."""

        def value(other: torch.fx.Node) -> Any:
            return self.constants[other.name]

        kwargs = {key: item for key, item in node.kwargs.items() if key != "device"}
        arguments = torch.fx.node.map_arg(node.args, value)
        self.constants[node.name] = node.target(*arguments, **torch.fx.node.map_arg(kwargs, value))

    def _encode(self, argument: Any) -> Any:
        """Return an argument as plain data; a constant one becomes a weight."""
        if isinstance(argument, torch.fx.Node):
            if argument.name in self.constants:
                self.weights[argument.name] = self.constants[argument.name]
            return {"node": argument.name}
        if isinstance(argument, list | tuple):
            return [self._encode(item) for item in argument]
        if isinstance(argument, torch.dtype | torch.device | torch.memory_format | torch.layout):
            return None
        return argument

    def to_dict(self) -> dict[str, Any]:
        """Return the graph as plain data."""
        weights = {name: pack(value) for name, value in self.weights.items()}
        return {
            "inputs": self.inputs,
            "nodes": self.nodes,
            "output": self.output,
            "weights": weights,
        }


def pack(x: Tensor) -> dict[str, Any]:
    """Return a tensor as JSON: its type, its shape, and base64 of little-endian numbers.

    Floating-point numbers become float16, or float32 where these would overflow, and integers uint8
    or uint16.
    """
    if x.is_floating_point():
        half = not x.numel() or x.abs().max() <= _LARGEST_HALF
        array = x.contiguous().numpy().astype("<f2" if half else "<f4")
    else:
        array = x.contiguous().numpy().astype("u1" if not x.numel() or x.max() < 256 else "<u2")
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"type": array.dtype.name, "shape": list(x.shape), "data": data}
