# bnvuln on NVIDIA GPUs. The host needs an NVIDIA driver for CUDA 12 and the NVIDIA Container Toolkit.
#
#   docker build -t bnvuln .
#   docker run --rm --gpus all -v bnvuln-data:/data -v "$PWD/runs:/workspace/runs" --user "$(id -u):$(id -g)" \
#       bnvuln reproduce table6 --scale quick
#
# (make runs/ first, so that it is yours). Does TensorFlow see the GPU?
#
#   docker run --rm --gpus all --entrypoint python bnvuln -c \
#       "import tensorflow as tf; print(tf.config.list_physical_devices('GPU'))"
#
# Not tested: where this file was written there was no Docker engine, so the image has never been built or run. What was
# checked is that pip resolves ".[cuda]" with constraints.txt on Python 3.11, and that the files copied here make the wheel.
FROM python:3.11-slim

WORKDIR /source
COPY pyproject.toml setup.cfg constraints.txt README.md LICENSE NOTICE ./
COPY bn_vuln bn_vuln
COPY cli cli
COPY configs configs
# CUDA comes with TensorFlow's own wheels (extra cuda); constraints.txt is the set that is tested.
RUN pip install --no-cache-dir --disable-pip-version-check -c constraints.txt ".[cuda]" && rm -rf build ./*.egg-info

# Any user (--user) may write where runs and data go; without --user it is this one.
RUN useradd --create-home --uid 1000 bnvuln && mkdir -p /workspace/runs /data && chmod 1777 /workspace /workspace/runs /data
ENV HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    TFDS_DATA_DIR=/data \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER bnvuln
WORKDIR /workspace
VOLUME ["/workspace/runs", "/data"]
ENTRYPOINT ["bnvuln"]
CMD ["--help"]
