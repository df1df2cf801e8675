"""What has to be known of lm-eval's thirteen RULER tasks to give their prompts a length that fits.

Read from EleutherAI/lm-evaluation-harness lm_eval/tasks/ruler (0.4.13): every generator takes one tokenizer and a list
of lengths, and draws 500 prompts a length when the task is constructed.
"""

from __future__ import annotations

from dataclasses import dataclass

_WORD = "extraterrestrial-refrigerator"
_UUID = "8c9e6679-7425-40de-944b-e07fc1f90ae7"
_ONE = "The special magic number for {} mentioned in the provided text is"
_MANY = "The special magic numbers for {} mentioned in the provided text are"
_ESSAYS = "the data set baber/paul_graham_essays, and NLTK's punkt_tab"
# Names that are drawn anew after the prompt was measured: the chain of the worked example of variable tracking.
_REDRAWN = 32


@dataclass(frozen=True)
class RulerTask:
    """One RULER task.

    Attributes:
        name: lm-eval's.
        prefix: the start of the answer that lm-eval appends after measuring the prompt, at its longest.
        uncounted: further tokens that the generator does not count.
        roomy: whether prompts come out shorter than asked for by more than lm-eval adds, so that nothing is reserved.
        data: what it downloads when it is constructed; None where it makes everything itself.
        scorer: how an answer is scored.
    """

    name: str
    prefix: str = ""
    uncounted: int = 0
    roomy: bool = False
    data: str | None = None
    scorer: str = "string_match_all"


RULER: dict[str, RulerTask] = {
    task.name: task
    for task in (
        RulerTask("niah_single_1", _ONE.format(_WORD)),
        RulerTask("niah_single_2", _ONE.format(_WORD), data=_ESSAYS),
        RulerTask("niah_single_3", _ONE.format(_WORD), data=_ESSAYS),
        RulerTask("niah_multikey_1", _ONE.format(_WORD), data=_ESSAYS),
        RulerTask("niah_multikey_2", _ONE.format(_WORD)),
        RulerTask("niah_multikey_3", _ONE.format(_UUID)),
        RulerTask("niah_multiquery", _MANY.format(", ".join([_WORD] * 4)), data=_ESSAYS),
        RulerTask("niah_multivalue", _MANY.format(_WORD), data=_ESSAYS),
        RulerTask("ruler_vt", uncounted=_REDRAWN),
        # It counts a worked example that lm-eval then does not show; and 4095 tokens would be another task than 4096.
        RulerTask("ruler_cwe", roomy=True),
        # It fills the whole length with the prompt and leaves no room for the 50 tokens that it generates.
        RulerTask("ruler_fwe", uncounted=50),
        RulerTask("ruler_qa_squad", "Answer:", data="SQuAD 2.0 (dev-v2.0.json)", scorer="string_match_part"),
        RulerTask("ruler_qa_hotpot", "Answer:", data="HotpotQA (namlh2004/hotpotqa)", scorer="string_match_part"),
    )
}

RULER_TRAPS = (
    "RULER's prompts are drawn when a task is built, 500 a length, from generators with global random state: scores "
    "are comparable within this report, where result and source answer the same prompts, and not prompt by prompt "
    "with another run.",
    "lm-eval's own group score of `ruler` is over the length 4096 only; the averages here are over tasks at each "
    "length.",
)
QA_TRAP = (
    "lm-eval's string_match_part averages over the reference answers where NVIDIA's takes the best one: where a "
    "question has several paraphrased answers, this score is the lower one."
)
CWE_TRAP = (
    "Below 4096 tokens lm-eval draws common words 6 times and others once, not 30 and 3 times: an easier task under "
    "the same name."
)
LONGBENCH_TRAPS = (
    "LongBench's authors cut the middle out of a document that is too long; here such a document is left out, and the "
    "score is over the documents that fit whole.",
)
