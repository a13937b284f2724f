#!/usr/bin/env python3
"""Writes the seeds of fuzz/gguf.cc into fuzz/corpus/gguf: small GGUF files, one feature each.

    make_gguf_seeds.py [OUT]

Needs the package gguf.
"""
import pathlib
import sys

import gguf
import numpy as np


def write(path, fill):
    """One file; `fill` adds values and tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    root = pathlib.Path(__file__).resolve().parent.parent / "fuzz/corpus/gguf"
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else root
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    write(out / "empty", lambda w: None)
    write(out / "numbers", lambda w: (w.add_uint8("a", 1), w.add_int16("b", -2), w.add_uint64("c", 3), w.add_float64("d", 4.0)))
    write(out / "texts", lambda w: (w.add_string("a", "x"), w.add_array("b", ["y", "zz", ""])))
    write(out / "arrays", lambda w: (w.add_array("a", [1, 2, 3]), w.add_array("b", [[1, 2], [3]]), w.add_array("c", [0.5])))
    write(out / "alignment", lambda w: (w.add_custom_alignment(64), w.add_tensor("t", np.zeros((2, 3), np.float32))))
    for name in ["F16", "Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "TQ1_0", "MXFP4"]:
        kind = gguf.GGMLQuantizationType[name]
        size, width = gguf.GGML_QUANT_SIZES[kind]
        if name == "F16":
            write(out / name, lambda w: w.add_tensor("t", np.ones((2, 4), np.float16)))
            continue
        data = rng.integers(0, 256, (2, width), dtype=np.uint8)
        write(out / name, lambda w, data=data, kind=kind: w.add_tensor("t", data, raw_dtype=kind))


if __name__ == "__main__":
    main()
