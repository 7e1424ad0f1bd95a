#!/usr/bin/env python3
"""What `transformers` says of a real model, in f32: an excerpt small enough to keep in the repository.

    python tests/peers/logits.py MODEL_FOLDER OUT.safetensors

Made with it: tests/fixtures/logits/*.safetensors, against which tests/families.rs holds the executor.
Needs torch, transformers and tokenizers (tests/fixtures/families/make.py says how). Tensors of OUT:

    input_ids i64 [B,S]; for encoders also attention_mask (padded on the right) and token_type_ids
    where i64 [2048], value f32 [2048]: samples of the flattened output [B,S,width]
    top i64 [B,64], top_value f32 [B,64]: the greatest of each sequence's last position
    norm f32 [B,S]: the root of the sum of squares at each position
"""
import json, os, sys

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer

TEXTS = [
    "Once upon a time there was a little girl who lived near a big forest. One day she found a red ball "
    "under a tree and took it home to show her brother, who asked her where it came from.",
    "The boy and his dog went to the river to look for stones. They were happy because the sun was warm, "
    "and they played until their mother called them back for supper.",
]
LENGTH, SAMPLES, TOP = 34, 2048, 64


def inputs_of(folder, encoder):
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    rows = [tokenizer.encode(text, add_special_tokens=encoder).ids for text in TEXTS]
    if not encoder:
        return {"input_ids": torch.tensor([row[:LENGTH] for row in rows])}
    rows[1] = rows[1][:20] + rows[1][-1:]  # so that one is padded, its last token kept
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


@torch.no_grad()
def main(folder, target):
    torch.set_num_threads(1)
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    encoder = config["model_type"] == "bert"
    kind = getattr(transformers, config["architectures"][0])
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    inputs = inputs_of(folder, encoder)
    out = model(**inputs)
    out = (out.last_hidden_state if encoder else out.logits).contiguous()
    where = torch.randperm(out.numel(), generator=torch.Generator().manual_seed(5))[:SAMPLES].sort().values
    last = inputs.get("attention_mask", torch.ones(out.shape[:2], dtype=torch.long)).sum(1) - 1
    top = out[torch.arange(len(out)), last].topk(TOP)
    save_file({
        **inputs, "where": where, "value": out.flatten()[where].contiguous(),
        "top": top.indices.contiguous(), "top_value": top.values.contiguous(), "norm": out.norm(dim=-1).contiguous(),
    }, target)
    print(f"{target}: {tuple(out.shape)}, {os.path.getsize(target)} bytes")


if __name__ == "__main__":
    transformers.logging.disable_progress_bar()
    main(*sys.argv[1:])
