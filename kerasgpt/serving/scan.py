"""Owns which ops a SavedModel may hold. Not: loading it."""

import importlib
import pathlib

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from kerasgpt.config import InputError

# Many times the largest graph of ours (1 MB), and little memory.
MAX_GRAPH_BYTES = 1 << 28

# TensorFlow generates a module of ops for each of its files of definitions.
# Left out are those of data, files, the network, other devices and Python.
_FAMILIES = """
    array bitwise clustering count ctc image linalg list lookup manip map math
    nn optional parsing ragged_array ragged_conversion ragged_math random
    random_index_shuffle resource_variable rnn set sparse special_math spectral
    state stateful_random stateless_random string uniform_quant
"""


def _family(name, *, suffix=""):
    module = importlib.import_module(
        f"tensorflow.python.ops.gen_{name}_ops{suffix}"
    )
    return {
        one
        for one in dir(tf.raw_ops)
        if one[0].isupper() and hasattr(module, one)
    }


_CONTROL = """
    Assert Case ControlTrigger Enter Exit FakeParam For If LoopCond Merge
    NextIteration NoOp PartitionedCall RefEnter RefExit RefMerge
    RefNextIteration RefSelect RefSwitch StatefulPartitionedCall StatelessCase
    StatelessIf StatelessWhile Switch ToBool While
"""
_DATA_FLOW = {
    name
    for name in _family("data_flow")
    if name.startswith(("Dynamic", "ParallelDynamic", "TensorArray"))
}
_TEXT = """
    CaseFoldUTF8 ConstrainedSequence FastBertNormalize
    FastWordpieceTokenizeWithOffsets FindSourceOffsets MaxSpanningTree
    NormalizeUTF8 NormalizeUTF8WithOffsetsMap PhraseTokenize
    RegexSplitWithOffsets RougeL SentenceFragments SentenceFragmentsV2
    SentencepieceDetokenizeOp SentencepieceIdToStringOp SentencepieceOp
    SentencepieceStringToIdOp SentencepieceTokenizeOp
    SentencepieceTokenizeWithOffsetsOp SentencepieceVocabSizeOp
    SplitMergeTokenizeWithOffsets TFText>BoiseTagsToOffsets
    TFText>ByteSplitByOffsets TFText>ByteSplitWithOffsets
    TFText>FastSentencepieceDetokenize TFText>FastSentencepieceTokenize
    TFText>FastWordpieceDetokenize TFText>NgramsStringJoin
    TFText>OffsetsToBoiseTags TFText>PhraseDetokenize
    TFText>RoundRobinGenerateMasks TFText>RoundRobinTrim TFText>Utf8Binarize
    TFText>WhitespaceTokenizeWithOffsetsV2 TokenizerFromLogits
    UnicodeScriptTokenizeWithOffsets WhitespaceTokenizeWithOffsets
    WordpieceTokenizeWithOffsets
"""
# Where a value comes from that cannot be followed.
_UNKNOWN = [("", None)]
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
# Each reads the file that its input of this number names.
_FILENAME = {
    "RestoreV2": 0,
    "InitializeTableFromTextFile": 1,
    "InitializeTableFromTextFileV2": 1,
}
_WRITERS = {"MergeV2Checkpoints", "SaveV2"}

MODEL_OPS = frozenset().union(
    *map(_family, _FAMILIES.split()),
    _family("stateless_random", suffix="_v2"),
    _CONTROL.split(),
    _DATA_FLOW,
    _TEXT.split(),
    # It joins strings.
    ["ShardedFilename"],
    # The first maps a file into memory.
) - {"ImmutableConst", *_FILENAME}


def check_ops(path):
    """Refuses a SavedModel that does more than compute on tensors.

    A SavedModel is a program. Allowed are the ops of TensorFlow and TF Text
    that compute, keep state or steer (`MODEL_OPS`); reading variables and
    assets, but only those that the loader names; and writing variables, but
    only where no signature leads. So a request touches no file and no
    network, runs no Python and needs no XLA. What a graph costs in time and
    memory is not looked at.

    Args:
        path: str or Path. The folder of a version.

    Raises:
        InputError: that names the op, or says what else is wrong.
    """
    for graph in _graphs(path):
        graph.check()


