"""A conversation in a terminal or a pipe: lines in, replies out as they are written, alone or side by side.

What a model writes is text of unknown origin: what a terminal would obey is shown as an escape.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from align.cli.chat.conversation import Conversation, Reply
from align.core.errors import InputError, printable

HELP = "/reset: forget all; /system TEXT: another system prompt, and forget all; /save FILE; /exit; //x says /x"


def talk(conversation: Conversation) -> None:
    """Answer each line of stdin until it ends or says /exit.

    Raises:
        InputError: a line of a pipe cannot be answered; in a terminal it is shown, and the next is read.
    """
    terminal = sys.stdin.isatty()
    if terminal:
        names = ", ".join(speaker.name for speaker in conversation.speakers)
        click.echo(printable(f"{names}. {HELP}; Ctrl-C stops a reply, Ctrl-D ends"))
    for line in _lines(terminal):
        try:
            if line.startswith("/") and not line.startswith("//"):
                if not _command(conversation, line):
                    return
            elif line:
                _answer(conversation, line.removeprefix("/") if line.startswith("//") else line)
        except InputError as error:
            if not terminal:
                raise
            error.show()


def _lines(terminal: bool) -> Iterator[str]:
    if not terminal:
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8", errors="replace")
        for line in sys.stdin:
            yield line.strip()
        return
    with suppress(ImportError):  # not every system has it
        import_module("readline")  # gives input() its keys and a history
    while True:
        try:
            yield input("> ").encode("utf-8", "replace").decode().strip()
        except KeyboardInterrupt:
            click.echo()
        except EOFError:
            click.echo()
            return


def _command(conversation: Conversation, line: str) -> bool:
    """Do what a line asks for; returns whether the conversation goes on."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/exit":
        return False
    if name == "/reset":
        conversation.reset()
    elif name == "/system":
        conversation.system = rest or None
        conversation.reset()
    elif name == "/save" and rest:
        conversation.save(Path(rest))
        click.echo(printable(f"saved to {rest}"), err=True)
    elif name == "/help":
        click.echo(HELP)
    else:
        raise InputError(f"no such command: {line}; {HELP}")
    return True


def _answer(conversation: Conversation, text: str) -> None:
    if len(conversation.speakers) > 1:
        _side_by_side(conversation, text)
        return
    shown = ""

    def show(_: str, so_far: str) -> None:
        nonlocal shown
        # What was shown stays: decoding a few more tokens only adds to it.
        click.echo(_safe(so_far[len(shown) :]), nl=False)
        shown = so_far

    (reply,) = conversation.ask(text, show).values()
    click.echo(_mark(reply, conversation))


def _side_by_side(conversation: Conversation, text: str) -> None:
    console = Console(file=sys.stdout, markup=False, emoji=False, highlight=False)
    texts = {speaker.name: "" for speaker in conversation.speakers}
    with Live(_table(texts), console=console, auto_refresh=False, vertical_overflow="crop", transient=True) as live:

        def show(name: str, so_far: str) -> None:
            texts[name] = so_far
            if console.is_terminal:
                live.update(_table(texts), refresh=True)

        replies = conversation.ask(text, show)
        live.update("")
    console.print(_table({name: reply.text + _mark(reply, conversation) for name, reply in replies.items()}))


def _table(texts: Mapping[str, str]) -> Table:
    table = Table(expand=True)
    for name in texts:
        table.add_column(Text(printable(name)), ratio=1)
    table.add_row(*(Text(_safe(text)) for text in texts.values()))
    return table


def _mark(reply: Reply, conversation: Conversation) -> str:
    if reply.ending == "length":
        return f" [cut: --max-new-tokens {conversation.sampling.max_new_tokens}, or the context is full]"
    return " [stopped]" if reply.ending == "interrupted" else ""


def _safe(text: str) -> str:
    """Return a text of which only the ends of lines are obeyed."""
    return "\n".join(printable(line) for line in text.expandtabs(4).split("\n"))
