"""What each static check demands, and what to do when it fails: for SARIF, JUnit and the documentation."""

from __future__ import annotations

from ctxforge.findings import Rule

RULES = (
    Rule(
        "readable",
        "The checkpoint can be found and read",
        "The folder or Hub repository is not there, not a checkpoint in the transformers layout, or not accessible."
        " Check its path, its revision, the network and HF_TOKEN.",
    ),
    Rule(
        "structure",
        "Shards, index and headers agree",
        "Every shard that the index names must be there, whole, and hold exactly the tensors that the index places in"
        " it; no other set of weights may lie beside it. Loaders disagree on what they take from a checkpoint that"
        " contradicts itself. Download or copy the files again, all from one revision; a Git LFS pointer in the place"
        " of a shard is fetched by `git lfs pull`.",
    ),
    Rule(
        "rope",
        "The rotary embedding is understood",
        "The config names an architecture and a rotary scaling that ctxforge can compute. Anything else it refuses"
        " rather than guesses: the detail says which key or type is at fault.",
    ),
    Rule(
        "learned",
        "The position table is understood",
        "The config's length and the table of learned positions are consistent.",
    ),
    Rule(
        "alibi",
        "The ALiBi biases are understood",
        "The config's heads and length give a known set of slopes.",
    ),
    Rule(
        "dialects",
        "transformers 5 and 4 keys mean the same",
        "rope_parameters (transformers 5) and rope_scaling with rope_theta (transformers 4 and most engines) must give"
        " the same frequencies and temperature, or the model differs by who loads it. Write both, equal;"
        " `ctxforge extend` does.",
    ),
    Rule(
        "integer-types",
        "Counts and lengths are integers",
        "Engines written in strict languages refuse or truncate 4096.0 where they expect 4096. Write whole numbers"
        " without a decimal point.",
    ),
    Rule(
        "max-positions",
        "max_position_embeddings agrees with the scaling",
        "For yarn and longrope, max_position_embeddings must be factor x original_max_position_embeddings: readers"
        " derive one from the other, each in its own way.",
    ),
    Rule(
        "tokenizer",
        "The tokenizer allows the length",
        "model_max_length in tokenizer_config.json below the model's length makes pipelines truncate the input without"
        " a word. Raise it to the model's length.",
    ),
    Rule(
        "recorded-rotation",
        "The config computes what the conversion planned",
        "ctxforge.json records the divisors and the temperature that the conversion planned; the config now computes"
        " something else, so it was edited afterwards. Convert again, or delete ctxforge.json if the edit is meant.",
    ),
    Rule(
        "provenance",
        "Files are those that the conversion wrote",
        "ctxforge.json records the hashes of files and edited tensors; something changed since. Convert again, or"
        " delete ctxforge.json if the change is meant.",
    ),
)
"""Every rule; a check's name is its rule's."""

RULE_OF = {rule.name: rule for rule in RULES}
