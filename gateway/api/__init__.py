"""The control surfaces: parse, call the lifecycle, serialise."""
