-- The transaction of service.py, statement by statement, as a script of pgbench: the ceiling.
-- A client counts its transactions in :number; with the number of the run, :run, each settles an order of its own.
\set number :number + 1
\set id (:run * 100 + :client_id) * 1000000 + :number
BEGIN;
INSERT INTO requests (request_id, order_id) VALUES ('settle-' || :id::text, 'ceiling-' || :id::text)
  ON CONFLICT DO NOTHING RETURNING 1 AS inserted \gset
UPDATE orders SET state = 'PAID', payment_id = 'pay-' || :id::text, paid_at_ms = :id
  WHERE order_id = 'ceiling-' || :id::text AND state = 'OPEN' RETURNING amount_minor AS amount, currency_code AS currency \gset
INSERT INTO postings (payment_id, account_id, order_id, amount)
  VALUES ('pay-' || :id::text, 'drawer', 'ceiling-' || :id::text, :amount::bigint),
         ('pay-' || :id::text, 'sales', 'ceiling-' || :id::text, -(:amount::bigint));
UPDATE requests SET response = convert_to(repeat('r', 200), 'UTF8') WHERE request_id = 'settle-' || :id::text;
UPDATE accounts SET balance = balance + :amount WHERE account_id = 'drawer';
UPDATE accounts SET balance = balance - :amount WHERE account_id = 'sales';
COMMIT;
