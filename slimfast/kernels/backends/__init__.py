"""Backends: modules with the functions of :class:`slimfast.kernels.backends.contract.Backend`."""
