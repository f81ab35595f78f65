import hypothesis
import pytest
import tensorflow as tf
import tensorflow_text as tf_text
from hypothesis import strategies
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

from kerasgpt.config import InputError
from kerasgpt.serving import scan
from kerasgpt.serving.scan import MODEL_OPS, check_ops


def save(folder, compute, *, spec=None, jit_compile=False, **parts):
    """Writes a SavedModel of one signature, y = compute(module, x)."""
    module = tf.Module()
    for name, value in parts.items():
        setattr(module, name, value)

    @tf.function(
        input_signature=[spec or tf.TensorSpec([None], tf.float32, name="x")],
        jit_compile=jit_compile,
    )
    def serve(x):
        return {"y": compute(module, x)}

    module.serve = serve
    tf.saved_model.save(module, str(folder), signatures=module.serve)
    return folder


def read(folder):
    data = (folder / "saved_model.pb").read_bytes()
    return saved_model_pb2.SavedModel.FromString(data)


def edit(folder, change):
    """Changes the graph of a SavedModel and returns its folder."""
    saved = read(folder)
    change(saved.meta_graphs[0])
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())
    return folder


def function_with(meta_graph, op):
    for function in meta_graph.graph_def.library.function:
        for node in function.node_def:
            if node.op == op:
                return function, node
    raise AssertionError(op)


@pytest.fixture
def weighted(tmp_path):
    """A SavedModel with a variable, and so with a saver."""
    return save(
        tmp_path / "weighted",
        lambda module, x: module.weight * x,
        weight=tf.Variable(2.0),
    )


def save_half_plus_two(folder):
    """Writes a SavedModel as TensorFlow 1 did, with a file of words."""
    v1 = tf.compat.v1
    vocabulary = folder.with_suffix(".txt")
    vocabulary.write_text("a\nb\n")
    with v1.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], name="x")
        words = v1.placeholder(tf.string, [None], name="words")
        half = v1.get_variable("half", initializer=0.5, use_resource=False)
        two = v1.get_variable("two", initializer=2.0, use_resource=True)
        file = tf.constant(str(vocabulary), name="file")
        v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, file)
        table = tf.raw_ops.HashTableV2(
            key_dtype=tf.string, value_dtype=tf.int64
        )
        fill_table = tf.raw_ops.InitializeTableFromTextFileV2(
            table_handle=table, filename=file, key_index=-2, value_index=-1
        )
        numbers = tf.raw_ops.LookupTableFindV2(
            table_handle=table,
            keys=words,
            default_value=tf.constant(-1, tf.int64),
        )
        session.run(v1.global_variables_initializer())
        describe = v1.saved_model.build_tensor_info
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                name: v1.saved_model.build_signature_def(
                    {"given": describe(given)}, {"made": describe(made)}
                )
                for name, given, made in [
                    ("serving_default", x, half * x + two),
                    ("look_up", words, numbers),
                ]
            },
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
            main_op=fill_table,
            saver=v1.train.Saver(sharded=True),
        )
        builder.save()
    return folder


def test_the_list_has_every_text_op_and_no_op_that_touches_files():
    assert {"MatMul", "While", "LookupTableFindV2", "Assign"} <= MODEL_OPS
    assert not {"ReadFile", "WriteFile", "MatchingFiles", "PrintV2"} & MODEL_OPS
    for word in ("Xla", "PyFunc", "Dataset", "Reader", "Summary", "Rpc", "TPU"):
        assert not [name for name in MODEL_OPS if word in name]
    assert not [name for name in MODEL_OPS if not op_def_registry.get(name)]
    assert tf_text.__name__


def test_a_graph_of_tensorflow_1_passes(tmp_path):
    folder = save_half_plus_two(tmp_path / "half_plus_two")
    check_ops(folder)
    loaded = tf.saved_model.load(str(folder)).signatures
    made = loaded["serving_default"](tf.constant([2.0, 3.0]))["made"]
    assert made.numpy().tolist() == [3.0, 3.5]
    made = loaded["look_up"](tf.constant(["b", "c"]))["made"]
    assert made.numpy().tolist() == [1, -1]


