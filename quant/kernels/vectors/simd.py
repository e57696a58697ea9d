"""Vectors of 16 lanes for Numba: kernels written once, like scalar code, that run on 16 blocks at a time.

`F32` is sixteen float32, `I32` sixteen int32, `Mask` sixteen booleans. Operators and the functions below become LLVM
vector instructions, which LLVM fits to the CPU at hand (one AVX-512 register, two of AVX, four of NEON). Every
operation is rounded as IEEE 754 says and `fma` is always fused, so every CPU computes the same bits.

Arrays in memory are flat; `load(a, i)` and `store(a, i, v)` count in vectors: vector i holds elements 16·i … 16·i + 15.
Nothing checks bounds. Covers only what the kernels use.

A tile is what a kernel works on: a flat array whose vector i holds element i of each of 16 blocks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.extending import intrinsic, lower_builtin, register_model
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

from quant.kernels.vectors.compiler import part

LANES = 16
# More than any error: where a search for the least error begins.
HUGE = np.float32(3e38)

_f32, _i32, _i1 = ir.FloatType(), ir.IntType(32), ir.IntType(1)
_F, _I, _M = (ir.VectorType(kind, LANES) for kind in (_f32, _i32, _i1))


class _VectorType(types.Type):
    def __init__(self, name: str, element: ir.Type) -> None:
        self.element = element
        super().__init__(name)


F32 = _VectorType("f32x16", _f32)
I32 = _VectorType("i32x16", _i32)
Mask = _VectorType("maskx16", _i1)


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: _VectorType) -> None:
        super().__init__(manager, kind, ir.VectorType(kind.element, LANES))


def _spread(builder: Any, value: Any, kind: ir.Type) -> Any:
    """All lanes hold `value`."""
    vector = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_i32, 0))
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(_i32, LANES), [0] * LANES))


def _as_vector(context: Any, builder: Any, value: Any, source: Any, target: _VectorType) -> Any:
    """A vector from a vector or from a number of any kind."""
    if isinstance(source, _VectorType):
        return value
    scalar = types.float32 if target is F32 else types.int32
    return _spread(builder, context.cast(builder, value, source, scalar), ir.VectorType(target.element, LANES))


def _define(operation: Callable[..., Any], inputs: _VectorType, result: _VectorType, build: Callable[..., Any]) -> None:
    """Let `operation` work on vectors of `inputs`, and on a vector and a number."""

    class Template(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: tuple[Any, ...], kws: object) -> Any:
            if inputs not in args or any(a is not inputs and not isinstance(a, types.Number) for a in args):
                return None
            return signature(result, *args)

    infer_global(operation)(Template)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vectors = (_as_vector(context, builder, a, t, inputs) for a, t in zip(args, sig.args, strict=True))
        return build(builder, *vectors)

    shapes = [(inputs, inputs), (inputs, types.Number), (types.Number, inputs)]
    for shape in [(inputs,)] if operation in (operator.neg, operator.invert) else shapes:
        lower_builtin(operation, *shape)(lower)


def _compare(sign: str) -> Callable[..., Any]:
    return lambda builder, a, b: builder.fcmp_ordered(sign, a, b)


for _operation, _name in ((operator.add, "add"), (operator.sub, "sub"), (operator.mul, "mul")):
    _define(_operation, F32, F32, lambda builder, a, b, name=f"f{_name}": getattr(builder, name)(a, b))
    _define(_operation, I32, I32, lambda builder, a, b, name=_name: getattr(builder, name)(a, b))
_define(operator.truediv, F32, F32, lambda builder, a, b: builder.fdiv(a, b))
_define(operator.neg, F32, F32, lambda builder, a: builder.fneg(a))
for _operation, _name in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
    (operator.ne, "!="),
):
    _define(_operation, F32, Mask, _compare(_name))
    _define(_operation, I32, Mask, lambda builder, a, b, sign=_name: builder.icmp_signed(sign, a, b))
for _operation, _name in ((operator.and_, "and_"), (operator.or_, "or_"), (operator.xor, "xor")):
    _define(_operation, I32, I32, lambda builder, a, b, name=_name: getattr(builder, name)(a, b))
    _define(_operation, Mask, Mask, lambda builder, a, b, name=_name: getattr(builder, name)(a, b))
_define(operator.lshift, I32, I32, lambda builder, a, b: builder.shl(a, b))
_define(operator.rshift, I32, I32, lambda builder, a, b: builder.lshr(a, b))


def _pointer(context: Any, builder: Any, array: Any, kind: Any, index: Any, vector: ir.Type, step: int = LANES) -> Any:
    """Address of element index·step of an array."""
    data = context.make_array(kind)(context, builder, array).data
    place = builder.mul(index, ir.Constant(index.type, step))
    return builder.bitcast(builder.gep(data, [place]), vector.as_pointer())


def _intrinsic(function: Callable[..., Any]) -> Any:
    """Numba's `intrinsic`, which is typed as if kernels had to pass the typing context themselves."""
    return intrinsic(function)


