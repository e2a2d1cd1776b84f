"""A TCP proxy with toxiproxy's toxics, and toxiproxy's HTTP API in front of many of them."""
