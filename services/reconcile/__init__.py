"""Reconciliation (对账): the acquirer's statement against our payments, books and orders.

A client of the stubs like any other: `reading.py` asks all four, page by page, `matching.py` compares, and
`repairing.py` repairs what differs through the services' own operations, each of which may be repeated.
"""