@_intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """Vector number `index` of a float32 or int32 array; of a uint8 or uint16 one, widened to int32."""
    kind = array.dtype
    result = F32 if kind == types.float32 else I32

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        stored = ir.VectorType(context.get_data_type(kind), LANES)
        index = context.cast(builder, args[1], sig.args[1], types.intp)
        value = builder.load(_pointer(context, builder, args[0], sig.args[0], index, stored), align=1)
        return builder.zext(value, _I) if kind in (types.uint8, types.uint16) else value

    return result(array, index), build


def _store(array: Any, index: Any, value: Any, step: int) -> Any:
    """Write `value` at element index·step, cut to the width of the array's elements."""
    source = F32 if array.dtype == types.float32 else I32

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        stored = ir.VectorType(context.get_data_type(array.dtype), LANES)
        index = context.cast(builder, args[1], sig.args[1], types.intp)
        vector = _as_vector(context, builder, args[2], sig.args[2], source)
        if stored.element != source.element:
            vector = builder.trunc(vector, stored)
        builder.store(vector, _pointer(context, builder, args[0], sig.args[0], index, stored, step), align=1)
        return context.get_dummy_value()

    return types.void(array, index, value), build


@_intrinsic
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Write vector number `index`; an int32 vector is cut to the width of the array's elements."""
    return _store(array, index, value, LANES)


@_intrinsic
def store_from(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Write a vector from element `index` on."""
    return _store(array, index, value, 1)


@_intrinsic
def item(typingctx: Any, array: Any, index: Any) -> Any:
    """Element `index` of a flat array, without Numba's check for a negative index."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.load(builder.gep(data, [context.cast(builder, args[1], sig.args[1], types.intp)]))

    return array.dtype(array, index), build


def _function(inputs: tuple[_VectorType, ...], result: _VectorType, build: Callable[..., Any]) -> Any:
    """An intrinsic of one to three vectors, or numbers in their place."""

    def make(*args: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, values: Any) -> Any:
            parts = zip(values, sig.args, inputs, strict=True)
            return build(builder, *(_as_vector(context, builder, v, t, i) for v, t, i in parts))

        return result(*args), lower

    # Numba reads the number of parameters off the signature.
    one = intrinsic(lambda typingctx, a: make(a))
    two = intrinsic(lambda typingctx, a, b: make(a, b))
    three = intrinsic(lambda typingctx, a, b, c: make(a, b, c))
    return (one, two, three)[len(inputs) - 1]


def _llvm(name: str) -> Callable[..., Any]:
    def build(builder: Any, *args: Any) -> Any:
        form = ir.FunctionType(_F, [_F] * len(args))
        function = cgutils.get_or_insert_function(builder.module, form, f"llvm.{name}.v{LANES}f32")
        return builder.call(function, args)

    return build


# a·b + c, rounded once.
fma = _function((F32, F32, F32), F32, _llvm("fma"))
# To the nearest whole number, halves to even.
rint = _function((F32,), F32, _llvm("rint"))
floor = _function((F32,), F32, _llvm("floor"))
absolute = _function((F32,), F32, _llvm("fabs"))
# The lesser or greater of two; the second one where either is NaN.
minimum = _function((F32, F32), F32, lambda b, x, y: b.select(b.fcmp_ordered("<", x, y), x, y))
maximum = _function((F32, F32), F32, lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))
# Numbers to numbers: towards zero, and exactly up to 2^24.
integers = _function((F32,), I32, lambda b, x: b.fptosi(x, _I))
floats = _function((I32,), F32, lambda b, x: b.sitofp(x, _F))
# The same 32 bits, read as the other kind.
bits = _function((F32,), I32, lambda b, x: b.bitcast(x, _I))
from_bits = _function((I32,), F32, lambda b, x: b.bitcast(x, _F))
splat = _function((F32,), F32, lambda b, x: x)
splat_int = _function((I32,), I32, lambda b, x: x)


@_intrinsic
def lane_numbers(typingctx: Any) -> Any:
    """0, 1, … 15."""
    return I32(), lambda context, builder, sig, args: ir.Constant(_I, list(range(LANES)))


@_intrinsic
def where(typingctx: Any, mask: Any, yes: Any, no: Any) -> Any:
    """`yes` in the lanes where the mask is set, `no` in the others."""
    kind = yes if isinstance(yes, _VectorType) else no

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b = (_as_vector(context, builder, v, t, kind) for v, t in zip(args[1:], sig.args[1:], strict=True))
        return builder.select(args[0], a, b)

    return kind(mask, yes, no), build