def save_word_numbers(folder):
    vocabulary = folder.with_suffix(".txt")
    vocabulary.write_text("a\nb\n")
    initializer = tf.lookup.TextFileInitializer(
        str(vocabulary), tf.string, -2, tf.int64, -1
    )
    return save(
        folder,
        lambda module, x: module.table.lookup(x),
        spec=tf.TensorSpec([None], tf.string, name="x"),
        table=tf.lookup.StaticHashTable(initializer, -1),
    )


def test_ordinary_models_pass(weighted, tmp_path):
    check_ops(weighted)
    check_ops(save_word_numbers(tmp_path / "words"))
    check_ops(
        save(
            tmp_path / "loop",
            lambda _, x: tf.while_loop(
                lambda step, x: step < 3,
                lambda step, x: (step + 1, tf.map_fn(tf.math.square, x)),
                (0, x),
            )[1],
        )
    )


def in_a_branch(act):
    def compute(_, x):
        return tf.cond(
            tf.reduce_any(x > 0), lambda: act(x), lambda: tf.identity(x)
        )

    return compute


def printed(x):
    tf.print(x)
    return x


def written(x):
    tf.io.write_file("/tmp/never", tf.strings.as_string(x[0]))
    return x


@pytest.mark.parametrize(
    ("op", "act"),
    [
        ("EagerPyFunc", lambda x: tf.py_function(lambda y: y, [x], x.dtype)),
        ("PyFunc", lambda x: tf.numpy_function(lambda y: y, [x], x.dtype)),
        (
            "PyFunc",
            lambda x: tf.numpy_function(
                lambda y: y, [x], x.dtype, stateful=False
            ),
        ),
        ("ReadFile", lambda x: tf.strings.to_number([tf.io.read_file("/a")])),
        ("WriteFile", written),
        ("PrintV2", printed),
        (
            "MatchingFiles",
            lambda x: tf.strings.to_number(tf.io.matching_files("/*")),
        ),
        (
            "Dataset",
            lambda x: tf.data.Dataset.from_tensors(x).get_single_element(),
        ),
        (
            "ImmutableConst",
            lambda x: tf.raw_ops.ImmutableConst(
                dtype=tf.float32, shape=[1], memory_region_name="/etc/hosts"
            ),
        ),
        (
            "DecodeProtoV2",
            lambda x: tf.io.decode_proto(
                tf.strings.as_string(x),
                "a.B",
                ["c"],
                [tf.float32],
                descriptor_source="/etc/hosts",
            ).values[0],
        ),
        ("Timestamp", lambda x: x + tf.cast(tf.timestamp(), tf.float32)),
        (
            "RestoreV2",
            lambda x: tf.raw_ops.RestoreV2(
                prefix="/a",
                tensor_names=["b"],
                shape_and_slices=[""],
                dtypes=[tf.float32],
            )[0],
        ),
        (
            "DebugIdentityV2",
            lambda x: tf.raw_ops.DebugIdentityV2(
                input=x, debug_urls=["file:///tmp/never"]
            ),
        ),
    ],
)
def test_what_does_more_than_compute_is_refused(op, act, tmp_path):
    folder = save(tmp_path / "model", in_a_branch(act))
    with pytest.raises(InputError, match=rf"saved_model.pb: the op \w*{op}"):
        check_ops(folder)


def test_what_needs_xla_is_refused(tmp_path):
    double = save(tmp_path / "a", lambda _, x: 2.0 * x, jit_compile=True)
    with pytest.raises(InputError, match="needs XLA"):
        check_ops(double)

    def rename(graph):
        function_with(graph, "Square")[1].op = "XlaDynamicUpdateSlice"

    square = save(tmp_path / "b", lambda _, x: tf.square(x))
    with pytest.raises(InputError, match=r"op XlaDynamicUpdateSlice .* XLA"):
        check_ops(edit(square, rename))

    plain = save(tmp_path / "c", in_a_branch(tf.square))

    def compile_a_call(graph):
        _, node = function_with(graph, "StatelessIf")
        node.attr["then_branch"].func.attr["_XlaMustCompile"].b = True

    with pytest.raises(InputError, match="needs XLA"):
        check_ops(edit(plain, compile_a_call))


