"""A simulated acquirer, which charges cards; it knows nothing of orders, locks or fences. See `README.md`."""
