"""Owns running a SavedModel through TensorFlow's C library alone.

Not: anything in Python TensorFlow, which is never imported here. This is what
TensorFlow Serving does: the same loader, the same session, XLA switched off.

    python c_api_runner.py EXPORT REQUESTS.json ANSWERS.json CC_LIBRARY
        [--ops LIBRARY] [--keep-xla]

REQUESTS.json: list of {"inputs": {alias: {"name", "dtype", "shape",
"values"}}, "outputs": {alias: {"name"}}}, names and dtypes as the SignatureDef
has them, values flat. ANSWERS.json: {"code", "message", "answers": list of
{"code", "message", "outputs": {alias: {"shape", "values"}}, "seconds"}}, the
first code of the load. A request is run twice and must answer the same.
Strings that are not UTF-8 travel as lone surrogates (surrogateescape).
"""

import argparse
import ctypes
import json
import time

NUMBERS = {
    1: ctypes.c_float,
    3: ctypes.c_int32,
    9: ctypes.c_int64,
    10: ctypes.c_bool,
}
STRING, STRING_BYTES = 7, 24
POINTER = ctypes.c_void_p
# Result and argument types: ctypes would cut a 64-bit address to an int.
FUNCTIONS = {
    "TF_NewStatus": (POINTER, []),
    "TF_GetCode": (ctypes.c_int, [POINTER]),
    "TF_Message": (ctypes.c_char_p, [POINTER]),
    "TF_LoadLibrary": (POINTER, [ctypes.c_char_p, POINTER]),
    "TF_NewGraph": (POINTER, []),
    "TF_NewSessionOptions": (POINTER, []),
    "TF_NewBuffer": (POINTER, []),
    "TF_LoadSessionFromSavedModel": (
        POINTER,
        [
            POINTER,
            POINTER,
            ctypes.c_char_p,
            ctypes.POINTER(ctypes.c_char_p),
            ctypes.c_int,
            POINTER,
            POINTER,
            POINTER,
        ],
    ),
    "TF_GraphOperationByName": (POINTER, [POINTER, ctypes.c_char_p]),
    "TF_AllocateTensor": (
        POINTER,
        [
            ctypes.c_int,
            ctypes.POINTER(ctypes.c_int64),
            ctypes.c_int,
            ctypes.c_size_t,
        ],
    ),
    "TF_TensorData": (POINTER, [POINTER]),
    "TF_TensorType": (ctypes.c_int, [POINTER]),
    "TF_NumDims": (ctypes.c_int, [POINTER]),
    "TF_Dim": (ctypes.c_int64, [POINTER, ctypes.c_int]),
    "TF_DeleteTensor": (None, [POINTER]),
    "TF_StringInit": (None, [POINTER]),
    "TF_StringCopy": (None, [POINTER, ctypes.c_char_p, ctypes.c_size_t]),
    "TF_StringGetDataPointer": (POINTER, [POINTER]),
    "TF_StringGetSize": (ctypes.c_size_t, [POINTER]),
    "TF_StringDealloc": (None, [POINTER]),
    "TF_SessionRun": (
        None,
        [
            POINTER,
            POINTER,
            POINTER,
            POINTER,
            ctypes.c_int,
            POINTER,
            POINTER,
            ctypes.c_int,
            POINTER,
            ctypes.c_int,
            POINTER,
            POINTER,
        ],
    ),
    "TF_CloseSession": (None, [POINTER, POINTER]),
    "TF_DeleteSession": (None, [POINTER, POINTER]),
    "TF_DeleteGraph": (None, [POINTER]),
}


class Output(ctypes.Structure):
    _fields_ = [("operation", POINTER), ("index", ctypes.c_int)]


class StatusError(Exception):
    """A status that is not OK: (code, message)."""


