"""Writes the trained network as GGUF: `python -m appliance.inference.making.chat.export --out DIR FILE.gguf`.

Matrices become Q8_0 (8 bits and one scale for 32 weights), norms stay in 32 bits. Needs `requirements-training.txt`.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import gguf
import numpy as np
import torch

from . import tokens
from .corpus import ASSISTANT, END, HERE, PAD, SPECIAL, SYSTEM, TOOL, TOOLS, USER
from .plan import Shape
from .train import Network

NAME = "Coral-Reef chat"

#: What `corpus.render` writes, as a chat template. An assistant's tool calls come back as the model wrote them.
CHAT_TEMPLATE = (
    "{%- for m in messages -%}"
    "{%- if m.role == 'system' -%}"
    f"{SYSTEM}{{{{ m.content }}}}"
    "{%- if tools and loop.first -%}"
    f"{TOOLS}{{%- for t in tools -%}}{{{{ t.function.name }}}}{{{{ '' if loop.last else ' ' }}}}{{%- endfor -%}}"
    "{%- endif -%}"
    f"{END}"
    "{%- elif m.role == 'user' -%}"
    f"{USER}{{{{ m.content }}}}{END}"
    "{%- elif m.role == 'tool' -%}"
    f"{TOOL}{{{{ m.content }}}}{END}"
    "{%- else -%}"
    f"{ASSISTANT}{{{{ m.content or '' }}}}"
    "{%- for c in m.tool_calls or [] -%}"
    '<tool_call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>'
    "{%- endfor -%}"
    f"{END}"
    "{%- endif -%}"
    "{%- endfor -%}"
    f"{{%- if add_generation_prompt -%}}{ASSISTANT}{{%- endif -%}}"
)


def export(out: Path, target: Path) -> None:
    """Reads tokenizer and checkpoint from `out` and writes the GGUF file `target`."""
    shape = Shape()
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    network = Network(shape)
    network.load_state_dict(state["network"])
    learnt = json.loads((out / "tokenizer.json").read_text("utf-8"))["model"]
    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(str(partial), "llama")
    writer.add_name(NAME)
    writer.add_license("Apache-2.0")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.blocks)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    vocabulary = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    kinds = [gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in vocabulary]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in learnt["merges"]])
    writer.add_bos_token_id(SPECIAL.index(SYSTEM))
    writer.add_eos_token_id(SPECIAL.index(END))
    writer.add_pad_token_id(SPECIAL.index(PAD))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    def put(name: str, tensor: torch.Tensor) -> None:
        values = tensor.detach().float().numpy()
        if values.ndim == 1:
            writer.add_tensor(name, values.astype(np.float32))
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    put("token_embd.weight", network.embedding.weight)
    put("output_norm.weight", network.norm.scale)
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    for i, block in enumerate(network.blocks):
        qkv, gate_up = block.qkv.weight, block.gate_up.weight
        put(f"blk.{i}.attn_norm.weight", block.attention_norm.scale)
        put(f"blk.{i}.attn_q.weight", qkv[:queries])
        put(f"blk.{i}.attn_k.weight", qkv[queries : queries + keys])
        put(f"blk.{i}.attn_v.weight", qkv[queries + keys :])
        put(f"blk.{i}.attn_output.weight", block.out.weight)
        put(f"blk.{i}.ffn_norm.weight", block.feed_norm.scale)
        put(f"blk.{i}.ffn_gate.weight", gate_up[: shape.feed_forward])
        put(f"blk.{i}.ffn_up.weight", gate_up[shape.feed_forward :])
        put(f"blk.{i}.ffn_down.weight", block.down.weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(target)
    learnt_samples = tokens.samples(tokens.load(out / "tokenizer.json"))
    (HERE / "token-samples.json").write_text(json.dumps(learnt_samples, indent=1) + "\n", "utf-8")
    print(f"{target}: {target.stat().st_size:,} bytes, {state['step']} steps")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder that train.py wrote")
    parser.add_argument("target", type=Path, help="the GGUF file to write")
    arguments = parser.parse_args()
    export(arguments.out, arguments.target)


if __name__ == "__main__":
    main()
