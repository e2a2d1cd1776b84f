"""What every service does with its database: transactions, migrations, roles, and the table of request ids."""
