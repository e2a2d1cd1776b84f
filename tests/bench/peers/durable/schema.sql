-- The application's tables of the peers restate and temporal. What these keep of steps is in servers of their own.
CREATE TABLE orders (
    order_id text PRIMARY KEY,
    amount_minor bigint NOT NULL CHECK (amount_minor > 0),
    currency_code text NOT NULL,
    state text NOT NULL DEFAULT 'OPEN',
    payment_id text UNIQUE,
    paid_at_ms bigint
);

CREATE TABLE accounts (
    account_id text PRIMARY KEY,
    balance bigint NOT NULL
);

CREATE TABLE postings (
    payment_id text NOT NULL,
    account_id text NOT NULL,
    order_id text NOT NULL,
    amount bigint NOT NULL CHECK (amount <> 0),
    PRIMARY KEY (payment_id, account_id)
);

INSERT INTO accounts VALUES ('drawer', 0), ('sales', 0);
