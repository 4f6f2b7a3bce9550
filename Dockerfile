# An image for each service of docker-compose.yml: pipeline, workers (without torch), trainer (without OpenCV and
# albumentations). For BuildKit and for the classic builder; `make wheelhouse` first where there is no network.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
WORKDIR /build
# Wheels that are taken before any index's; the only ones where `make wheelhouse` has filled the folder for these very
# constraints. pyproject.toml goes along so that an empty or absent folder is no error.
ARG WHEELS=wheelhouse
COPY pyproject.toml ${WHEELS}/* wheels/
COPY pyproject.toml constraints.txt ./
COPY docker/requirements.py docker/
# pip lives apart: no image has it.
ENV PIP_CONSTRAINT=/build/constraints.txt PIP_FIND_LINKS=/build/wheels PIP_PYTHON=/opt/headrace/bin/python \
    PIP_CONFIG_FILE=/build/pip.conf PIP_NO_CACHE_DIR=1 PIP_PROGRESS_BAR=off PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /pip && python3 -m venv --without-pip /opt/headrace && touch pip.conf \
    && if cmp -s constraints.txt wheels/constraints.txt; then printf '[install]\nno-index = true\n' > pip.conf; fi

FROM build AS house
COPY LICENSE README.md ./
COPY headrace headrace
COPY pipeline pipeline
COPY workers workers
COPY trainer trainer
# A checkout may be closed to others, and a read-only image can't keep what Python compiles.
RUN /pip/bin/pip install --no-deps --no-compile --target /headrace . \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /headrace && chmod -R a+rX /headrace

FROM build AS for-pipeline
RUN python3 docker/requirements.py | /pip/bin/pip install -r /dev/stdin

FROM build AS for-workers
RUN python3 docker/requirements.py workers | /pip/bin/pip install -r /dev/stdin

FROM build AS for-trainer
RUN python3 docker/requirements.py trainer report prometheus tensorboard | /pip/bin/pip install -r /dev/stdin

FROM build AS demo
RUN python3 docker/requirements.py demo | /pip/bin/pip install -r /dev/stdin
COPY --from=house /headrace /headrace
RUN PYTHONPATH=/headrace /headrace/bin/headrace demo-data /headrace/demo-data && chmod -R a+rX /headrace/demo-data

FROM ${BASE_IMAGE} AS service
# A name for the user, which torch asks for. An empty volume takes over owner and mode of the folder it is mounted on.
RUN useradd --uid 10001 --home-dir /tmp --no-create-home headrace \
    && install -d -o headrace -g headrace -m 700 /run/headrace /var/cache/headrace \
    && install -d -o headrace -g headrace /headrace /headrace/runs
ENV PATH=/headrace/bin:${PATH} PYTHONPATH=/headrace PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp XDG_RUNTIME_DIR=/run/headrace XDG_CACHE_HOME=/var/cache/headrace
COPY docker/train /usr/local/bin/
WORKDIR /headrace
USER 10001:10001
ENTRYPOINT ["headrace"]

FROM service AS pipeline
COPY --from=for-pipeline /opt/headrace /opt/headrace
COPY --from=house /headrace /headrace
CMD ["pipeline"]

FROM service AS workers
COPY --from=for-workers /opt/headrace /opt/headrace
COPY --from=demo /headrace/demo-data /headrace/demo-data
COPY --from=house /headrace /headrace
CMD ["workers", "--source", "photos=demo-data/train", "--source", "held_out=demo-data/held_out"]

FROM service AS trainer
COPY --from=for-trainer /opt/headrace /opt/headrace
COPY --from=demo /headrace/demo-data /headrace/demo-data
COPY --from=house /headrace /headrace
ENTRYPOINT ["train"]