def _graphs(path):
    file = pathlib.Path(path) / "saved_model.pb"
    try:
        if file.stat().st_size > MAX_GRAPH_BYTES:
            raise InputError(
                f"{file}: has more than the {MAX_GRAPH_BYTES} bytes allowed."
            )
        saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file.") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}.") from (
            error
        )
    except DecodeError as error:
        raise InputError(f"{file}: damaged: not a SavedModel.") from error
    if not any(one.signature_def for one in saved.meta_graphs):
        raise InputError(f"{file}: damaged: it has no signature.")
    return [_Graph(file, one) for one in saved.meta_graphs]


def _name(reference):
    """Returns the node or argument meant by "a", "a:0", "a:y:0" or "^a"."""
    return reference.removeprefix("^").partition(":")[0]


class _Graph:
    """The nodes of a graph, by (function, name); the main graph is ""."""

    def __init__(self, file, meta_graph):
        self.file = file
        self.meta_graph = meta_graph
        library = meta_graph.graph_def.library.function
        self.functions = {one.signature.name: one for one in library}
        scopes = [("", meta_graph.graph_def.node)]
        scopes += [(one.signature.name, one.node_def) for one in library]
        self.nodes = {
            (scope, node.name): node
            for scope, nodes in scopes
            for node in nodes
        }
        if len(self.nodes) != sum(len(nodes) for _, nodes in scopes):
            raise InputError(f"{file}: damaged: two nodes have one name.")
        self.calls = {place: [] for place in self.nodes}
        self.callers = {name: [] for name in self.functions}
        for place, node in self.nodes.items():
            values = node.attr.values()
            named = [one for v in values for one in (v.func, *v.list.func)]
            for name in {node.op, *(one.name for one in named)}:
                if name in self.functions:
                    self.calls[place].append(name)
                    self.callers[name].append(place)

        # Python's loader calls functions by the objects that hold them.
        objects = meta_graph.object_graph_def
        names = set(objects.concrete_functions)
        for one in objects.nodes:
            names |= set(one.function.concrete_functions)
            names.add(one.bare_concrete_function.concrete_function_name)
        captures = dict(objects.concrete_functions)
        self.object_functions = {
            name: captures[name].bound_inputs if name in captures else ()
            for name in names & set(self.functions)
        }

    def check(self):
        saver = self.meta_graph.saver_def
        filename = {_name(saver.filename_tensor_name)}
        assets = self.assets()
        requests = self.requested()
        served = requests | self.started()
        loaded = served | self.run_by([saver.restore_op_name])
        for place, node in self.nodes.items():
            self.check_xla(place, node.op, node.attr)
            if node.op in _WRITERS:
                if place in loaded:
                    self.refuse(place, node.op, "only a saver writes files")
            elif node.op in _FILENAME:
                is_restore = node.op == "RestoreV2"
                # What names a file is given by the loader, once.
                if place in (served if is_restore else requests):
                    self.refuse(place, node.op, "only a loader reads files")
                allowed = filename if is_restore else assets
                if not self.origins(place, _FILENAME[node.op]) <= allowed:
                    self.refuse(place, node.op, "it reads any file")
            elif node.op not in self.functions and node.op not in MODEL_OPS:
                self.refuse(place, node.op, "it does not compute on tensors")
        for name, function in self.functions.items():
            self.check_xla((name, ""), name, function.attr)

    def refuse(self, place, op, reason):
        scope, name = place
        where = f"in function {scope}" if scope else f"at node {name}"
        raise InputError(
            f"{self.file}: the op {op} {where} is not allowed: {reason}."
        )

    def check_xla(self, place, op, attributes):
        called = [
            one
            for value in attributes.values()
            for one in (value.func, *value.list.func)
        ]
        if op.startswith("Xla") or any(
            "_XlaMustCompile" in one and one["_XlaMustCompile"].b
            for one in (attributes, *(one.attr for one in called))
        ):
            self.refuse(place, op, "it needs XLA, which servers switch off")

    def assets(self):
        """Returns the nodes that hold the path of an asset."""
        folder = (self.file.parent / "assets").resolve()
        assets = list(self.meta_graph.asset_file_def)
        collections = self.meta_graph.collection_def
        if "saved_model_assets" in collections:
            # Where TensorFlow 1 lists them.
            for packed in collections["saved_model_assets"].any_list.value:
                assets.append(meta_graph_pb2.AssetFileDef())
                if not packed.Unpack(assets[-1]):
                    raise InputError(f"{self.file}: damaged: an asset.")
        names = set()
        for asset in assets:
            target = (folder / asset.filename).resolve()
            if not target.is_relative_to(folder):
                raise InputError(
                    f"{self.file}: the asset {asset.filename!r} lies outside "
                    f"of the folder assets."
                )
            names.add(_name(asset.tensor_info.name))
        return names

    def requested(self):
        """Returns the places that a request may run."""
        return self.run_by(
            output.name
            for name, signature in self.meta_graph.signature_def.items()
            if name != "__saved_model_init_op"
            for output in signature.outputs.values()
        )

    def started(self):
        """Returns the places run at the start, or called from Python."""
        graph = self.meta_graph
        start = graph.signature_def.get("__saved_model_init_op")
        names = [one.name for one in start.outputs.values()] if start else []
        # What a collection names is run too; which one differs by age.
        for collection in graph.collection_def.values():
            names += collection.node_list.value
        return self.run_by(names, set(self.object_functions))

    def run_by(self, names, functions=()):
        """Returns the places run for some nodes; a function runs whole."""
        places = set()
        pending = [("", _name(one)) for one in names]
        called, uncalled = set(), set(functions)
        while pending or uncalled:
            if not pending:
                scope = uncalled.pop()
                called.add(scope)
                nodes = self.functions[scope].node_def
                pending = [(scope, node.name) for node in nodes]
                continue
            place = pending.pop()
            if place in self.nodes and place not in places:
                places.add(place)
                inputs = self.nodes[place].input
                pending += [(place[0], _name(one)) for one in inputs]
                uncalled |= set(self.calls[place]) - called
        return places

    def origins(self, place, index):
        """Returns the names of the nodes that an input may come from.

        It is followed through functions to the main graph. `None` stands for
        what cannot be followed.
        """
        found, seen = set(), set()
        pending = self.given(place, index)
        while pending:
            place = pending.pop()
            if place in seen:
                continue
            seen.add(place)
            scope, name = place
            node = self.nodes.get(place)
            if node is None and scope in self.functions:
                pending += self.passed(scope, name)
            elif node is not None and node.op == "Identity":
                pending += self.given(place, 0)
            elif node is not None and node.op == "ReadVariableOp":
                pending += self.assigned(*self.given(place, 0))
            else:
                found.add(None if scope else name)
        return found

    def given(self, place, index):
        inputs = self.nodes[place].input
        if index >= len(inputs):
            return _UNKNOWN
        return [(place[0], _name(inputs[index]))]

    def assigned(self, handle):
        """Returns where a variable's values come from."""
        name = (handle[1] or "").encode()
        variables = [
            place
            for place, node in self.nodes.items()
            if node.op == "VarHandleOp"
            and (node.attr["shared_name"].s or place[1].encode()) == name
        ]
        users = [
            (("", node.name), node.op)
            for node in self.meta_graph.graph_def.node
            if handle[1] in map(_name, node.input)
        ]
        known = ("AssignVariableOp", "ReadVariableOp", "VarIsInitializedOp")
        if variables != [handle] or {op for _, op in users} - set(known):
            return _UNKNOWN
        assigning = [place for place, op in users if op == "AssignVariableOp"]
        return [one for place in assigning for one in self.given(place, 1)]

    def passed(self, scope, argument):
        """Returns where the values of a function's argument come from."""
        arguments = self.functions[scope].signature.input_arg
        names = [one.name for one in arguments]
        is_flat = not any(
            one.number_attr or one.type_list_attr for one in arguments
        )
        if argument not in names or not is_flat:
            return _UNKNOWN
        index = names.index(argument)
        sources = []
        for place in self.callers[scope]:
            is_call = self.nodes[place].op in (*_CALLS, scope)
            sources += self.given(place, index) if is_call else _UNKNOWN
        if scope in self.object_functions:
            objects = self.meta_graph.object_graph_def
            captured = self.object_functions[scope]
            number = index - len(names) + len(captured)
            is_asset = (
                number >= 0
                and captured[number] < len(objects.nodes)
                and objects.nodes[captured[number]].HasField("asset")
            )
            sources += [] if is_asset else _UNKNOWN
        return sources
