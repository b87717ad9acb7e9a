"""nginx as a contender: its cache, a plain reverse proxy, a constant answer, and nchan. One worker each."""

from __future__ import annotations

import tempfile
import textwrap
from pathlib import Path
from urllib.parse import urlsplit

from loadtest.contenders import Contender, Missing, free_port, local
from loadtest.load import find_program

CACHE = "nginx proxy_cache"
REVERSE = "nginx reverse proxy"
CONSTANT = "nginx return 200"


def cache(upstream: str) -> Contender:
    """proxy_cache in front of the upstream."""
    server = """
        location / {{
            proxy_pass %s;
            proxy_cache nacos;
            proxy_cache_valid 200 10s;
            proxy_cache_use_stale error timeout updating;
            proxy_cache_lock on;
        }}
    """
    head = "proxy_cache_path {folder}/cache keys_zone=nacos:64m levels=1:2 inactive=10m;"
    return _nginx(CACHE, server % upstream, head=head)


def reverse(upstream: str) -> Contender:
    """A reverse proxy that keeps connections to the upstream open."""
    server = """
        location / {{
            proxy_pass http://nacos;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
        }}
    """
    head = f"upstream nacos {{{{ server {urlsplit(upstream).netloc}; keepalive 256; keepalive_requests 100000000; }}}}"
    return _nginx(REVERSE, server, head=head)


def constant() -> Contender:
    """The same short answer to every request: how much load wrk can make."""
    return _nginx(CONSTANT, "location / {{ return 200 ok; }}")


def nchan() -> Contender:
    """nchan: /pub?id=x publishes, /sub?id=x is an event stream."""
    server = """
        location /pub {{ nchan_publisher; nchan_channel_id $arg_id; nchan_message_buffer_length 10; }}
        location /sub {{ nchan_subscriber eventsource; nchan_channel_id $arg_id; }}
        location / {{ return 200; }}
    """
    return _nginx("nchan", server, module="ngx_nchan_module.so")


def _nginx(name: str, server: str, *, head: str = "", module: str = "") -> Contender:
    program = find_program("nginx") or ("/usr/sbin/nginx" if Path("/usr/sbin/nginx").is_file() else None)
    if program is None:
        raise Missing(f"{name} is not installed (Debian: nginx)")
    library = Path("/usr/lib/nginx/modules") / module
    if module and not library.is_file():
        raise Missing(f"{name} is not installed (Debian: libnginx-mod-nchan)")
    port, folder = free_port(), tempfile.TemporaryDirectory()
    Path(folder.name).chmod(0o755)
    text = f"""
        daemon off; master_process on; worker_processes 1; worker_rlimit_nofile 65536; user root;
        pid {{folder}}/nginx.pid; error_log {{folder}}/error.log error;
        {f"load_module {library};" if module else ""}
        events {{{{ worker_connections 60000; }}}}
        http {{{{
            access_log off; keepalive_requests 100000000; keepalive_timeout 300s;
            client_body_temp_path {{folder}}/body; proxy_temp_path {{folder}}/proxy; fastcgi_temp_path {{folder}}/fcgi;
            uwsgi_temp_path {{folder}}/uwsgi; scgi_temp_path {{folder}}/scgi;
            {head}
            server {{{{ listen 127.0.0.1:{port} backlog=4096; {server} }}}}
        }}}}
    """
    config = Path(folder.name) / "nginx.conf"
    config.write_text(textwrap.dedent(text.format(folder=folder.name)))
    return Contender(name, local(port), [program, "-c", str(config), "-p", folder.name], folder).start()