def test_an_unknown_op_is_refused(weighted):
    def rename(graph):
        function_with(graph, "Mul")[1].op = "Company>Multiply"

    with pytest.raises(InputError, match="op Company>Multiply in function"):
        check_ops(edit(weighted, rename))


def serve_the_saver(graph):
    saver = graph.saver_def
    signature = graph.signature_def["serving_default"]
    signature.inputs["x"].name = saver.filename_tensor_name
    signature.outputs["y"].name = saver.save_tensor_name


def save_at_the_start(graph):
    start = graph.collection_def["saved_model_main_op"].node_list
    start.value[:] = [graph.saver_def.save_tensor_name.removesuffix(":0")]


def save_while_restoring(graph):
    restore, _ = function_with(graph, "RestoreV2")
    _, merge = function_with(graph, "MergeV2Checkpoints")
    stolen = restore.node_def.add()
    stolen.CopyFrom(merge)
    del stolen.input[:]


def save_from_an_object(graph):
    save_function, _ = function_with(graph, "SaveV2")
    node = graph.object_graph_def.nodes.add()
    node.bare_concrete_function.concrete_function_name = (
        save_function.signature.name
    )


def call_from_an_op(graph):
    save_function, _ = function_with(graph, "SaveV2")
    function, _ = function_with(graph, "Mul")
    function.node_def.add(name="call", op=save_function.signature.name)


def call_by_a_list(graph):
    save_function, _ = function_with(graph, "SaveV2")
    function, _ = function_with(graph, "Mul")
    case = function.node_def.add(name="call", op="Case")
    case.attr["branches"].list.func.add(name=save_function.signature.name)


@pytest.mark.parametrize(
    "change",
    [
        serve_the_saver,
        save_at_the_start,
        save_while_restoring,
        save_from_an_object,
        call_from_an_op,
        call_by_a_list,
    ],
)
def test_no_way_leads_to_the_saver(change, weighted):
    with pytest.raises(InputError, match=r"op \w+ .*only a saver writes files"):
        check_ops(edit(weighted, change))


def restore_from_a_signature(graph):
    function, _ = function_with(graph, "RestoreV2")
    graph.object_graph_def.concrete_functions[
        function.signature.name
    ].SetInParent()


def restore_of_another(graph):
    _, node = function_with(graph, "RestoreV2")
    node.input[0] = "RestoreV2/tensor_names:output:0"


def restore_given_another(graph):
    call = {node.name: node for node in graph.graph_def.node}[
        graph.saver_def.restore_op_name
    ]
    call.input[0] = "Const"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (restore_from_a_signature, "only a loader reads files"),
        (restore_of_another, "it reads any file"),
        (restore_given_another, "it reads any file"),
    ],
)
def test_only_the_loader_reads_variables(change, expected, weighted):
    with pytest.raises(InputError, match=f"RestoreV2 .*{expected}"):
        check_ops(edit(weighted, change))


def forget_assets(graph):
    del graph.asset_file_def[:]
    graph.collection_def.pop("saved_model_assets", None)


def read_a_constant(graph):
    function, node = function_with(graph, "InitializeTableFromTextFileV2")
    path = function.node_def.add(name="path", op="Const")
    path.attr["value"].tensor.string_val.append(b"/etc/passwd")
    node.input[1] = "path:output:0"


def capture_a_constant(graph):
    for node in graph.object_graph_def.nodes:
        if node.HasField("asset"):
            node.constant.operation = "Const"


def assign_a_constant(graph):
    assign = graph.graph_def.node.add(name="again", op="AssignVariableOp")
    assign.input[:] = ["Variable", "Const_1"]


def alias_the_variable(graph):
    handle = graph.graph_def.node.add(name="alias", op="VarHandleOp")
    handle.attr["shared_name"].s = b"Variable"


def hand_out_the_variable(graph):
    graph.graph_def.node.add(name="out", op="Identity", input=["Variable"])


