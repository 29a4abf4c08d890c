"""Triton's interpreter, taught bfloat16: it multiplies the stored bits as integers, and cuts where a GPU rounds."""

import importlib.util

import numpy as np


def _up(halves):
    return (halves.astype(np.uint32) << 16).view(np.float32)


def _down(singles):
    """To nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(singles).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(singles), np.uint16(0x7FFF), rounded)


def teach_bfloat16():
    """Patch the interpreter's dot product and its cast from float32; nothing else in bfloat16 can be relied on."""
    if importlib.util.find_spec("triton") is None:
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def widened(handle):
        if handle.dtype.scalar == tl.bfloat16:
            return TensorHandle(_up(handle.data), tl.float32)
        return handle

    def create_dot(self, a, b, total, *options):
        return dot(self, widened(a), widened(b), total, *options)

    def cast_impl(self, source, target):
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            return TensorHandle(_down(source.data), tl.bfloat16)
        return cast(self, source, target)

    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = create_dot, cast_impl
