"""Chaos: a seeded workload, seeded faults, and a history of both for the checker.

`plan` draws which fault is injected where and when; `faults` are the fault types, `targets` the deployments they can be
injected into. `injector` injects a plan while `workload` settles orders. `runner` runs and judges one seed, `sweep`
many.
"""
