"""The operations of ``onnxbench edit``: each a dataclass, a line of a recipe, and a flag of the command line.

``OPERATIONS`` is the one table of them, by the word that recipes use. To add an operation, write its class in the
module of its kind and name it in that module's list here; the recipe reader, the command line, the JSON Schema and
the reference page follow from its fields and docstring.
"""

from __future__ import annotations

from onnxbench.operations._adding import AddWeight
from onnxbench.operations._base import (
    Effect,
    NodeOperation,
    Operation,
    TensorOperation,
    field_form,
    spelled_fields,
    spelled_form,
)
from onnxbench.operations._cleanup import (
    Clean,
    DedupeNames,
    FoldConstants,
    MergeEqual,
    NameNodes,
    RemoveDead,
    Simplify,
    Sort,
    TakeBranches,
)
from onnxbench.operations._constants import ToConstant, ToInitializer, store_constants
from onnxbench.operations._dimensions import MakeBatchDynamic, MakeDynamic, NameDim, SetDim, SetShape
from onnxbench.operations._files import content_digest, files_of
from onnxbench.operations._functions import InlineFunctions, Move, Outline
from onnxbench.operations._insertion import AddNodes, Insert
from onnxbench.operations._interface import (
    AddInput,
    AddOutput,
    RemoveInput,
    RemoveOutput,
    RenameInput,
    RenameOutput,
    ReorderInputs,
    ReorderOutputs,
)
from onnxbench.operations._loops import CountLoops
from onnxbench.operations._marks import Unmark
from onnxbench.operations._model import (
    DeleteMetadata,
    ImportOpset,
    RemoveOpsetImport,
    SetDoc,
    SetDomain,
    SetGraphName,
    SetIrVersion,
    SetMetadata,
    SetModelVersion,
    SetOpset,
    SetProducer,
)
from onnxbench.operations._nodes import DeleteAttribute, RenameNode, SetAttribute, SetOp
from onnxbench.operations._precision import SetPrecision
from onnxbench.operations._quantization import Dequantize, SymmetricQuantization
from onnxbench.operations._removal import Delete, Replace
from onnxbench.operations._retyping import RetypeInput, RetypeOutput
from onnxbench.operations._rewrite import Rewrite
from onnxbench.operations._sizes import ResizeBySizes
from onnxbench.operations._stored import Externalize, InlineWeights, ShareEqualWeights, StripWeights
from onnxbench.operations._tensors import RenameNodes, RenameTensor, RenameTensors
from onnxbench.operations._transposition import TransposeWeight
from onnxbench.operations._values import CastWeight, SetWeight
from onnxbench.operations._wiring import Duplicate, Redirect, Rewire

__all__ = [
    "OPERATIONS",
    "AddInput",
    "AddNodes",
    "AddOutput",
    "AddWeight",
    "CastWeight",
    "Clean",
    "CountLoops",
    "DedupeNames",
    "Delete",
    "DeleteAttribute",
    "DeleteMetadata",
    "Dequantize",
    "Duplicate",
    "Effect",
    "Externalize",
    "FoldConstants",
    "ImportOpset",
    "InlineFunctions",
    "InlineWeights",
    "Insert",
    "MakeBatchDynamic",
    "MakeDynamic",
    "MergeEqual",
    "Move",
    "NameDim",
    "NameNodes",
    "NodeOperation",
    "Operation",
    "Outline",
    "Redirect",
    "RemoveDead",
    "RemoveInput",
    "RemoveOpsetImport",
    "RemoveOutput",
    "RenameInput",
    "RenameNode",
    "RenameNodes",
    "RenameOutput",
    "RenameTensor",
    "RenameTensors",
    "ReorderInputs",
    "ReorderOutputs",
    "Replace",
    "ResizeBySizes",
    "RetypeInput",
    "RetypeOutput",
    "Rewire",
    "Rewrite",
    "SetAttribute",
    "SetDim",
    "SetDoc",
    "SetDomain",
    "SetGraphName",
    "SetIrVersion",
    "SetMetadata",
    "SetModelVersion",
    "SetOp",
    "SetOpset",
    "SetPrecision",
    "SetProducer",
    "SetShape",
    "SetWeight",
    "ShareEqualWeights",
    "Simplify",
    "Sort",
    "StripWeights",
    "SymmetricQuantization",
    "TakeBranches",
    "TensorOperation",
    "ToConstant",
    "ToInitializer",
    "TransposeWeight",
    "Unmark",
    "content_digest",
    "field_form",
    "files_of",
    "spelled_fields",
    "spelled_form",
    "store_constants",
]

_CLASSES: tuple[type[Operation], ...] = (
    SetOp, SetAttribute, DeleteAttribute, RenameNode, RenameNodes,
    Insert, AddNodes, Delete, Replace, Duplicate, Rewire, Redirect,
    RenameTensor, RenameTensors,
    Rewrite,
    Outline, InlineFunctions, Move,
    Unmark,
    Clean, Simplify, FoldConstants, TakeBranches, CountLoops, MergeEqual, RemoveDead, Sort, DedupeNames, NameNodes,
    SetOpset, SetIrVersion, ImportOpset, RemoveOpsetImport, SetMetadata, DeleteMetadata, SetDoc, SetProducer,
    SetModelVersion, SetDomain, SetGraphName,
    AddInput, RemoveInput, AddOutput, RemoveOutput, ReorderInputs, ReorderOutputs, RenameInput, RenameOutput,
    RetypeInput, RetypeOutput, SetShape, SetDim, NameDim, MakeDynamic, MakeBatchDynamic,
    AddWeight, SetWeight, CastWeight, TransposeWeight, ToConstant, ToInitializer,
    ShareEqualWeights, StripWeights, Externalize, InlineWeights,
    Dequantize, SymmetricQuantization, ResizeBySizes, SetPrecision,
)  # fmt: skip

OPERATIONS: dict[str, type[Operation]] = {operation.word: operation for operation in _CLASSES}
"""Every operation by its word in recipes."""
