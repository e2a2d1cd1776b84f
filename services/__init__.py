"""Countinghouse's services: order, payment, ledger, and what they stand on."""
