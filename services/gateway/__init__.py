"""HTTP and JSON for the public methods of the services: a client of their stubs like any other."""
