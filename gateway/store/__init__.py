"""Where session records, leases and the history of claims are kept: one interface, two engines, a cache in front."""
