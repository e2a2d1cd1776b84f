"""Reconciliation (对账): what the acquirer says it holds, against our payments, books and orders.

A client of the stubs like any other: `reading.py` asks all four, page by page, `matching.py` compares, and
`repairing.py` mends what differs through the same operations that made it, each of which may be repeated.
"""