class Runner:
    """A SavedModel in a session of the C library.

    Args:
        cc_library: str. Path of libtensorflow_cc.so.2.
        op_library: str. Path of a library of further ops, or None.
        keep_xla: bool. Leave XLA on, unlike a default server.
    """

    def __init__(self, cc_library, *, op_library=None, keep_xla=False):
        self.c = ctypes.CDLL(cc_library, mode=ctypes.RTLD_GLOBAL)
        if not keep_xla:
            disable = self.c._ZN10tensorflow21DisableXlaCompilationEv
            disable.restype, disable.argtypes = None, []
            disable()
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(self.c, name)
            function.restype, function.argtypes = result, arguments
        self.status = self.c.TF_NewStatus()
        if op_library:
            self.c.TF_LoadLibrary(op_library.encode(), self.status)
            self.check()

    def check(self):
        code = self.c.TF_GetCode(self.status)
        if code:
            message = self.c.TF_Message(self.status)
            raise StatusError(code, message.decode(errors="replace"))

    def load(self, export):
        self.graph = self.c.TF_NewGraph()
        self.session = self.c.TF_LoadSessionFromSavedModel(
            self.c.TF_NewSessionOptions(),
            None,
            export.encode(),
            (ctypes.c_char_p * 1)(b"serve"),
            1,
            self.graph,
            self.c.TF_NewBuffer(),
            self.status,
        )
        self.check()

    def run(self, inputs, outputs):
        feeds = (Output * len(inputs))(
            *[self.output(one["name"]) for one in inputs.values()]
        )
        fetches = (Output * len(outputs))(
            *[self.output(one["name"]) for one in outputs.values()]
        )
        values = (POINTER * len(inputs))(
            *[self.tensor(**one) for one in inputs.values()]
        )
        results = (POINTER * len(outputs))()
        self.c.TF_SessionRun(
            self.session,
            None,
            feeds,
            values,
            len(inputs),
            fetches,
            results,
            len(outputs),
            None,
            0,
            None,
            self.status,
        )
        self.check()
        answer = {
            alias: self.read(tensor)
            for alias, tensor in zip(outputs, results, strict=True)
        }
        for tensor in [*values, *results]:
            self.delete(tensor)
        return answer

    def close(self):
        self.c.TF_CloseSession(self.session, self.status)
        self.check()
        self.c.TF_DeleteSession(self.session, self.status)
        self.check()
        self.c.TF_DeleteGraph(self.graph)

    def output(self, name):
        operation, _, index = name.partition(":")
        found = self.c.TF_GraphOperationByName(self.graph, operation.encode())
        if not found:
            raise StatusError(5, f"the graph has no operation {operation}")
        return Output(found, int(index))

    def tensor(self, name, dtype, shape, values):
        kind = NUMBERS.get(dtype)
        size = STRING_BYTES if dtype == STRING else ctypes.sizeof(kind)
        tensor = self.c.TF_AllocateTensor(
            dtype,
            (ctypes.c_int64 * len(shape))(*shape),
            len(shape),
            size * len(values),
        )
        address = self.c.TF_TensorData(tensor)
        if dtype != STRING:
            numbers = (kind * len(values))(*values)
            ctypes.memmove(address, numbers, ctypes.sizeof(numbers))
            return tensor
        for index, value in enumerate(values):
            text = value.encode(errors="surrogateescape")
            element = address + index * STRING_BYTES
            self.c.TF_StringInit(element)
            self.c.TF_StringCopy(element, text, len(text))
        return tensor

    def read(self, tensor):
        rank = self.c.TF_NumDims(tensor)
        shape = [self.c.TF_Dim(tensor, axis) for axis in range(rank)]
        address, dtype, count = self.data(tensor)
        if dtype != STRING:
            numbers = (NUMBERS[dtype] * count).from_address(address)
            return {"shape": shape, "values": list(numbers)}
        values = []
        for index in range(count):
            element = address + index * STRING_BYTES
            text = ctypes.string_at(
                self.c.TF_StringGetDataPointer(element),
                self.c.TF_StringGetSize(element),
            )
            values.append(text.decode(errors="surrogateescape"))
        return {"shape": shape, "values": values}

    def delete(self, tensor):
        address, dtype, count = self.data(tensor)
        if dtype == STRING:
            for index in range(count):
                self.c.TF_StringDealloc(address + index * STRING_BYTES)
        self.c.TF_DeleteTensor(tensor)

    def data(self, tensor):
        count = 1
        for axis in range(self.c.TF_NumDims(tensor)):
            count *= self.c.TF_Dim(tensor, axis)
        address = self.c.TF_TensorData(tensor)
        return address, self.c.TF_TensorType(tensor), count


def answer(runner, request):
    """Runs a request twice: no state of the first may leak into the second."""
    seconds, answers = [], []
    try:
        for _ in range(2):
            started = time.perf_counter()
            answers.append(runner.run(**request))
            seconds.append(time.perf_counter() - started)
    except StatusError as error:
        code, message = error.args
        return {"code": code, "message": message}
    if answers[0] != answers[1]:
        return {"code": -1, "message": "two runs differ"}
    return {
        "code": 0,
        "message": "",
        "outputs": answers[0],
        "seconds": seconds,
    }


def main():
    parser = argparse.ArgumentParser()
    for name in ("export", "requests", "answers", "cc_library"):
        parser.add_argument(name)
    parser.add_argument("--ops", help="library of further ops")
    parser.add_argument("--keep-xla", action="store_true")
    options = parser.parse_args()
    with open(options.requests, encoding="utf-8") as file:
        requests = json.load(file)
    answers = {"code": 0, "message": "", "answers": []}
    try:
        runner = Runner(
            options.cc_library,
            op_library=options.ops,
            keep_xla=options.keep_xla,
        )
        runner.load(options.export)
        answers["answers"] = [answer(runner, one) for one in requests]
        runner.close()
    except StatusError as error:
        answers["code"], answers["message"] = error.args
    with open(options.answers, "w", encoding="utf-8") as file:
        json.dump(answers, file)


if __name__ == "__main__":
    main()
