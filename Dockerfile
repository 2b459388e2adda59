# docker build -t rdcd --build-arg COMMIT="$(git rev-parse HEAD)" .
# docker build -t rdcd --build-arg BASE=python:3.12-slim .
# mkdir -p runs benchmarks  # Docker would make them root's
# docker run --rm --gpus all --ipc=host --user "$(id -u)" -v "$PWD/runs:/home/rdcd/work/runs" \
#     -v "$PWD/benchmarks:/home/rdcd/work/benchmarks" rdcd sh train.sh
# The wheels bring the CUDA libraries; a CUDA base adds the check that the host's driver is new enough.
# Its user is USER_ID; any other works too (--user), and mounted folders must be writable for the one that runs.
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04
FROM ${BASE}

ARG USER_ID=1000
ENV DEBIAN_FRONTEND=noninteractive \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1 \
    HOME=/home/rdcd \
    VIRTUAL_ENV=/home/rdcd/venv \
    PATH=/home/rdcd/venv/bin:$PATH

# libmagic1: AugLy looks at file types with it. g++ and Python.h: torch.compile builds with them, on a GPU too.
# hadolint ignore=DL3008
RUN set -- g++ libmagic1 \
    && { python3 -c 'import ensurepip, os, sysconfig, venv; os.stat(sysconfig.get_path("include") + "/Python.h")' \
         2>/dev/null || set -- "$@" python3-dev python3-venv; } \
    && apt-get update \
    && apt-get install --yes --no-install-recommends "$@" \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --home-dir "$HOME" --non-unique --uid "$USER_ID" --shell /bin/sh rdcd \
    && install --directory --owner="$USER_ID" --mode=1777 "$HOME" "$HOME/work"

USER ${USER_ID}
WORKDIR /home/rdcd/work

# The large layer: remade only when the requirements change.
COPY --chown=rdcd requirements.txt ./
RUN python3 -m venv "$VIRTUAL_ENV" \
    && pip install --no-cache-dir -r requirements.txt

COPY --chown=rdcd . .
# Git stays outside; result files name this commit.
ARG COMMIT=
RUN PIP_NO_CACHE_DIR=1 sh scripts/setup.sh test \
    && mkdir -m 1777 runs benchmarks \
    && echo "$COMMIT" >.rdcd-commit

ENTRYPOINT []
CMD ["sh", "train.sh"]
