"""Settles orders and takes direct payments, each exactly once. Begin with README.md, then main.py."""
