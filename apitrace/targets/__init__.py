"""What is to be traced: pid, process tree, comm, cgroup, container, pod. Resolved once, into a TargetSet."""
