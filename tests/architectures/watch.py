"""Watch a model of transformers run: which layer is running, its calls of rotary functions, its table look-ups."""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

TOKENS = 19
_ROTARY = re.compile(r"^_?apply_\w*(rotary|rope)\w*$")
_TABLES = re.compile(r"cos|sin|freq|pos|value|mask|dim")
_LAYER_LISTS = ("layers", "h", "blocks", "block", "layer", "attentions")
_INSIDE = re.compile(rf"^.*?\.(?:{'|'.join(_LAYER_LISTS)})\.\d+\.?")


@dataclass(frozen=True)
class Place:
    """Where code runs: the list of layers, the index in it, and the module inside the layer."""

    layers: str
    index: int
    module: str


@dataclass(frozen=True)
class RotaryCall:
    """A call of a rotary function: the function, its arguments, the names of those that it rotates, and who calls."""

    function: Callable[..., Any]
    bound: inspect.BoundArguments
    rotated: tuple[str, ...]
    place: Place

    def outputs(self, **changes: Any) -> tuple[Any, ...]:
        """What the function gives, some arguments replaced; one entry for each rotated argument."""
        arguments: Any = {**self.bound.arguments, **changes}
        call = inspect.BoundArguments(self.bound.signature, arguments)
        found = self.function(*call.args, **call.kwargs)
        return found if isinstance(found, tuple) else (found,)

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """The vectors that come in, in the order of `rotated`."""
        return tuple(self.bound.arguments[name] for name in self.rotated)


@dataclass(frozen=True)
class AttentionCall:
    """A call of an attention function: what it would give, the vectors that it compares, and who calls."""

    compute: Callable[[], Any]
    query: torch.Tensor
    key: torch.Tensor
    place: Place


Attend = Callable[[AttentionCall], Any]
Answer = Callable[[RotaryCall], "tuple[torch.Tensor, ...] | None"]


@dataclass
class Watch:
    """What was seen: layers entered, look-ups (name, rows, weight), and whether an ALiBi function was called.

    `answer` is asked at each rotary call, and may give the outputs to use instead of the function's; `attend` gives
    the outputs of each attention function that goes through transformers' interface.
    """

    answer: Answer
    attend: Attend | None = None
    stack: list[str] = field(default_factory=list)
    visited: dict[str, set[int]] = field(default_factory=dict)
    lookups: list[tuple[str, torch.Tensor, torch.Tensor]] = field(default_factory=list)
    alibi: bool = False
    depth: int = 0

    def place(self) -> Place | None:
        """The outermost layer that runs now, and the innermost module in it."""
        for name in self.stack:
            parent, _, last = name.rpartition(".")
            if last.isdigit() and parent.rpartition(".")[2] in _LAYER_LISTS:
                # A shared module has the name of the layer that owns it: what follows the layer's index counts.
                return Place(parent, int(last), _INSIDE.sub("", self.stack[-1]))
        return None


def tokens(model: Any, count: int) -> torch.Tensor:
    """Random tokens, [1, count], the same for every model."""
    vocabulary = model.config.get_text_config().vocab_size or 90
    return torch.randint(3, min(vocabulary, 90), (1, count), generator=torch.Generator().manual_seed(5))


def run(
    model: Any,
    answer: Answer,
    positions: list[int] | None,
    inputs: dict[str, Any] | None,
    attend: Attend | None = None,
) -> tuple[Watch, Any]:
    """Run `model` once.

    Args:
        model: any causal LM of transformers.
        answer, attend: see `Watch`.
        positions: position ids of the tokens, ascending from 0; None leaves them to the model.
        inputs: what to call the model with instead of tokens.

    Returns:
        What was seen, and the logits.
    """
    watch = Watch(answer, attend)
    count = TOKENS if positions is None else len(positions)
    arguments: dict[str, Any] = {"input_ids": tokens(model, count), "use_cache": False}
    if inputs is not None:
        arguments = dict(inputs)
    if positions is not None:
        arguments["position_ids"] = torch.tensor([positions])
        arguments["attention_mask"] = torch.ones(1, count, dtype=torch.long)
    with _watched(model, watch), torch.no_grad():
        logits = model(**arguments).logits
    return watch, logits


