"""Makes a model directory that weft opens of an RWKV model in the ggml file of rwkv.cpp: generations 4, 5.1, 5.2, 6 and
7 in FP32, FP16, Q5_0 and Q5_1. From the top of the repository:
    python3 tools/convert_rwkv.py MODEL.bin FOLDER
The folder, which must not exist yet, gets model.safetensors, under the names and in the shapes of RWKV's own checkpoints,
and config.json (src/io/pretrained/architectures/rwkv_generations.cc). FP16 stays as it is, quantized weights become FP32.

The file: six int32 (magic, version, vocabulary, width, layers, type), then tensors of int32 number of dimensions,
length of the name and type, the dimensions from the fastest to the slowest, the name, the data.
"""

import array
import json
import math
import os
import re
import struct
import sys

MAGIC, VERSIONS = 0x67676D66, (100, 101)
FP32, FP16, Q5_0, Q5_1 = 0, 1, 7, 8
BLOCK = 32  # weights that share a scale
BLOCK_BYTES = {Q5_0: 22, Q5_1: 24}


class Broken(Exception):
    """A file that is not what it says."""


class Tensor:
    """Little-endian values of `kind` "F32" or "F16" in row-major order."""

    def __init__(self, shape, kind, data):
        self.shape, self.kind, self.data = tuple(shape), kind, data

    def reshaped(self, *shape):
        return Tensor(shape, self.kind, self.data)

    def cells(self):
        """The values as integers of their size: for moving them about."""
        return array.array("I" if self.kind == "F32" else "H", self.data)

    def rows(self):
        """Along the first dimension, as tensors."""
        size = len(self.data) // self.shape[0]
        return [Tensor(self.shape[1:], self.kind, self.data[i * size : (i + 1) * size]) for i in range(self.shape[0])]

    def transposed(self):
        """The last two dimensions exchanged."""
        cells, (rows, columns) = self.cells(), self.shape[-2:]
        moved = array.array(cells.typecode)
        for begin in range(0, len(cells), rows * columns):
            for column in range(columns):
                moved.extend(cells[begin + column : begin + rows * columns : columns])
        return Tensor((*self.shape[:-2], columns, rows), self.kind, moved.tobytes())

    def stretched(self, rows, columns):
        """[rows, columns]; each row one number in all columns where there is one a row."""
        cells = self.cells()
        if len(cells) == rows:
            cells = array.array(cells.typecode, (cell for cell in cells for _ in range(columns)))
        return Tensor((rows, columns), self.kind, cells.tobytes())

    def mapped(self, function):
        letter = "f" if self.kind == "F32" else "e"
        values = struct.unpack(f"<{math.prod(self.shape)}{letter}", self.data)
        return Tensor(self.shape, "F32", struct.pack(f"<{len(values)}f", *map(function, values)))


def dequantized(data, kind):
    """Blocks of a scale (and a minimum), 32 high bits and 32 low nibbles -> fp32."""
    layout = struct.Struct("<eI16s" if kind == Q5_0 else "<eeI16s")
    values = array.array("f")
    for scale, *minimum, high, nibbles in layout.iter_unpack(data):
        offset = minimum[0] if minimum else -16 * scale
        table = [scale * quant + offset for quant in range(32)]
        low = [n & 15 for n in nibbles] + [n >> 4 for n in nibbles]  # element j, then j + 16
        values.extend(table[n | (high >> j & 1) << 4] for j, n in enumerate(low))
    return values.tobytes()


def read_tensor(data, at, path):
    """The tensor at byte `at`: name, Tensor, where the next begins."""
    dimensions, length, kind = struct.unpack_from("<3i", data, at)
    if not (1 <= dimensions <= 4 and 0 < length < 256 and kind in (FP32, FP16, Q5_0, Q5_1)):
        raise Broken(f"{path}: byte {at}: {dimensions} dimensions, a name of {length} bytes and type {kind}; expected "
                     f"a tensor of 1 to 4 dimensions and type {FP32}, {FP16}, {Q5_0} or {Q5_1}")
    at += 12
    shape = struct.unpack_from(f"<{dimensions}i", data, at)[::-1]
    at += 4 * dimensions
    name = data[at : at + length].decode()
    at += length
    count = math.prod(shape)
    size = {FP32: 4 * count, FP16: 2 * count}.get(kind) or count // BLOCK * BLOCK_BYTES[kind]
    if min(shape) < 1 or at + size > len(data) or (kind in BLOCK_BYTES and shape[-1] % BLOCK):
        raise Broken(f"{path}: tensor '{name}' of shape {list(shape)} and type {kind} does not fit into the file")
    raw = data[at : at + size]
    if kind in BLOCK_BYTES:
        return name, Tensor(shape, "F32", dequantized(raw, kind)), at + size
    return name, Tensor(shape, "F16" if kind == FP16 else "F32", raw), at + size


