"""Fuzzing of what reads the files of strangers and of what the kernels are called with.

    python -m tests.fuzz --executions 1000000 --seed 0 [--target NAME]

Readers of bytes run under atheris, which is guided by the lines they reach (without it, under hypothesis);
targets of structure under hypothesis. Each target runs in a process of its own, which a second one watches: a
crash, an exception that is not for the user, a message that is not one line, or an execution that takes too
long is reported with its input. It belongs into ``crashes/TARGET/``, which the tests run from then on.

With ``SLIMFAST_FUZZ_CPU`` the kernels are taken from that file, built with sanitizers (``make sanitize``).
"""
