"""A simulated outside bank that charges cards; it knows nothing of orders, locks or fences. See `README.md`."""
