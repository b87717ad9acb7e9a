"""`nacos-proxy config validate`: what `serve` would refuse, found without serving.

Never here: whether ports are free and servers answer. `nacos-proxy doctor` finds that.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping

from nacos_proxy.app.failures import BadSettings, CannotStart
from nacos_proxy.app.listening import check_dns_exposure, check_exposure, is_loopback, tls_context
from nacos_proxy.app.policies import guard_policy, nacos_policy, webhooks_policy
from nacos_proxy.app.setting_types import parse_dns_address
from nacos_proxy.app.settings import Loaded, Settings
from nacos_proxy.background.service_files import read_files
from nacos_proxy.runtime import SystemClock
from nacos_proxy.upstream.nacos.registry import NacosRegistry
from nacos_proxy.wire.service_files import BadFile

Check = Callable[[Settings], object]


def problems(loaded: Loaded) -> list[str]:
    """Each problem as a line that begins with its setting or file. Empty if `serve` would take these settings."""
    settings, found = loaded.settings, list[str]()
    for name, check in _CHECKS.items():
        try:
            check(settings)
        except (BadSettings, CannotStart, ValueError, OSError) as error:
            text = str(error) if _setting_of(str(error)) else f"{name}: {error}"
            if text not in found:  # two checks may need the same file
                found.append(text)
    return [*(_with_source(text, loaded.sources) for text in found), *_service_files(settings)]


def _setting_of(text: str) -> str:
    """The setting that a text begins with, or ''."""
    word = re.match(r"\w*", text)
    return word[0] if word and word[0] in Settings.model_fields else ""


def _with_source(text: str, sources: Mapping[str, str]) -> str:
    """Adds where the setting that the text begins with came from, if it says nothing of that."""
    source = sources.get(_setting_of(text), "")
    return f"{text} ({source})" if source and source not in text else text


def _service_files(s: Settings) -> Iterator[str]:
    if s.services_dir is None:
        return
    try:
        files = read_files(s.services_dir)
    except BadFile as error:
        yield f"services_dir {s.services_dir} {error}"
        return
    yield from (f"{s.services_dir / name}: {text}" for name, text in files.items() if isinstance(text, str))


def _upstream(s: Settings) -> None:
    s.read_password()

    async def make() -> None:  # it needs a running event loop
        await NacosRegistry(nacos_policy(s), SystemClock()).close()

    if not s.embedded:
        asyncio.run(make())


def _tls(s: Settings) -> None:
    if s.tls_cert is not None:
        tls_context(s.tls_cert, s.tls_key, s.tls_client_ca)


def _dns(s: Settings) -> None:
    check_dns_exposure(s, [host for host, _ in map(parse_dns_address, s.dns) if not is_loopback(host)])


_CHECKS: dict[str, Check] = {
    "upstream": _upstream,
    "tls_cert": _tls,
    "tokens": guard_policy,
    "webhooks": webhooks_policy,
    "host": check_exposure,
    "dns": _dns,
}
