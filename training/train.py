"""Train the bundled model: a stock Llama of a few million parameters on bytes, deterministic by seed.

Muon for the hidden matrices and AdamW for the rest, bfloat16 autocast over float32 master weights, a short
warm-up and then a linear decay to zero, the data mix changing in phases (`PHASES`). Stops and resumes: the same
command continues from `state.pt` in its `--out`. Where other jobs share the processors, set
OMP_WAIT_POLICY=PASSIVE: threads that spin while they wait cost half the speed.

Usage: python -m training.train --steps 2900 --lr 6e-3 --compile --out training/runs/a [--export FOLDER]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from training import books, probes, synthetic, tokenizer

L0, THETA = 512, 10_000.0
SHARES = {
    "emma": 1.3, "mansfieldpark": 1.3, "prideprejudice": 1.0, "sensesensibility": 1.0, "northangerabbey": 0.7,
    "moby-dick": 0.8, "sotu": 1.2,
}  # fmt: skip
EARLY = {"prose": 0.45, "needles": 0.15, "dense": 0.20, "lines": 0.08, "passkey": 0.04, "repeat": 0.08}
COPY = {"prose": 0.15, "dense": 0.30, "lines": 0.10, "copy": 0.45}
LONG = {"prose": 0.25, "needles": 0.30, "dense": 0.25, "lines": 0.10, "passkey": 0.05, "repeat": 0.05}
LATE = {"prose": 0.52, "needles": 0.22, "dense": 0.10, "lines": 0.06, "passkey": 0.05, "repeat": 0.05}
PHASES = {0: (EARLY, 512, 16), 480: (COPY, 128, 32), 1000: (LONG, 512, 16), 1200: (LATE, 512, 16)}
"""First step -> mix, length, rows: a first grasp of prose; copying, which forms sooner in short windows; the
same over the whole window; then mostly prose."""


def build(layers: int = 5, intermediate: int = 640) -> LlamaForCausalLM:
    """The untrained model; the last matrix of each residual branch starts at zero."""
    config = LlamaConfig(
        vocab_size=tokenizer.VOCAB, hidden_size=256, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=L0,
        rope_parameters={"rope_type": "default", "rope_theta": THETA}, tie_word_embeddings=True,
        bos_token_id=tokenizer.BOS, eos_token_id=tokenizer.EOS, pad_token_id=tokenizer.PAD,
        attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def optimizers(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon on the two-dimensional hidden weights, AdamW on the embedding and the norms."""
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    other = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(hidden, lr=lr, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(other, lr=lr, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def rate(step: int, steps: int, warmup: int = 100) -> float:
    """The learning rate's factor at a step."""
    return min((step + 1) / warmup, max(steps - step, 0) / (steps - warmup))


def export(model: LlamaForCausalLM, folder: Path) -> None:
    """Write a bfloat16 checkpoint that AutoModel and AutoTokenizer load, rope keys in both config styles."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy = copy.bfloat16()
    copy.generation_config = GenerationConfig(
        bos_token_id=tokenizer.BOS, eos_token_id=tokenizer.EOS, pad_token_id=tokenizer.PAD
    )
    copy.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_theta"] = THETA  # where readers before transformers 5 look
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tokenizer.save(folder, L0)
    for file in folder.iterdir():
        file.chmod(0o644)


def main() -> None:
    """Run the training."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--stop", type=int, help="leave at this step (a trial), the schedule being for --steps")
    parser.add_argument("--cache", type=Path, default=Path("training/runs/books"))
    parser.add_argument("--words", type=Path, default=Path("ctxforge/bundled/words.txt"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--export", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    train_words, test_words = synthetic.split_words(args.words)
    held = books.fetch(args.cache)[books.HELD_OUT].encode()
    mixer = synthetic.Mixer(
        books.training_books(args.cache), SHARES, train_words, test_words, length=L0, seed=args.seed
    )
    model = build()
    opts = optimizers(model, args.lr)
    step, spent, tokens = 0, 0.0, 0
    state_file = args.out / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=False)
        model.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["opts"], strict=True):
            opt.load_state_dict(saved)
        step, spent, tokens = state["step"], state["spent"], state["tokens"]
        mixer.rng.setstate(state["rng"])
    forward = torch.compile(model, dynamic=False) if args.compile else model

    def save() -> None:
        saved = {"model": model.state_dict(), "opts": [o.state_dict() for o in opts]}
        torch.save(saved | {"step": step, "spent": spent, "tokens": tokens, "rng": mixer.rng.getstate()}, state_file)
        if args.export:
            export(model, args.export)

    def log(line: str) -> None:
        with (args.out / "log.txt").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    log(f"parameters {sum(p.numel() for p in model.parameters()):,} from step {step} of {args.steps}")
    clock = told = tested = saved_at = time.monotonic()
    base, running, answers = spent, math.nan, math.nan
    end = min(args.steps, args.stop or args.steps)
    while step < end:
        mix, length, count = PHASES[max(start for start in PHASES if start <= step)]
        mixer.limit = length + 1
        rows = [mixer.sample(mix) for _ in range(count)]
        tokens += count * length
        ids = torch.from_numpy(np.stack([np.frombuffer(text, np.uint8) for text, _ in rows])).long()
        weights = torch.tensor([w for _, w in rows])[:, 1:]
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(input_ids=ids[:, :-1], use_cache=False).logits
        losses = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (losses * weights.flatten()).sum() / weights.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = args.lr * rate(step, args.steps)
            opt.step()
            opt.zero_grad(set_to_none=True)
        step += 1
        asked = losses.detach()[weights.flatten() >= 2].mean().item()
        answers = asked if math.isnan(answers) else 0.95 * answers + 0.05 * asked
        running = loss.item() if math.isnan(running) else 0.98 * running + 0.02 * loss.item()
        now = time.monotonic()
        spent = base + now - clock
        if now - told > 30:
            log(f"step {step} loss {running:.3f} answers {answers:.3f} minutes {spent / 60:.1f} tokens {tokens:,}")
            told = now
        if now - tested > 240 or step == end:
            model.eval()
            with torch.autocast("cpu", torch.bfloat16):
                bpb = probes.nll_by_position(model, held, L0, 48).mean().item() / math.log(2)
                found = probes.retrieval(model, held, test_words, L0, 60)
            exact, nats = probes.exact_rate(found), sum(n for *_, n in found) / len(found)
            log(f"  held-out bits/byte {bpb:.3f} retrieval {exact:.2f} nats/digit {nats:.2f}")
            model.train()
            tested = time.monotonic()
        if now - saved_at > 540 or step == end:
            save()
            saved_at = time.monotonic()
    if args.export:
        export(model, args.export)


if __name__ == "__main__":
    main()
