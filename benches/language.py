"""Prompts and tokens per second of the same prompts in HuggingFace transformers and, where it is installed, llama.cpp.

    python benches/language.py MODEL.gguf PROMPTS.json --threads N [--dtype bfloat16]

PROMPTS.json is written by `language_speed` (worker/science/examples), which measures the same in taskvec. What is timed:

- states: hidden states of all layers before the answer, batches padded on the left, no unembedding beyond the last token;
- answers: greedy answers to a newline, at most 12 tokens. They are compared with what taskvec made of the same prompts;
- prompt processing in llama.cpp: of the file as it is, and of its weights written out as f32 and as bf16 (not with --dtype).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("prompts")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--batch", type=int, default=16)
parser.add_argument("--dtype", default="float32")
parser.add_argument("--llama", action="store_true", help="llama.cpp alone")
args = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = str(args.threads)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gguf  # noqa: E402
import torch  # noqa: E402  (after the number of threads is set)
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

torch.set_num_threads(args.threads)
torch.set_grad_enabled(False)


def report(what, who, seconds, prompts, tokens):
    print(f"{what:22} {who:12} {prompts / seconds:8.2f} prompts/s {tokens / seconds:9.0f} prompt tokens/s", flush=True)


def padded(rows, pad):
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def main():
    with open(args.prompts) as file:
        found = json.load(file)
    rows = [p["tokens"] for p in found["prompts"]]
    tokens = sum(map(len, rows))
    if args.llama:
        return llama(rows, tokens)
    folder, name = os.path.split(os.path.abspath(args.model))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=getattr(torch, args.dtype)).eval()
    pad = tokenizer.eos_token_id
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    batches = [order[i:i + args.batch] for i in range(0, len(order), args.batch)]

    def states(some):
        ids, mask = padded([rows[i] for i in some], pad)
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, logits_to_keep=1)
        return [h[:, -1].clone() for h in out.hidden_states]

    states(batches[0])
    start = time.perf_counter()
    for some in batches:
        states(some)
    report("states of all layers", "transformers", time.perf_counter() - start, len(rows), tokens)

    right = [False] * len(rows)
    start = time.perf_counter()
    for some in batches:
        ids, mask = padded([rows[i] for i in some], pad)
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False,
                             pad_token_id=pad, stop_strings="\n", tokenizer=tokenizer)
        for i, row in zip(some, out[:, ids.shape[1]:]):
            text = tokenizer.decode(row, skip_special_tokens=True)
            right[i] = text.split("\n")[0].strip() == found["prompts"][i]["answer"]
    report("greedy answers", "transformers", time.perf_counter() - start, len(rows), tokens)

    each = len(rows) // len(found["accuracy"])
    for k, task in enumerate(found["accuracy"]):
        theirs = sum(right[k * each:(k + 1) * each]) / each
        same = "same" if abs(theirs - task["accuracy"]) < 1e-9 else "DIFFERENT"
        print(f"accuracy {task['task']:8} taskvec {task['accuracy']:.3f} transformers {theirs:.3f} {same}")
    if args.dtype == "float32":
        # Apart: as PyPI builds it, it dies on some processors.
        died = subprocess.run([sys.executable, *sys.argv, "--llama"]).returncode
        if died:
            print(f"llama.cpp: not measured (it ended with {died}; where it dies of AMX, build it without: docs/performance.md)")


def llama(rows, tokens):
    try:
        import llama_cpp
    except ImportError:
        print("llama.cpp: not measured (llama-cpp-python is not installed)")
        return
    with tempfile.TemporaryDirectory() as folder:
        for kind in [None, "F32", "BF16"]:
            path = written(args.model, os.path.join(folder, f"{kind}.gguf"), kind) if kind else args.model
            model = llama_cpp.Llama(path, n_ctx=2048, n_batch=2048, n_ubatch=512, n_threads=args.threads,
                                    n_threads_batch=args.threads, verbose=False)
            model.eval(rows[0])
            start = time.perf_counter()
            for row in rows:
                model.reset()
                model.eval(row)
            seconds = time.perf_counter() - start
            report(f"prompts, {kind or 'file as it is'}", "llama.cpp", seconds, len(rows), tokens)


def written(source, target, kind):
    """The same model with its matrices in another type."""
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        dtype = gguf.GGMLQuantizationType["F32" if values.ndim == 1 else kind]
        writer.add_tensor(tensor.name, gguf.quantize(values, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


main()