@pytest.mark.parametrize(
    "change",
    [
        forget_assets,
        read_a_constant,
        capture_a_constant,
        assign_a_constant,
        alias_the_variable,
        hand_out_the_variable,
    ],
)
def test_only_assets_are_read(change, tmp_path):
    folder = edit(save_word_numbers(tmp_path / "words"), change)
    with pytest.raises(InputError, match=r"FromTextFileV2 .*reads any file"):
        check_ops(folder)


def test_only_assets_are_read_by_tensorflow_1(tmp_path):
    folder = save_half_plus_two(tmp_path / "model")
    with pytest.raises(InputError, match=r"FromTextFileV2 at .*any file"):
        check_ops(edit(folder, forget_assets))


def test_no_request_reads_assets(tmp_path):
    """The path of an asset is given once; later it is what the graph says."""

    def start_again(graph):
        signature = graph.signature_def["look_up"]
        signature.outputs["made"].name = "InitializeTableFromTextFileV2:0"

    folder = save_half_plus_two(tmp_path / "model")
    with pytest.raises(InputError, match="only a loader reads files"):
        check_ops(edit(folder, start_again))


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "link"])
def test_assets_lie_in_the_folder(name, tmp_path):
    folder = save_word_numbers(tmp_path / "words")
    (folder / "assets" / "link").symlink_to("/etc/passwd")

    def rename(graph):
        graph.asset_file_def[0].filename = name

    with pytest.raises(InputError, match=f"asset '{name}' lies outside"):
        check_ops(edit(folder, rename))


def test_two_nodes_of_one_name_are_refused(weighted):
    def repeat(graph):
        graph.graph_def.node.add(name="Const", op="NoOp")
        graph.graph_def.node.add(name="Const", op="NoOp")

    with pytest.raises(InputError, match="two nodes have one name"):
        check_ops(edit(weighted, repeat))


def test_a_file_that_is_no_graph_is_refused(weighted, tmp_path, monkeypatch):
    file = weighted / "saved_model.pb"
    whole = file.read_bytes()
    for data in (b"", b"\xff" * 100, whole[: len(whole) // 2], b"{}"):
        file.write_bytes(data)
        with pytest.raises(InputError, match=r"saved_model.pb: damaged: "):
            check_ops(weighted)
    file.unlink()
    with pytest.raises(InputError, match=r"saved_model.pb: no such file"):
        check_ops(weighted)
    file.mkdir()
    with pytest.raises(InputError, match=r"cannot be read: Is a directory"):
        check_ops(weighted)
    file.rmdir()
    file.write_bytes(whole)
    monkeypatch.setattr(scan, "MAX_GRAPH_BYTES", len(whole) - 1)
    with pytest.raises(InputError, match="more than the"):
        check_ops(weighted)


@pytest.fixture(scope="module")
def half_plus_two(tmp_path_factory):
    return save_half_plus_two(tmp_path_factory.mktemp("models") / "half")


@hypothesis.given(
    strategies.integers(0, 1 << 20), strategies.binary(min_size=1, max_size=3)
)
def test_damage_is_told_in_one_line_if_at_all(half_plus_two, place, data):
    whole = bytearray((half_plus_two / "saved_model.pb").read_bytes())
    place %= len(whole)
    whole[place : place + len(data)] = data
    damaged = half_plus_two.with_name("damaged")
    damaged.mkdir(exist_ok=True)
    (damaged / "saved_model.pb").write_bytes(whole)
    try:
        check_ops(damaged)
    except InputError as error:
        assert "\n" not in str(error)


def test_calls_in_great_number_are_followed_once(weighted):
    def call_in_turn(graph):
        library = graph.graph_def.library
        for number in range(2000):
            function = library.function.add()
            function.signature.name = f"f{number}"
            for other in (number + 1, number + 2):
                function.node_def.add(
                    name=f"call{other}", op=f"f{other % 2000}"
                )
        function_with(graph, "Mul")[0].node_def.add(name="call", op="f0")

    check_ops(edit(weighted, call_in_turn))
