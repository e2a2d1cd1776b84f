"""What demo, chaos and tests share: clients that record their calls, and a harness around a running stack."""