@contextlib.contextmanager
def _watched(model: Any, watch: Watch) -> Iterator[None]:
    """Wrap the rotary functions of the model's modeling files, follow which module runs, and note table look-ups."""
    undo: list[Any] = []
    names = {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    for module in {sys.modules[type(part).__module__] for part in model.modules()}:
        if ".models." not in module.__name__ and not module.__name__.startswith("transformers_modules"):
            continue
        for owner in [
            module,
            *(c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__),
        ]:
            for name, value in list(vars(owner).items()):
                plain = value.__func__ if isinstance(value, staticmethod) else value
                if not inspect.isfunction(plain):
                    continue
                if _ROTARY.match(name):
                    wrapped: Any = _rotary(plain, watch)
                elif name == "eager_attention_forward" and watch.attend is not None:
                    wrapped = _attention(plain, watch)
                elif "alibi" in name:
                    wrapped = _alibi(plain, watch)
                else:
                    continue
                setattr(owner, name, staticmethod(wrapped) if isinstance(value, staticmethod) else wrapped)
                undo.append((owner, name, value))
    hooks = []
    for name, part in model.named_modules():
        hooks.append(part.register_forward_pre_hook(_enter(watch, name)))
        hooks.append(part.register_forward_hook(_leave(watch), always_call=True))
    fused = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if watch.attend is not None:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = _attention(fused, watch)
    embedding = torch.nn.functional.embedding

    def looked_up(ids: torch.Tensor, weight: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        watch.lookups.append((names.get(id(weight), "?"), ids, weight))
        return embedding(ids, weight, *rest, **options)

    torch.nn.functional.embedding = looked_up
    try:
        yield
    finally:
        torch.nn.functional.embedding = embedding
        if watch.attend is not None:
            ALL_ATTENTION_FUNCTIONS["sdpa"] = fused
        for hook in hooks:
            hook.remove()
        for owner, name, value in reversed(undo):
            setattr(owner, name, value)


def _enter(watch: Watch, name: str) -> Any:
    parent, _, last = name.rpartition(".")
    is_layer = last.isdigit() and parent.rpartition(".")[2] in _LAYER_LISTS

    def enter(*_: Any) -> None:
        if is_layer and watch.place() is None:
            watch.visited.setdefault(parent, set()).add(int(last))
        watch.stack.append(name)

    return enter


def _leave(watch: Watch) -> Any:
    def leave(*_: Any) -> None:
        watch.stack.pop()

    return leave


def _rotary(function: Any, watch: Watch) -> Any:
    signature = inspect.signature(function)

    def wrapped(*positional: Any, **named: Any) -> Any:
        watch.depth += 1
        try:
            place = watch.place()
            if watch.depth == 1 and place is not None:
                bound = signature.bind(*positional, **named)
                rotated = tuple(
                    name
                    for name, value in bound.arguments.items()
                    if isinstance(value, torch.Tensor) and not _TABLES.search(name)
                )
                answer = watch.answer(RotaryCall(function, bound, rotated, place))
                if answer is not None:
                    return answer if len(answer) > 1 else answer[0]
            return function(*positional, **named)
        finally:
            watch.depth -= 1

    return wrapped


def _attention(function: Any, watch: Watch) -> Any:
    def wrapped(module: Any, query: Any, key: Any, *positional: Any, **named: Any) -> Any:
        place = watch.place()
        if place is None or watch.attend is None:
            return function(module, query, key, *positional, **named)
        return watch.attend(
            AttentionCall(lambda: function(module, query, key, *positional, **named), query, key, place)
        )

    return wrapped


def _alibi(function: Any, watch: Watch) -> Any:
    def wrapped(*positional: Any, **named: Any) -> Any:
        watch.alibi = True
        return function(*positional, **named)

    return wrapped
