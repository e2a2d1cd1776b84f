"""Chaos: a seeded workload, seeded faults, and a history of both for the checker.

`plan` says which fault strikes whom and when; `world` is what faults can lay their hands on, `local` and `compose` two
such worlds; `nemesis` brings the plan about; `workload` is the people meanwhile; `run` puts it together.
"""
