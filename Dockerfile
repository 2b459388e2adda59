# docker build -t rdcd .
# docker build -t rdcd --build-arg BASE=python:3.12-slim .
# docker run --rm --gpus all --ipc=host -v "$PWD/runs:/home/rdcd/work/runs" rdcd sh train.sh
# The wheels bring the CUDA libraries; a CUDA base adds the check that the host's driver is new enough.
# Mounted folders must be writable for the image's user: build with --build-arg USER_ID="$(id -u)".
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

# libmagic1: AugLy looks at file types with it.
# hadolint ignore=DL3008
RUN set -- libmagic1 \
    && { python3 -c 'import ensurepip, venv' 2>/dev/null || set -- "$@" python3 python3-venv; } \
    && apt-get update \
    && apt-get install --yes --no-install-recommends "$@" \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --home-dir "$HOME" --non-unique --uid "$USER_ID" --shell /bin/sh rdcd \
    && install --directory --owner="$USER_ID" /home/rdcd/work

USER ${USER_ID}
WORKDIR /home/rdcd/work

# The large layer: remade only when the requirements change.
COPY --chown=rdcd requirements.txt ./
RUN python3 -m venv "$VIRTUAL_ENV" \
    && pip install --no-cache-dir -r requirements.txt

COPY --chown=rdcd . .
RUN PIP_NO_CACHE_DIR=1 sh scripts/setup.sh test \
    && mkdir -p runs benchmarks

ENTRYPOINT []
CMD ["sh", "train.sh"]
