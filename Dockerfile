# glint for NVIDIA GPUs: docker build -t glint .
# The wheels of torch bring CUDA; the host has the driver and NVIDIA's container toolkit.
FROM python:3.12-slim-bookworm

# Triton compiles a launcher for each kernel: it needs a C compiler where it runs.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY glint ./glint
COPY pipelines ./pipelines
COPY train ./train
COPY manifests ./manifests
RUN pip install --no-cache-dir ".[gpu,s3,tensorboard]" && rm -rf /src

ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TRITON_CACHE_DIR=/tmp/triton
# Datasets and runs: what `glint launch k8s` mounts.
WORKDIR /shared
CMD ["glint", "doctor"]
