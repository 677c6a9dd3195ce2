"""OpenAI's client: containers and their files."""

import os

from openai import OpenAI

with OpenAI(base_url=f"{os.environ['WG_URL']}/v1", api_key=os.environ["WG_KEY"], max_retries=0) as client:
    container = client.containers.create(name="mine")
    uploaded = client.containers.files.create(container.id, file=("a.txt", b"text"))
    assert client.containers.files.content.retrieve(uploaded.id, container_id=container.id).read() == b"text"
    client.containers.delete(container.id)
