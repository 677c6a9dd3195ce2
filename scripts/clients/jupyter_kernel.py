"""jupyter-kernel-client: a kernel that keeps its variables."""

import os

import jupyter_kernel_client

make = getattr(jupyter_kernel_client, "JupyterKernelClient", None) or jupyter_kernel_client.KernelClient
with make(server_url=f"{os.environ['WG_URL']}/jupyter", token=os.environ["WG_KEY"]) as kernel:
    kernel.execute("x = 41")
    assert "42" in str(kernel.execute("print(x + 1)")["outputs"])
