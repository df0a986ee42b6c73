"""Replies of models in a conversation, token by token: one model, or two over one base."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from align.cli.export.merge import Parts, load_merged
from align.core.errors import InputError
from align.core.files import write_json
from align.core.rows import Message
from align.generation.sampling import SamplingParams
from align.models.base import load_tokenizer
from align.models.stack import AdapterStack
from align.models.tokenization import encode_prompt
from align.run.runtime import RuntimeSettings, row_seed

Ending = Literal["stop", "length", "interrupted"]
OnText = Callable[[str], None]  # gets the text so far, which grows


@dataclass(frozen=True)
class Speaker:
    """A model that replies."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    using: Callable[[], AbstractContextManager[PreTrainedModel]]  # the model, while it is in use


@dataclass(frozen=True)
class Reply:
    """What a model said, and why it ended."""

    text: str
    ending: Ending


@dataclass
class Conversation:
    """The messages of a conversation with each of the speakers, which hear the same user and their own replies."""

    speakers: Sequence[Speaker]
    sampling: SamplingParams
    seed: int
    system: str | None = None
    messages: dict[str, list[Message]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all that was said; the system prompt stays."""
        start = [Message.model_construct(role="system", content=self.system)] if self.system else []
        self.messages = {speaker.name: list(start) for speaker in self.speakers}

    def ask(self, text: str, on_text: Callable[[str, str], None]) -> dict[str, Reply]:
        """Return each speaker's reply; `on_text` gets its name and its text so far. Ctrl-C ends replies, not more.

        Raises:
            InputError: the conversation leaves no room for a reply. It is then as it was.
        """
        question = Message.model_construct(role="user", content=text)
        asked = {name: [*said, question] for name, said in self.messages.items()}
        replies: dict[str, Reply] = {}
        for speaker in self.speakers:
            if any(reply.ending == "interrupted" for reply in replies.values()):
                replies[speaker.name] = Reply("", "interrupted")
                continue
            said = asked[speaker.name]
            seed = row_seed(self.seed, "chat", len(said))

            def show(so_far: str, name: str = speaker.name) -> None:
                on_text(name, so_far)

            replies[speaker.name] = reply_to(speaker, said, self.sampling, seed, show)
        for name, reply in replies.items():
            # Not checked as data are: a reply may be empty.
            said_now = Message.model_construct(role="assistant", content=reply.text)
            self.messages[name] = [*asked[name], said_now]
        return replies

    def save(self, path: Path) -> None:
        """Write what was said, and how it was sampled, as JSON.

        Raises:
            InputError: there is such a file, or it cannot be written.
        """
        if path.exists() or path.is_symlink():
            raise InputError(f"{path}: is there already; name another file")
        value = {"sampling": vars(self.sampling) | {"seed": self.seed}} | {
            "conversations": {name: [message.model_dump() for message in said] for name, said in self.messages.items()}
        }
        try:
            write_json(path, value)
        except OSError as error:
            raise InputError(f"{path}: cannot write ({error.strerror}); name another file") from None


@contextmanager
def open_speakers(models: Sequence[Parts], runtime: RuntimeSettings) -> Iterator[list[Speaker]]:
    """Yield the models, ready to reply: alone one is merged, as it is exported; two of one base are adapters over it.

    The texts of a merged model are those of plain transformers with its export. An adapter beside the base's weights
    gives the same numbers up to rounding.
    """
    for parts in models:
        if parts.is_reward_model:
            raise InputError(f"{parts.name}: a reward model scores text and writes none; name another model")
    if len({parts.name for parts in models}) < len(models):
        models = [Parts(f"{parts.name} ({i})", parts.model_dir, parts.base_dir) for i, parts in enumerate(models, 1)]
    bases = {(parts.base_dir or parts.model_dir).resolve() for parts in models}
    if len(models) == 1 or len(bases) > 1:
        yield [_merged(parts, runtime) for parts in models]
        return
    stack = AdapterStack(bases.pop(), runtime)
    speakers = []
    for parts in models:
        stack.add(parts.name, parts.model_dir)
        speakers.append(Speaker(parts.name, load_tokenizer(parts.model_dir), _using(stack, parts.name)))
    yield speakers


def _merged(parts: Parts, runtime: RuntimeSettings) -> Speaker:
    model = load_merged(parts, runtime.torch_dtype)
    torch.nn.Module.to(model, runtime.torch_device)
    return Speaker(parts.name, load_tokenizer(parts.model_dir), lambda: nullcontext(model))


def _using(stack: AdapterStack, name: str) -> Callable[[], AbstractContextManager[PreTrainedModel]]:
    return lambda: stack.using(name)


@torch.no_grad()
def reply_to(
    speaker: Speaker, messages: Sequence[Message], sampling: SamplingParams, seed: int, on_text: OnText
) -> Reply:
    """Return a speaker's reply, or what there was of it when Ctrl-C came.

    Raises:
        InputError: the messages fill the model's context.
    """
    ids = encode_prompt(speaker.tokenizer, messages)
    with speaker.using() as model:
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        room = sampling.max_new_tokens if limit is None else min(sampling.max_new_tokens, limit - len(ids))
        if room < 1:
            raise InputError(
                f"{speaker.name}: the conversation has {len(ids)} tokens and the model's context {limit}; "
                "say less, or /reset"
            )
        drawn: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        torch.manual_seed(seed)
        stream = _Stream(speaker.tokenizer, on_text)
        tokens = torch.tensor([ids], device=model.device)
        generate: Any = model.generate
        ending: Ending
        try:
            generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=room, max_length=None, streamer=stream,
                pad_token_id=speaker.tokenizer.pad_token_id, **drawn,
            )  # fmt: skip
        except KeyboardInterrupt:
            ending = "interrupted"
        else:
            ends = model.generation_config.eos_token_id if model.generation_config is not None else None
            ends = ends if isinstance(ends, list) else [ends]
            ending = "stop" if stream.ids and stream.ids[-1] in [*ends, speaker.tokenizer.eos_token_id] else "length"
    return Reply(stream.text(), ending)


class _Stream(BaseStreamer):
    """Decodes what a model writes; a character of several tokens is shown when it is whole."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: OnText) -> None:
        self.tokenizer, self.on_text = tokenizer, on_text
        self.ids: list[int] = []
        self.prompt = True  # comes first

    def put(self, value: Tensor) -> None:
        """Take the prompt, then each token."""
        if self.prompt:
            self.prompt = False
            return
        self.ids += value.flatten().tolist()
        text = self.text()
        if not text.endswith("\ufffd"):
            self.on_text(text)

    def end(self) -> None:
        """Show what is left."""
        self.on_text(self.text())

    def text(self) -> str:
        """Return the text so far."""
        return str(self.tokenizer.decode(self.ids, skip_special_tokens=True))
