"""Changes to vLLM and to what it runs on, one a file. Each file opens in the same form:

    The first line says what it changes.

    Why: the fault or the cost, with the figure that shows it where there is one.
    Where: the processes and devices in which it is installed, and networks if it is not for all.
    Upstream: the thread that is about this, as owner/repository#number, or "none known".
    Needed: the test that fails when it is needed no longer, as file::name.
    Until: what must come about for this file to go.

A mend is installed by `install()`, which may run twice, or for a while by the context manager `installed()`. Some need
arguments of the engine too, or are nothing else: `ARGUMENTS`. Which process installs which stands in ../process.py.
"""
