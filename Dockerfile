# lm in a container: `docker build -t lm .` (BuildKit, Podman or Buildah alike); docs/service.md tells of it.
#
# BASE is Debian 12; `--build-arg BASE=debian@sha256:…` pins it to the bytes that you tested. The packages of Python are
# pinned by containers/constraints.txt. CPU says for which processors llama.cpp is compiled: a library for each kind,
# and a worker takes the best of them. `--build-arg LLAMA="--find-links /wheels"` takes a wheel of `scripts/bundle-software`.
ARG BASE=debian:12-slim

FROM ${BASE} AS build
ARG LLAMA="--no-binary llama-cpp-python"
ARG CPU="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON -DCMAKE_INSTALL_BINDIR=llama_cpp/lib"
RUN apt-get update && apt-get install -y --no-install-recommends binutils g++ python3 python3-dev python3-venv
WORKDIR /src
COPY containers/constraints.txt containers/
RUN python3 -m venv /opt/lm && CMAKE_ARGS="${CPU}" /opt/lm/bin/pip install --no-cache-dir --no-compile ${LLAMA} \
    --constraint containers/constraints.txt llama-cpp-python
COPY pyproject.toml README.md LICENSE ./
COPY cli cli
COPY quant quant
COPY registry registry
COPY runtime runtime
COPY server server
RUN /opt/lm/bin/pip install --no-cache-dir --no-compile --constraint containers/constraints.txt .
COPY containers/slim containers/
RUN sh containers/slim /opt/lm

FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates libgomp1 libstdc++6 python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* /usr/share/doc /usr/share/man /usr/share/locale \
    && useradd --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin lm \
    && install -d -o lm -g lm -m 0700 /data
COPY --from=build /opt/lm /opt/lm
ENV PATH=/opt/lm/bin:/usr/local/bin:/usr/bin:/bin LM_HOME=/data LM_HOST=0.0.0.0 HOME=/data PYTHONUNBUFFERED=1
USER 10001:10001
VOLUME /data
EXPOSE 11434
STOPSIGNAL SIGTERM
# It asks by lm's own ways (a key is not needed, TLS may be), and never starts a daemon, as `lm ps` would.
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s \
    CMD ["python3", "-P", "-c", "from cli.client import Client; Client(start=False).url"]
ENTRYPOINT ["lm"]
CMD ["serve"]
