# syntax=docker/dockerfile:1
ARG PYTHON_VERSION=3.13

FROM python:${PYTHON_VERSION}-slim AS build
RUN python -m venv --without-pip /opt/nacos-proxy
WORKDIR /src
COPY pyproject.toml LICENSE README.md ./
COPY proxy ./proxy
RUN pip --python /opt/nacos-proxy install --no-cache-dir .

FROM python:${PYTHON_VERSION}-slim
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin nacos-proxy \
    && install -d -o nacos-proxy -g nacos-proxy -m 0700 /var/lib/nacos-proxy
COPY --from=build /opt/nacos-proxy /opt/nacos-proxy
ENV PATH=/opt/nacos-proxy/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NACOS_PROXY_PORT=8840 \
    NACOS_PROXY_STATE_DIR=/var/lib/nacos-proxy
USER nacos-proxy
VOLUME /var/lib/nacos-proxy
EXPOSE 8840 9840
STOPSIGNAL SIGTERM
# Uses the settings (port, TLS, Unix socket) that are in variables or in the file.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["python", "-m", "nacos_proxy.cli.health"]
# Nobody outside the container can reach 127.0.0.1 in it: set NACOS_PROXY_HOST=0.0.0.0 and a token (SECURITY.md).
ENTRYPOINT ["nacos-proxy"]
CMD ["serve"]
