"""Compiled functions, and the machine instructions that they need."""

# mypy: disable-error-code="no-untyped-def"
# The compiled functions are typed by numba, from their first call.

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_intrinsic: Any = intrinsic  # its stubs count the typing context as an argument
_sources = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
_STAMP = hashlib.sha256(b"".join(s for s in _sources if b"@compiled" in s)).hexdigest()  # `layout` too


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, and cache the machine code on disk if a folder is writable.

    The cache is used only while every file of this folder with such functions is the same: a compiled function contains
    those that it calls, and numba looks at the file of the function alone.
    """
    # Without reference counting ("_nrt"), which no function here needs: with it the code takes three times as long.
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False, "forceinline": True}
    try:
        dispatcher = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # a read-only install without NUMBA_CACHE_DIR
        return numba.njit(**options)(function)
    dispatcher._cache._cache_file._source_stamp = _STAMP
    return dispatcher


@_intrinsic
def set_bits(_context, word):  # how many bits are set
    def generate(_compiler, builder, _signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


@_intrinsic
def prefetch(_context, words, at):  # prefetch words[at]
    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.gep(array.data, [arguments[1]])
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        hint = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, number, number, number]), "llvm.prefetch.p0"
        )
        builder.call(hint, [builder.bitcast(address, byte), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(words, types.int64), generate


@_intrinsic
def move(_context, words, to, at, n):  # copy n 64-bit words inside an array; the places may overlap
    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        target, source = (builder.gep(array.data, [place]) for place in arguments[1:3])
        cgutils.raw_memmove(builder, target, source, arguments[3], itemsize=8)
        return context.get_dummy_value()

    return types.void(words, types.int64, types.int64, types.int64), generate
