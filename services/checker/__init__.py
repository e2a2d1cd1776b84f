"""The checker: reads what the services stored and decides whether every order was settled exactly once.

It is independent of them: it knows their tables by name and shares none of their code but the database's connection.
"""
