# gossamer behind HTTP. The first stage compiles it; the second has no compiler, and a user without rights runs it.
#
#     docker build -t gossamer .
#     docker run -p 127.0.0.1:8000:8000 -v /models:/models:ro -e GOSSAMER_API_KEY=... gossamer -m /models/my-model-int8
#
# It has kernels for every tier and chooses when it starts, so the image runs on any x86-64 machine.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY CMakeLists.txt pyproject.toml README.md LICENSE ./
COPY cmake cmake
COPY csrc csrc
COPY python python
RUN python -m venv /opt/gossamer && /opt/gossamer/bin/pip install --no-cache-dir ".[serve,grammar,audio]"

FROM python:${PYTHON}-slim
COPY --from=build /opt/gossamer /opt/gossamer
RUN useradd --create-home --uid 10001 gossamer && install -d -o gossamer /cache
USER gossamer
ENV PATH=/opt/gossamer/bin:$PATH GOSSAMER_HOME=/cache PYTHONUNBUFFERED=1
VOLUME /cache
EXPOSE 8000
HEALTHCHECK --start-period=10m CMD \
    ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
STOPSIGNAL SIGTERM
# Within the container it listens on all addresses; which of these others reach is what -p says.
ENTRYPOINT ["gossamer", "serve", "--host", "0.0.0.0"]
