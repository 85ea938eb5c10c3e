"""The audit trail: one record for each verdict, each change of keys and each start, in a chain that shows tampering.

`chain` makes and checks the chain, `places` keeps lines in files, `trail` is one process's chain and its seals,
`writer` writes it beside the event loop, `records` says what a record holds, and `verify` reads everything again.
Nothing here holds content: only its keyed hash.
"""
