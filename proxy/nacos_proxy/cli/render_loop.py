"""The loop of `render`: what it does when a list has changed, and when something fails.

One thread renders, writes and runs commands; a thread for each event stream tells it what has changed.
"""

from __future__ import annotations

import math
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import click

from nacos_proxy.cli.client_options import Session, warn
from nacos_proxy.cli.commands import Runner
from nacos_proxy.cli.failures import ApiProblem, Unreached
from nacos_proxy.cli.files import CannotReplace
from nacos_proxy.cli.follow import MAX_RECONNECT_DELAY, RETRY, Lost, Opened, Stream
from nacos_proxy.cli.lists import BadRequest, Lists, followed
from nacos_proxy.cli.pauses import Debounce, Retries, Told
from nacos_proxy.cli.streams import Revision, Streams
from nacos_proxy.cli.targets import Rendering, Target
from nacos_proxy.cli.templates import TemplateError
from nacos_proxy.model.backoff import Backoff
from nacos_proxy.model.printable import printable
from nacos_proxy.runtime import Clock, SystemClock

NAMES_EVERY = 10.0  # seconds between two lists of names, if a template uses `services()`


class RenderLoop:
    """Renders when a list has changed. It keeps every file as it is while anything is wrong, and says so once."""

    def __init__(
        self,
        session: Session,
        targets: Sequence[Target],
        runner: Runner,
        *,
        check: Sequence[str] = (),
        wait: tuple[float, float] = (0.5, 2.0),
        allow_empty: bool = False,
        names_every: float = NAMES_EVERY,
        clock: Clock | None = None,
    ) -> None:
        self._targets = targets
        self._runner = runner
        self._check = tuple(check)
        self._allow_empty = allow_empty
        self._names_every = names_every
        self._clock = clock or SystemClock()
        self._lists = Lists(lambda path, query: session.client.json("GET", path, query))
        self._found: SimpleQueue[Any] = SimpleQueue()
        self._streams = Streams(session.client, self._found)
        self._used: dict[Target, Rendering] = {}
        self._settling = Debounce(*wait)
        self._reads = Retries(Backoff(RETRY, MAX_RECONNECT_DELAY))  # of all lists, while the proxy is away
        self._retries = Retries()  # of targets and commands
        self._told = Told(warn)
        self._names_due = math.inf

    def print_all(self) -> None:
        """Raises what rendering raises."""
        for target in self._targets:
            made = target.render(self._lists, allow_empty=self._allow_empty)
            self._tell_held(target, made)
            click.echo(f"==> {target.spec.file}", err=True)
            click.echo(made.text, nl=False)

    def once(self) -> None:
        """Raises what rendering raises, and `OSError` if a check or a command fails."""
        for target in self._targets:
            self._update(target)
        for command in self._commands_due():
            if reason := self._run(command):
                raise OSError(reason)

    def forever(self) -> None:
        """Returns by an exception only. Raises `ApiProblem` if the proxy refuses the first reads for good."""
        before = signal.signal(signal.SIGHUP, self._on_hang_up)
        try:
            self.start()
            while True:
                self.step()
        finally:
            signal.signal(signal.SIGHUP, before)

    def start(self) -> None:
        """Renders everything. Raises `ApiProblem` if the proxy refuses for good."""
        self._render_all(first=True)
        self._run_commands()

    def step(self) -> None:
        """Waits until something has happened or is due, renders, and runs commands."""
        self._follow()
        self._take(min(self._settling.due, self._reads.next(), self._retries.next(), self._names_due))
        self._do_what_is_due()
        self._run_commands()

    def reload(self) -> None:
        """Reads the templates and all lists again, at the next step. A template with an error stays as it was."""
        for target in self._targets:
            try:
                target.reload()
            except TemplateError as error:
                warn(f"{error}. The template before stays in use.")
        self._lists.forget()
        self._hurry()
        self._settling.changed(self._clock.now())

    def _on_hang_up(self, number: int, _: object) -> None:
        self._found.put((None, number))

    def close(self) -> None:
        self._streams.close()

    def _take(self, due: float) -> None:
        """Waits for a message until `due`, and takes all that have come."""
        pause = due - self._clock.now()
        try:
            self._handle(*self._found.get(timeout=None if pause == math.inf else max(0.0, pause)))
            while True:
                self._handle(*self._found.get_nowait())
        except Empty:
            return

    def _do_what_is_due(self) -> None:
        now = self._clock.now()
        if self._names_due <= now:
            self._refresh_names(now)
        if self._settling.due <= now or self._reads.next() <= now:
            self._settling.done()
            self._render_all()
            return
        for target in self._targets:
            if -math.inf < self._retries.due_at(target) <= now:
                self._try(target)

    # messages

    def _handle(self, stream: Stream | None, message: object) -> None:
        now = self._clock.now()
        if stream is None:
            self.reload()
            return
        if (topic := self._streams.topic_of(stream)) is None:
            return
        if isinstance(message, Revision):
            if self._lists.changed(message.key, topic[1], message.revision):
                self._settling.changed(now)
        elif isinstance(message, Lost):
            self._streams.set_lost(stream, True)
            reason = "the event stream ended." if message.error is None else str(message.error)
            self._away(f"{reason} The files stay as they are. Trying again.")
        elif isinstance(message, Opened):
            self._streams.set_lost(stream, False)
            self._hurry()
            if not self._streams.lost:
                self._told.over("proxy", "the proxy answers again")

    def _hurry(self) -> None:
        """Tries again now what has failed, because the cause may be gone."""
        now = self._clock.now()
        self._reads.hurry(now)
        self._retries.hurry(now)

    def _refresh_names(self, now: float) -> None:
        self._names_due = now + self._names_every
        try:
            if self._lists.refresh_names():
                self._settling.changed(now)
        except (Unreached, ApiProblem):
            return  # the stream says when the proxy is away; until it is back, the names stay

    def _away(self, text: str) -> None:
        if "proxy" not in self._told:
            self._told.failing("proxy", text)

    # files

    def _render_all(self, *, first: bool = False) -> None:
        for target in self._targets:
            if not self._try(target, first=first):
                return
        self._reads.done("lists")
        if not self._streams.lost:
            self._told.over("proxy", "the proxy answers again")
        self._lists.keep_only(
            {asked for made in self._used.values() for asked in made.reader.used},
            {group for made in self._used.values() for group in made.reader.groups},
        )

    def _try(self, target: Target, *, first: bool = False) -> bool:
        """Brings one file up to date. Returns False if the proxy cannot be reached, and says other failures."""
        file, now = target.spec.file, self._clock.now()
        try:
            self._update(target)
        except Unreached as error:
            for one in self._targets:
                self._retries.done(one)
            self._reads.failed("lists", now)  # of all targets
            self._away(f"{error} The files stay as they are. Trying again.")
            return False
        except (ApiProblem, TemplateError, OSError) as error:
            if first and isinstance(error, ApiProblem) and not error.temporary:
                raise
            self._retries.failed(target, now)
            text = str(error).rstrip(".")
            self._told.failing(target, f"{text}. {file} stays as it is. Trying again.")
        else:
            self._retries.done(target)
            self._told.over(target)
        return True

    def _update(self, target: Target) -> None:
        """Raises what rendering raises, and `OSError` if the file cannot be written or the check refuses it."""
        file = target.spec.file
        made = target.render(self._lists, allow_empty=self._allow_empty)
        self._used[target] = made
        self._tell_held(target, made)
        if made.text == made.before:
            target.confirm(made)
            return
        if made.reader.blocked:
            return
        refused: list[str] = []

        def check(new: Path) -> bool:
            if self._check:
                command = [word.replace("{}", str(new)) for word in self._check]
                if reason := self._runner.run(command):
                    refused.append(f"{shlex.join(command)}: {reason}")
            return not refused

        if not target.write(made, check):
            raise CannotReplace(f"the check refuses the new text: {refused[0]}")
        self._retries.done(target.spec.command)  # with a new text, the command may succeed
        click.echo(f"nacos-proxy: wrote {printable(str(file))}", err=True)

    def _tell_held(self, target: Target, made: Rendering) -> None:
        file, reader = target.spec.file, made.reader
        held = {("held", target, key): f"{file} keeps its last list" for key in reader.held}
        blocked = {("held", target, key): f"{file} stays as it is" for key in reader.blocked}
        said = held | (blocked if made.text != made.before else {})
        for what, text in said.items():
            self._told.failing(what, f"nothing usable is left of {what[2]}; {text}. --allow-empty empties it.")
        self._told.only(("held", target), said)

    # commands

    def _commands_due(self) -> list[tuple[str, ...]]:
        """One command for several files runs once."""
        return list(dict.fromkeys(target.spec.command for target in self._targets if target.command_due))

    def _run_commands(self) -> None:
        commands = self._commands_due()
        for command in {target.spec.command for target in self._targets}.difference(commands):
            self._retries.done(command)
        for command in commands:
            now = self._clock.now()
            if self._retries.due_at(command) > now:
                continue
            if reason := self._run(command):
                self._retries.failed(command, self._clock.now())
                self._told.failing(command, f"{reason}. Trying again, after growing pauses.")
            else:
                self._retries.done(command)
                self._told.over(command, f"{shlex.join(command)}: succeeded")

    def _run(self, command: tuple[str, ...]) -> str:
        """'' if it succeeded, else why not."""
        if reason := self._runner.run(command):
            return f"{shlex.join(command)}: {reason}"
        try:
            for target in self._targets:
                if target.spec.command == command:
                    target.command_done()
        except OSError as error:
            return f"{shlex.join(command)} succeeded, but this cannot be written down: {error}"
        return ""

    # streams

    def _follow(self) -> None:
        """Follows the services that the templates use now."""
        used = [asked for made in self._used.values() for asked in made.reader.used]
        try:
            self._streams.follow(followed(used))
        except BadRequest as error:
            self._told.failing("streams", str(error))
        else:
            self._told.over("streams")
        groups = any(made.reader.groups for made in self._used.values())
        self._names_due = min(self._names_due, self._clock.now() + self._names_every) if groups else math.inf
