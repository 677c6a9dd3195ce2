# A sandbox: picod, and beside it the python3 of user code. Build from the checkout's root:
#   docker build -f manifests/docker/picod.Dockerfile -t wakegate/picod:0.1.0 .
FROM python:3.11.13-slim-bookworm AS build
WORKDIR /src
COPY constraints.txt pyproject.toml manifests/docker/picod-requirements.txt ./
RUN python -m venv /opt/picod \
 && /opt/picod/bin/pip install --no-cache-dir -c constraints.txt -r picod-requirements.txt
RUN python -m venv /opt/user \
 && python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["sandbox"], sep="\n")' > user-requirements.txt \
 && /opt/user/bin/pip install --no-cache-dir -c constraints.txt -r user-requirements.txt
COPY picod /opt/picod/src/picod
RUN /opt/picod/bin/python -m compileall -q /opt/picod/src

FROM python:3.11.13-slim-bookworm
COPY --from=build /opt/picod /opt/picod
COPY --from=build /opt/user /opt/user
RUN useradd --uid 1000 --home-dir /workspace --create-home sandbox
USER 1000:1000
WORKDIR /workspace
ENV PATH=/opt/user/bin:/usr/local/bin:/usr/bin:/bin PYTHONPATH=/opt/picod/src
EXPOSE 8080
ENTRYPOINT ["/opt/picod/bin/python", "-m", "picod", "--host", "0.0.0.0", "--port", "8080"]
