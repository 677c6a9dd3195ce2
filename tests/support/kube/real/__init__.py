"""A real control plane for the cluster's tests: etcd, kube-apiserver, controller manager and scheduler as processes.

Only the kubelet is ours, for no image can be pulled in a test; it is the simulator's, over the real API.
"""
