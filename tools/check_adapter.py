#!/usr/bin/env python3
"""Whether PEFT reads an adapter of `lapidary train` as we do: the logits of both, compared.

    python3 -m venv v && v/bin/pip install torch transformers peft
    v/bin/python tools/check_adapter.py target/release/lapidary BASE RUN/adapter

BASE is the Hugging Face folder that the adapter was trained on. Both compute in float32; exit code 1 if
a logit differs by more than a thousandth of the largest.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file


def main(program, base, adapter):
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    ids = [5 + (i * 37) % (model.config.get_text_config().vocab_size - 5) for i in range(48)]
    with torch.no_grad():
        before = model(torch.tensor([ids])).logits[0]
        want = peft.PeftModel.from_pretrained(model, adapter)(torch.tensor([ids])).logits[0]
    with tempfile.TemporaryDirectory() as folder:
        tokens, out = Path(folder) / "tokens.json", Path(folder) / "logits.safetensors"
        tokens.write_text(json.dumps([ids]))
        options = ["--precision", "exact", "--kv", "f32", "--model", base, "--adapter", adapter]
        command = [program, "logits", "--tokens", str(tokens), "--out", str(out), *options]
        subprocess.run(command, check=True)
        got = load_file(out)["logits.0"]
    moved, far, largest = [float(x.abs().max()) for x in (want - before, want - got, want)]
    print(f"peft {peft.__version__}: {want.numel()} logits up to {largest:.3f}; the adapter moves them")
    print(f"by up to {moved:.3g}, and ours differ from PEFT's by up to {far:.3g}")
    sys.exit(far > 1e-3 * largest)


if __name__ == "__main__":
    main(*sys.argv[1:4])
