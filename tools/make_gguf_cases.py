#!/usr/bin/env python3
"""Writes tests/data/gguf/types.gguf: every tensor type that weft reads, with the numbers that it means.

    make_gguf_cases.py [OUT]

For each type there is a tensor NAME of random blocks and one NAME.expected in F32, computed by gguf.quants of the PyPI
package gguf; F32 data quantized by it is in q8_0.source and q8_0.quantized. The metadata has a value of every kind.
"""
import pathlib
import sys

import gguf
import numpy as np

ROWS, ROW = 2, 256
SCALES = {  # where a block has its half precision scales, so that random ones stay in a sane range
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "TQ1_0": [52], "TQ2_0": [64],
    "MXFP4": [],
}


def blocks(rng, kind):
    """Random rows of blocks of one type."""
    size, width = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (ROWS, ROW // size, width), dtype=np.uint8)
    for at in SCALES[kind.name]:
        scale = rng.normal(0, 0.1, data.shape[:2]).astype(np.float16)
        data[..., at:at + 2] = scale[..., None].view(np.uint8)
    if kind.name == "MXFP4":
        data[..., 0] = rng.integers(110, 140, data.shape[:2], dtype=np.uint8)
        data[0, 0, 0], data[0, 1, 0] = 0, 1
    return data.reshape(ROWS, -1)


def add_values(writer):
    """One value of every kind, and arrays."""
    writer.add_uint8("test.u8", 200)
    writer.add_int8("test.i8", -100)
    writer.add_uint16("test.u16", 60000)
    writer.add_int16("test.i16", -30000)
    writer.add_uint32("test.u32", 4000000000)
    writer.add_int32("test.i32", -2000000000)
    writer.add_uint64("test.u64", 2**63 + 1)
    writer.add_int64("test.i64", -2**62)
    writer.add_float32("test.f32", 1e-5)
    writer.add_float64("test.f64", 1e-300)
    writer.add_bool("test.bool", True)
    writer.add_string("test.string", "größer")
    writer.add_array("test.strings", ["a", "", "c d"])
    writer.add_array("test.ints", [1, -2, 3])
    writer.add_array("test.floats", [0.5, 0.1])
    writer.add_array("test.nested", [[1, 2], [3]])


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    path = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else root / "tests/data/gguf/types.gguf"
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "test")
    add_values(writer)
    for name in SCALES:
        kind = gguf.GGMLQuantizationType[name]
        data = blocks(rng, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        writer.add_tensor(name + ".expected", gguf.quants.dequantize(data, kind).astype(np.float32))
    plain = rng.normal(0, 1, (ROWS, 32)).astype(np.float32)
    writer.add_tensor("F32", plain)
    writer.add_tensor("F16", plain.astype(np.float16))
    bf16 = gguf.quants.quantize(plain, gguf.GGMLQuantizationType.BF16)
    writer.add_tensor("BF16", bf16, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.add_tensor("BF16.expected", gguf.quants.dequantize(bf16, gguf.GGMLQuantizationType.BF16))
    writer.add_tensor("F64", plain.astype(np.float64))
    for name, dtype in [("I8", np.int8), ("I16", np.int16), ("I32", np.int32), ("I64", np.int64)]:
        writer.add_tensor(name, np.array([[-3, 0, 5], [7, -128, 127]], dtype=dtype))
    source = np.concatenate([rng.normal(0, 3, (3, 32)), np.zeros((1, 32))]).astype(np.float32)
    writer.add_tensor("q8_0.source", source)
    writer.add_tensor("q8_0.quantized", gguf.quants.quantize(source, gguf.GGMLQuantizationType.Q8_0),
                      raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
