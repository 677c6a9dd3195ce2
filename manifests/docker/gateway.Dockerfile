# The gateway. Build from the checkout's root:
#   docker build -f manifests/docker/gateway.Dockerfile -t wakegate/gateway:0.1.0 .
FROM python:3.11.13-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
COPY gateway gateway
COPY picod picod
COPY wakegate_client wakegate_client
RUN python -m venv /opt/wakegate \
 && /opt/wakegate/bin/pip install --no-cache-dir -c constraints.txt .
# 80 of 330 MB that no gateway uses: pip, tests of packages, and symbols for debuggers, of those packages that have many.
# (Others' libraries were changed after they had been linked, which strip may not survive.) Bytecode stays: the image is
# read-only, and without it each start compiles for seconds.
RUN apt-get update && apt-get install -y --no-install-recommends binutils && rm -rf /var/lib/apt/lists/* \
 && /opt/wakegate/bin/pip uninstall -q -y setuptools pip \
 && find /opt/wakegate/lib -type d -name tests -prune -exec rm -rf {} + \
 && cd /opt/wakegate/lib/python3.*/site-packages && strip --strip-unneeded uvloop/*.so zstandard/*.so aiohttp/*.so yaml/*.so \
 && /opt/wakegate/bin/python -c 'import aiohttp, numpy, obstore, uvloop, yaml, zstandard, PIL.Image, gateway.cli'

FROM python:3.11.13-slim-bookworm
COPY --from=build /opt/wakegate /opt/wakegate
RUN useradd --uid 1000 --home-dir /var/lib/wakegate --create-home wakegate
USER 1000:1000
EXPOSE 8080
ENTRYPOINT ["/opt/wakegate/bin/wakegate"]
CMD ["serve"]