def read_file(path):
    """Sizes (vocabulary, width, layers) and the tensors by name."""
    with open(path, "rb") as file:
        data = file.read()
    if len(data) < 24:
        raise Broken(f"{path}: {len(data)} bytes; expected a header of 24")
    magic, version, vocabulary, width, layers, _ = struct.unpack_from("<6i", data)
    if magic != MAGIC or version not in VERSIONS:
        raise Broken(f"{path}: magic {magic:#x}, version {version}; expected {MAGIC:#x}, {VERSIONS[0]} or {VERSIONS[1]}")
    tensors, at = {}, 24
    while at < len(data):
        if at + 12 > len(data):
            raise Broken(f"{path}: {len(data) - at} bytes behind the last tensor")
        name, tensor, at = read_tensor(data, at, path)
        tensors[name] = tensor
    return (vocabulary, width, layers), tensors


def generation_of(tensors):
    for mark, generation in (("att.x_rwkvag", 7), ("att.time_maa_x", 6), ("att.ln_x.weight", 5)):
        if f"blocks.0.{mark}" in tensors:
            return generation
    return 4


def rate_exponent(decay, generation):
    """The stored form of a decay (-exp(w) in RWKV-4, exp(-exp(w)) in 5) back to w."""
    if generation == 4:
        rate = -decay
    else:
        rate = -math.log(decay) if decay > 0 else math.inf
    return math.log(min(max(rate, 1e-18), 1e3))  # of a decay that rounds to 1 or 0, rates this far off tell the same


class Checkpoint:
    """The tensors of a file in the form of RWKV's own checkpoints, and the config that describes them."""

    def __init__(self, sizes, tensors):
        self.vocabulary, self.width, self.layers = sizes
        self.generation = generation_of(tensors)
        by_head = {5: "time_decay", 6: "time_faaaa", 7: "r_k"}.get(self.generation)
        self.heads = tensors[f"blocks.0.att.{by_head}"].shape[0] if by_head else 1
        self.tensors = {}
        for name, tensor in tensors.items():
            self.restore(name, tensor)

    def restore(self, name, tensor):
        part = re.sub(r"^blocks\.\d+\.", "", name)
        if part == "att.time_decay" and self.generation < 6:
            tensor = tensor.mapped(lambda decay: rate_exponent(decay, self.generation))
        if part == "att.x_rwkvag":  # six vectors in one
            for letter, row in zip("rwkvag", tensor.rows()):
                self.tensors[name.replace("x_rwkvag", f"x_{letter}")] = row.reshaped(1, 1, self.width)
        elif re.fullmatch(r"att\.((time_maa_|time_decay_)?w|a|v|g)[12]", part):
            self.tensors[name] = tensor.transposed()
        elif re.fullmatch(r"(att|ffn)\.(time_mix|time_maa|x)_.", part) or (self.generation == 6 and part == "att.time_decay"):
            self.tensors[name] = tensor.reshaped(1, 1, self.width)
        elif part in ("att.time_decay", "att.time_first", "att.time_faaaa", "att.r_k") and self.generation > 4:
            # 5.1 has one number a head, and calls the bonus as RWKV-4 does
            by_head = tensor.stretched(self.heads, self.width // self.heads)
            self.tensors[name.replace("time_first", "time_faaaa")] = by_head
        else:
            self.tensors[name] = tensor

    def config(self):
        block = "blocks.0."
        config = {"model_type": f"rwkv{self.generation}", "vocab_size": self.vocabulary, "hidden_size": self.width,
                  "num_hidden_layers": self.layers, "layer_norm_epsilon": 1e-5,
                  "intermediate_size": self.tensors[block + "ffn.key.weight"].shape[0]}
        if self.generation == 4:
            return config | {"attention_hidden_size": self.tensors[block + "att.key.weight"].shape[0]}
        config["head_size"] = self.width // self.heads
        if self.generation == 5:
            return config | {"output_gate": block + "att.gate.weight" in self.tensors, "head_norm_eps": 1e-5}
        if self.generation == 6:
            return config | {"mix_rank": self.tensors[block + "att.time_maa_w2"].shape[1],
                             "decay_rank": self.tensors[block + "att.time_decay_w1"].shape[1]}
        ranks = {"decay_rank": "w1", "rate_rank": "a1", "value_rank": "v1", "gate_rank": "g1"}
        last = f"blocks.{self.layers - 1}.att."  # the first has no v1
        return config | {key: self.tensors[last + name].shape[1] for key, name in ranks.items()
                         if last + name in self.tensors}


def write_safetensors(path, tensors):
    header, begin = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in sorted(tensors.items()):
        end = begin + len(tensor.data)
        header[name] = {"dtype": tensor.kind, "shape": tensor.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(tensor.data for _, tensor in sorted(tensors.items()))


def main(arguments):
    if len(arguments) != 2:
        sys.exit(__doc__)
    source, folder = arguments
    try:
        checkpoint = Checkpoint(*read_file(source))
        config = checkpoint.config()
    except (Broken, OSError) as problem:
        sys.exit(f"convert_rwkv: {problem}")
    except KeyError as missing:
        sys.exit(f"convert_rwkv: {source}: tensor {missing} is missing")
    except (UnicodeDecodeError, ValueError, struct.error) as problem:
        sys.exit(f"convert_rwkv: {source}: {problem}")
    os.makedirs(folder)
    write_safetensors(os.path.join(folder, "model.safetensors"), checkpoint.tensors)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2)
        file.write("\n")
    print(f"{folder}: RWKV-{checkpoint.generation}, {checkpoint.layers} layers of width {checkpoint.width}")


if __name__ == "__main__":
    main(sys.argv[1:])
