#!/usr/bin/env python3
"""Token ids of the lines of a file, by the `tokenizers` package for Python.

    tokens.py tokenizer.json lines.txt        prints a JSON list of lists, special tokens left out
"""
import json
import sys

from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file(sys.argv[1])
tokenizer.no_padding()
tokenizer.no_truncation()
with open(sys.argv[2], encoding="utf-8", newline="") as file:
    lines = file.read().split("\n")
print(json.dumps([tokenizer.encode(line, add_special_tokens=False).ids for line in lines]))
