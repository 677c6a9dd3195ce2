"""A whole cluster on one machine: a real control plane, and nodes in namespaces with kubelet, containerd and runc.

It needs root, and a network namespace of its own to run in: scripts/test-cluster makes both, and builds the programs
and images.
"""
