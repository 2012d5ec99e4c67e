"""For tests: a store's conformance suite, a runner on a virtual clock. Not for users.

| file | what it does |
|---|---|
| store_conformance, store_reference | what any store must do; brute-force answers to compare with |
| simulated_runner, simulate | thousands of trials in seconds |
| tiny_model | random models that read any text: what the tutorials are tried with |
"""