@_intrinsic
def any_lane(typingctx: Any, mask: Any) -> Any:
    """Whether the mask is set in any lane, as a boolean for `if`."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        word = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", word, ir.Constant(word.type, 0))

    return types.boolean(mask), build


class _Addresses(ir.Instruction):  # type: ignore[misc]
    """`getelementptr` of one base and a vector of indices, which llvmlite's builder has no method for."""

    def descr(self, buf: list[str]) -> None:
        base, index = self.operands
        element = self.type.element.pointee
        parts = f"{base.type} {base.get_reference()}, {index.type} {index.get_reference()}"
        buf.append(f"getelementptr {element}, {parts}\n")


@_intrinsic
def lane_bits(typingctx: Any, mask: Any) -> Any:
    """The mask as the low 16 bits of a number, lane 0 lowest."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.zext(builder.bitcast(args[0], ir.IntType(LANES)), ir.IntType(64))

    return types.int64(mask), build


@_intrinsic
def gather(typingctx: Any, table: Any, index: Any) -> Any:
    """table[index] in each lane, of a flat float32 or int32 table."""
    result, vector = (F32, _F) if table.dtype == types.float32 else (I32, _I)

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        element = context.get_data_type(sig.args[0].dtype)
        kind = ir.VectorType(element.as_pointer(), LANES)
        places = _Addresses(builder.block, kind, "getelementptr", [data, args[1]])
        builder._insert(places)
        form = ir.FunctionType(vector, [kind, _i32, _M, vector])
        name = f"llvm.masked.gather.v{LANES}{'f' if result is F32 else 'i'}32.v{LANES}p0"
        function = cgutils.get_or_insert_function(builder.module, form, name)
        everywhere = ir.Constant(_M, [1] * LANES)
        return builder.call(function, [places, ir.Constant(_i32, 4), everywhere, ir.Constant(vector, ir.Undefined)])

    return result(table, index), build


@_intrinsic
def transpose(typingctx: Any, source: Any, start: Any, stride: Any, target: Any, place: Any, step: Any) -> Any:
    """target[place + step·i + k] = source[start + stride·k + i] for i, k < 16, in flat arrays of one dtype."""
    inputs = (source, start, stride, target, place, step)

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.VectorType(context.get_data_type(sig.args[0].dtype), LANES)
        first, gap, to, pitch = (context.cast(builder, args[n], sig.args[n], types.intp) for n in (1, 2, 4, 5))

        def address(which: int, base: Any, size: Any, k: int) -> Any:
            data = context.make_array(sig.args[which])(context, builder, args[which]).data
            at = builder.add(base, builder.mul(size, ir.Constant(size.type, k)))
            return builder.bitcast(builder.gep(data, [at]), kind.as_pointer())

        rows = [builder.load(address(0, first, gap, k), align=1) for k in range(LANES)]
        half = LANES // 2
        low, high = (
            ir.Constant(ir.VectorType(_i32, LANES), [part * half + i // 2 + LANES * (i % 2) for i in range(LANES)])
            for part in (0, 1)
        )
        # Four rounds of a perfect shuffle of the rows' halves turn rows into columns.
        for _ in range(4):
            pairs = [(rows[k], rows[k + half]) for k in range(half)]
            rows = [builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in (low, high)]
        for k, row in enumerate(rows):
            builder.store(row, address(3, to, pitch, k), align=1)
        return context.get_dummy_value()

    return types.void(*inputs), build


@part
def tiles(block):
    """Memory for the elements of 16 blocks, and for their weights, which are 1 until `read_tiles` reads them."""
    return np.empty(block * LANES, np.float32), np.ones(block * LANES, np.float32)


@part
def read_tile(source, t, block, tile):
    """Read blocks 16·t … 16·t + 15 of flat `source` into a tile; `block`, the elements of one, is a multiple of 16."""
    for i in range(0, block, LANES):
        transpose(source, t * LANES * block + i, block, tile, i * LANES, LANES)


@part
def read_tiles(source, weights, t, block, x, w):
    """As `read_tile` for elements and weights; `w` stays as it is where `weights` is empty."""
    read_tile(source, t, block, x)
    if len(weights) > 0:
        read_tile(weights, t, block, w)


@part
def write_tile(tile, t, count, out):
    """The inverse of `read_tile`; `count`, the elements of a block, may be any number here."""
    first = t * LANES * count
    whole = count - count % LANES
    for i in range(0, whole, LANES):
        transpose(tile, i * LANES, LANES, out, first + i, count)
    for i in range(whole, count):
        for k in range(LANES):
            out[first + k * count + i] = tile[i * LANES + k]
