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

FROM python:3.11.13-slim-bookworm
COPY --from=build /opt/wakegate /opt/wakegate
RUN useradd --uid 1000 --home-dir /var/lib/wakegate --create-home wakegate
USER 1000:1000
EXPOSE 8080
ENTRYPOINT ["/opt/wakegate/bin/wakegate"]
CMD ["serve"]
