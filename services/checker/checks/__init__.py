"""What must be true after any run: one module a subject, one function a check."""
