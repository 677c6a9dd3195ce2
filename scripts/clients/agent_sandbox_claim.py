"""agent-sandbox's client: a claim through the Kubernetes API, a command, a file."""

import os

import yaml
from k8s_agent_sandbox import SandboxClient
from k8s_agent_sandbox.models import SandboxDirectConnectionConfig
from kubernetes.config import new_client_from_config_dict

url, key = os.environ["WG_URL"], os.environ["WG_KEY"]
config = f"""
clusters: [{{name: w, cluster: {{server: "{url}"}}}}]
users: [{{name: w, user: {{token: "{key}"}}}}]
contexts: [{{name: w, context: {{cluster: w, user: w}}}}]
current-context: w
"""
client = SandboxClient(
    connection_config=SandboxDirectConnectionConfig(
        api_url=url, server_port=8888, extra_headers={"Authorization": f"Bearer {key}"}
    ),
    api_client=new_client_from_config_dict(yaml.safe_load(config)),
)
sandbox = client.create_sandbox("my-interpreter")
try:
    assert sandbox.commands.run("echo hi").stdout == "hi\n"
    sandbox.files.write("a.txt", "text")
    assert sandbox.files.read("a.txt") == b"text"
finally:
    sandbox.terminate()
