"""Operations on eight neighbours at once, for compiled kernels: what a compiler does not find by itself.

Written as vectors, which become whatever vectors the machine has. Offsets count elements from an array's first; arrays
lie contiguously and are not checked for their ends.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

GROUP = 8
"""Neighbours that are computed together."""

_LANE = ir.IntType(32)
_FLOATS, _DOUBLES = ir.VectorType(ir.FloatType(), GROUP), ir.VectorType(ir.DoubleType(), GROUP)
_FALSE = ir.Constant(ir.IntType(1), 0)
_Code = tuple[Any, Callable[[Any, Any, Any, Any], Any]]


def _ones(_: Any, word: Any) -> _Code:
    return word(word), lambda _context, builder, _signature, given: builder.ctpop(given[0])


def _first(_: Any, word: Any) -> _Code:
    return types.intp(word), lambda context, builder, _signature, given: builder.cttz(given[0], _FALSE)


def _exceed_each(_: Any, values: Any, at: Any, limits: Any, start: Any) -> _Code:
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        seen = _load(builder, _data(context, builder, signature.args[0], given[0], given[1]), _FLOATS)
        limit = _load(builder, _data(context, builder, signature.args[2], given[2], given[3]), _FLOATS)
        return _bits(builder, builder.fcmp_ordered(">", seen, limit))

    return types.uint64(values, types.intp, limits, types.intp), generate


def _exceed(_: Any, values: Any, at: Any, limit: Any) -> _Code:
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        seen = _load(builder, _data(context, builder, signature.args[0], given[0], given[1]), _FLOATS)
        return _bits(builder, builder.fcmp_ordered(">", seen, _spread(builder, given[2], _FLOATS)))

    return types.uint64(values, types.intp, types.float32), generate


def _down(_: Any, upper: Any, lower: Any, at: Any, one: Any, two: Any, bound: Any) -> _Code:
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        def weighted(line: int, weight: int) -> Any:
            values = _load(builder, _data(context, builder, signature.args[line], given[line], given[2]), _DOUBLES)
            return builder.fmul(_spread(builder, given[weight], _DOUBLES), values)

        means = builder.fadd(weighted(0, 3), weighted(1, 4))
        return _bits(builder, builder.fcmp_ordered(">", means, _spread(builder, given[5], _DOUBLES)))

    return types.uint64(upper, lower, types.intp, types.float64, types.float64, types.float64), generate


def _across(
    _: Any, values: Any, row: Any, left: Any, right: Any, first: Any, second: Any, x: Any, into: Any, at: Any
) -> _Code:
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        def place(array: int, at: int) -> Any:
            return _data(context, builder, signature.args[array], given[array], given[at])

        line = place(0, 1)

        def weighted(side: int, weight: int) -> Any:
            places, taken = place(side, 6), ir.Constant(_FLOATS, ir.Undefined)
            for number in range(GROUP):
                lane = ir.Constant(_LANE, number)
                value = builder.load(builder.gep(line, [builder.load(builder.gep(places, [lane]))]))
                taken = builder.insert_element(taken, value, lane)
            return builder.fmul(_load(builder, place(weight, 6), _DOUBLES), builder.fpext(taken, _DOUBLES))

        means = builder.fptrunc(builder.fadd(weighted(2, 4), weighted(3, 5)), _FLOATS)
        builder.store(
            builder.fpext(means, _DOUBLES), builder.bitcast(place(7, 8), _DOUBLES.as_pointer()), align=_align(_DOUBLES)
        )
        return context.get_dummy_value()

    arrays = (left, right, first, second)
    return types.void(values, types.intp, *arrays, types.intp, into, types.intp), generate


def _data(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


def _align(lanes: Any) -> int:
    return 8 if lanes is _DOUBLES else 4


def _load(builder: Any, place: Any, lanes: Any) -> Any:
    return builder.load(builder.bitcast(place, lanes.as_pointer()), align=_align(lanes))


def _spread(builder: Any, value: Any, lanes: Any) -> Any:
    single = builder.insert_element(ir.Constant(lanes, ir.Undefined), value, ir.Constant(_LANE, 0))
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(_LANE, GROUP), None))


def _bits(builder: Any, found: Any) -> Any:
    return builder.zext(builder.bitcast(found, ir.IntType(GROUP)), ir.IntType(64))


ones: Any = intrinsic(_ones)
"""``ones(word)``: how many bits are set; one instruction where the machine has it."""

first_one: Any = intrinsic(_first)
"""``first_one(word)``: the number of the lowest bit that is set; 64 where none is."""

exceed_each: Any = intrinsic(_exceed_each)
"""``exceed_each(values, at, limits, start)``: a bit for each of eight float32 that exceeds its own limit."""

exceed: Any = intrinsic(_exceed)
"""``exceed(values, at, limit)``: a bit for each of eight float32 that exceeds the limit."""

across: Any = intrinsic(_across)
"""``across(values, row, left, right, first, second, x, into, at)``: means of float32, for the pixels from x.

Pixel p gets ``first[p] values[row + left[p]] + second[p] values[row + right[p]]``, rounded to float32.
"""

down: Any = intrinsic(_down)
"""``down(upper, lower, at, one, two, bound)``: a bit for each of eight ``one upper + two lower`` above the bound."""
