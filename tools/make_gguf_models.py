#!/usr/bin/env python3
"""Writes GGUF files from Hugging Face folders with llama.cpp's own converter, without tokenizers.

    make_gguf_models.py LLAMA_CPP OUT [FOLDER...]

LLAMA_CPP is a checkout of llama.cpp that has convert_hf_to_gguf.py with its package `conversion` (the source
distribution of llama-cpp-python on PyPI has one in vendor/llama.cpp). Without folders all of tests/data/hf_tiny are
tried; those that the converter does not know, or refuses, are listed with the reason. Needs torch, transformers and
the package gguf. The files in tests/data/gguf were made by this, so that weft's reading is tested against the
converter that everyone uses and not against weft's own writing.
"""
import argparse
import json
import pathlib
import shutil
import sys
import tempfile

OLDER_KINDS = {"linear_attention": "mamba", "full_attention": "attention"}


def prepare(folder, scratch):
    """A copy of the folder in the spelling that the converter expects: that of published checkpoints."""
    from safetensors.torch import load_file, save_file

    copy = scratch / folder.name
    shutil.copytree(folder, copy)
    if (copy / "config_legacy.json").exists():
        shutil.copy(copy / "config_legacy.json", copy / "config.json")
    config = json.loads((copy / "config.json").read_text())
    kind = config["model_type"]
    if kind == "falcon_h1":
        config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    if kind == "granitemoehybrid":
        config["layer_types"] = [OLDER_KINDS.get(name, name) for name in config["layer_types"]]
    if kind == "gemma3_text":  # the converter counts the words of the tokenizer
        words = {str(i): i for i in range(config["vocab_size"])}
        (copy / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words}, "added_tokens": []}))
    if kind == "kimi_linear":
        tensors = {name: value for name, value in load_file(copy / "model.safetensors").items()}
        dense = [name for name in tensors if name.split("block_sparse_moe.")[-1].split(".")[0] in
                 ("gate_proj", "up_proj", "down_proj")]
        for name in dense:
            tensors[name.replace("block_sparse_moe", "mlp")] = tensors.pop(name)
        save_file(tensors, copy / "model.safetensors")
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def convert(folder, out, conversion, gguf):
    """The GGUF file of one folder, all numbers in fp32."""
    hparams = conversion.base.ModelBase.load_hparams(folder, False)
    name = conversion.base.get_model_architecture(hparams, conversion.base.ModelType.TEXT)
    cls = conversion.get_model_class(name) if hasattr(conversion, "get_model_class") else (
        conversion.base.ModelBase.from_model_architecture(name))

    class WithoutVocabulary(cls):
        model_arch = cls.model_arch
        no_mtp = True

        def set_vocab(self):
            self.gguf_writer.add_tokenizer_model("none")
            if hparams["model_type"] == "gemma3_text":  # of layers that do not follow the usual pattern
                self.gguf_writer.add_sliding_window_pattern(
                    [name == "sliding_attention" for name in hparams["layer_types"]])

    path = out / f"{folder.name}.gguf"
    model = WithoutVocabulary(folder, gguf.LlamaFileType.ALL_F32, path, eager=True)
    model.write()
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_cpp", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("folders", type=pathlib.Path, nargs="*")
    args = parser.parse_args()
    sys.path[:0] = [str(args.llama_cpp), str(args.llama_cpp / "gguf-py")]
    import conversion
    import conversion.base
    import gguf

    root = pathlib.Path(__file__).resolve().parent.parent / "tests/data/hf_tiny"
    args.out.mkdir(parents=True, exist_ok=True)
    for folder in args.folders or sorted(path for path in root.iterdir() if (path / "config.json").exists()):
        try:
            with tempfile.TemporaryDirectory() as scratch:
                path = convert(prepare(folder, pathlib.Path(scratch)), args.out, conversion, gguf)
            print(f"{folder.name}: {path.stat().st_size} bytes")
        except Exception as error:  # the converter raises whatever its models raise
            print(f"{folder.name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


if __name__ == "__main__":
    main()
