CREATE FUNCTION public.order_events_refuse() RETURNS trigger
    LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'order_events refuses %', TG_OP USING ERRCODE = 'restrict_violation'; END $$;
CREATE FUNCTION public.order_lines_refuse() RETURNS trigger
    LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'order_lines refuses %', TG_OP USING ERRCODE = 'restrict_violation'; END $$;
CREATE FUNCTION public.orders_refuse() RETURNS trigger
    LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'orders refuses %', TG_OP USING ERRCODE = 'restrict_violation'; END $$;
CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.ensemble (
    id integer NOT NULL,
    generation bigint NOT NULL
);
CREATE SEQUENCE public.ensemble_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.ensemble_id_seq OWNED BY public.ensemble.id;
CREATE TABLE public.order_events (
    order_id character varying(64) NOT NULL,
    version bigint NOT NULL,
    from_state character varying(16) NOT NULL,
    to_state character varying(16) NOT NULL,
    round integer NOT NULL,
    payment_id character varying(64) NOT NULL,
    fence_generation bigint NOT NULL,
    fence_token bigint NOT NULL,
    actor_name character varying(64) NOT NULL,
    actor_role character varying(16) NOT NULL,
    at_ms bigint NOT NULL
);
CREATE TABLE public.order_lines (
    order_id character varying(64) NOT NULL,
    number integer NOT NULL,
    description character varying(200) NOT NULL,
    quantity bigint NOT NULL,
    unit_minor_units bigint NOT NULL
);
CREATE TABLE public.orders (
    seq bigint NOT NULL,
    order_id character varying(64) NOT NULL,
    customer_id character varying(64) NOT NULL,
    state character varying(16) NOT NULL,
    amount_minor_units bigint NOT NULL,
    currency_code character varying(3) NOT NULL,
    line_count integer NOT NULL,
    version bigint NOT NULL,
    round integer NOT NULL,
    payment_id character varying(64) NOT NULL,
    settled_by_name character varying(64) NOT NULL,
    settled_by_role character varying(16) NOT NULL,
    settled_at_ms bigint NOT NULL,
    fence_generation bigint NOT NULL,
    fence_token bigint NOT NULL,
    created_at_ms bigint NOT NULL,
    updated_at_ms bigint NOT NULL,
    CONSTRAINT orders_amount_is_payable CHECK ((amount_minor_units > 0)),
    CONSTRAINT orders_payment_is_named_while_it_holds CHECK ((((state)::text = ANY ((ARRAY['PAYING'::character varying, 'PAID'::character varying])::text[])) = ((payment_id)::text <> ''::text))),
    CONSTRAINT orders_settled_when_paid CHECK ((((state)::text = 'PAID'::text) = (settled_at_ms > 0)))
);
CREATE SEQUENCE public.orders_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.orders_seq_seq OWNED BY public.orders.seq;
CREATE TABLE public.requests (
    caller character varying(64) NOT NULL,
    method character varying(32) NOT NULL,
    key character varying(64) NOT NULL,
    state character varying(16) NOT NULL,
    fingerprint character varying(64) NOT NULL,
    attempt bigint NOT NULL,
    owner character varying(64) NOT NULL,
    lease_until_ms bigint NOT NULL,
    expires_at_ms bigint NOT NULL,
    order_id character varying(64) NOT NULL,
    response_ok boolean,
    response bytea,
    created_at_ms bigint NOT NULL,
    updated_at_ms bigint NOT NULL
);
ALTER TABLE ONLY public.ensemble ALTER COLUMN id SET DEFAULT nextval('public.ensemble_id_seq'::regclass);
ALTER TABLE ONLY public.orders ALTER COLUMN seq SET DEFAULT nextval('public.orders_seq_seq'::regclass);
INSERT INTO public.alembic_version VALUES ('0001');
INSERT INTO public.ensemble VALUES (1, 1);
INSERT INTO public.order_events VALUES ('drawer-paid', 1, '', 'UNPAID', 1, '', 0, 0, 'li', 'cashier', 1795838878201);
INSERT INTO public.order_events VALUES ('card-paid', 1, '', 'UNPAID', 1, '', 0, 0, 'li', 'cashier', 1795838878752);
INSERT INTO public.order_events VALUES ('reversed', 1, '', 'UNPAID', 1, '', 0, 0, 'li', 'cashier', 1795838879613);
INSERT INTO public.order_events VALUES ('unpaid', 1, '', 'UNPAID', 1, '', 0, 0, 'li', 'cashier', 1795838880744);
INSERT INTO public.order_events VALUES ('cancelled', 1, '', 'UNPAID', 1, '', 0, 0, 'li', 'cashier', 1795838881648);
INSERT INTO public.order_events VALUES ('card-unknown', 1, '', 'UNPAID', 1, '', 0, 0, 'li', 'cashier', 1795838883390);
INSERT INTO public.order_events VALUES ('card-declined', 1, '', 'UNPAID', 1, '', 0, 0, 'li', 'cashier', 1795838885437);
INSERT INTO public.order_events VALUES ('wallet-paid', 1, '', 'UNPAID', 1, '', 0, 0, 'li', 'cashier', 1795838886415);
INSERT INTO public.order_events VALUES ('of-customer-li', 1, '', 'UNPAID', 1, '', 0, 0, 'li', 'customer', 1795838886930);
INSERT INTO public.order_events VALUES ('drawer-paid', 2, 'UNPAID', 'PAYING', 1, 'pay_zdpm5x6mbk1zwrbf', 1, 88, 'li', 'cashier', 1795838887507);
INSERT INTO public.order_events VALUES ('drawer-paid', 3, 'PAYING', 'PAID', 1, 'pay_zdpm5x6mbk1zwrbf', 1, 88, 'li', 'cashier', 1795838887543);
INSERT INTO public.order_events VALUES ('card-paid', 2, 'UNPAID', 'PAYING', 1, 'pay_6t4de5kbse0fw5b8', 1, 92, 'li', 'cashier', 1795838888116);
INSERT INTO public.order_events VALUES ('card-paid', 3, 'PAYING', 'PAID', 1, 'pay_6t4de5kbse0fw5b8', 1, 92, 'li', 'cashier', 1795838888150);
INSERT INTO public.order_events VALUES ('reversed', 2, 'UNPAID', 'PAYING', 1, 'pay_t8p9byzgp79f7xq3', 1, 96, 'li', 'cashier', 1795838888668);
INSERT INTO public.order_events VALUES ('reversed', 3, 'PAYING', 'PAID', 1, 'pay_t8p9byzgp79f7xq3', 1, 96, 'li', 'cashier', 1795838888685);
INSERT INTO public.order_events VALUES ('reversed', 4, 'PAID', 'UNPAID', 2, 'pay_t8p9byzgp79f7xq3', 1, 100, 'payment-service', 'service', 1795838890530);
INSERT INTO public.order_events VALUES ('cancelled', 2, 'UNPAID', 'CANCELLED', 1, '', 0, 0, 'li', 'cashier', 1795838892024);
INSERT INTO public.order_events VALUES ('wallet-paid', 2, 'UNPAID', 'PAYING', 1, 'pay_m3jk8epsh68ey0cs', 1, 106, 'wang', 'accountant', 1795838892764);
INSERT INTO public.order_events VALUES ('wallet-paid', 3, 'PAYING', 'PAID', 1, 'pay_m3jk8epsh68ey0cs', 1, 106, 'wang', 'accountant', 1795838892790);
INSERT INTO public.order_events VALUES ('card-declined', 2, 'UNPAID', 'PAYING', 1, 'pay_7qfym4ad5pqme1hs', 1, 110, 'li', 'cashier', 1795838893242);
INSERT INTO public.order_events VALUES ('card-declined', 3, 'PAYING', 'UNPAID', 1, 'pay_7qfym4ad5pqme1hs', 1, 110, 'payment-service', 'service', 1795838893261);
INSERT INTO public.order_events VALUES ('card-unknown', 2, 'UNPAID', 'PAYING', 1, 'pay_mh3gwh0abfg7xh84', 1, 114, 'li', 'cashier', 1795838894129);
INSERT INTO public.orders VALUES (4, 'unpaid', 'mei', 'UNPAID', 900, 'CNY', 0, 1, 1, '', '', '', 0, 0, 0, 1795838880744, 1795838880744);
INSERT INTO public.orders VALUES (9, 'of-customer-li', 'li', 'UNPAID', 300, 'CNY', 0, 1, 1, '', '', '', 0, 0, 0, 1795838886930, 1795838886930);
INSERT INTO public.orders VALUES (1, 'drawer-paid', 'mei', 'PAID', 1250, 'CNY', 0, 3, 1, 'pay_zdpm5x6mbk1zwrbf', 'li', 'cashier', 1795838887534, 1, 88, 1795838878201, 1795838887543);
INSERT INTO public.orders VALUES (2, 'card-paid', 'mei', 'PAID', 700, 'CNY', 0, 3, 1, 'pay_6t4de5kbse0fw5b8', 'li', 'cashier', 1795838888147, 1, 92, 1795838878752, 1795838888150);
INSERT INTO public.orders VALUES (3, 'reversed', 'mei', 'UNPAID', 800, 'CNY', 0, 4, 2, '', '', '', 0, 1, 100, 1795838879613, 1795838890530);
INSERT INTO public.orders VALUES (5, 'cancelled', 'mei', 'CANCELLED', 950, 'CNY', 0, 2, 1, '', '', '', 0, 0, 0, 1795838881648, 1795838892024);
INSERT INTO public.orders VALUES (8, 'wallet-paid', 'mei', 'PAID', 1100, 'CNY', 0, 3, 1, 'pay_m3jk8epsh68ey0cs', 'wang', 'accountant', 1795838892783, 1, 106, 1795838886415, 1795838892790);
INSERT INTO public.orders VALUES (7, 'card-declined', 'mei', 'UNPAID', 650, 'CNY', 0, 3, 1, '', '', '', 0, 1, 110, 1795838885437, 1795838893261);
INSERT INTO public.orders VALUES (6, 'card-unknown', 'mei', 'PAYING', 600, 'CNY', 0, 2, 1, 'pay_mh3gwh0abfg7xh84', '', '', 0, 1, 114, 1795838883390, 1795838894129);
INSERT INTO public.requests VALUES ('li', 'CreateOrder', 'rq-1', 'DONE', 'da716f9a7d2185fb831521ac1f779360f8808a9be1f8a658dcf6cbbdb62cd758', 1, 'li', 1795838878201, 1795925278201, '', true, '\x0a300a0b6472617765722d7061696412036d65691801220808e2091203434e593001380158f9c3da82a23460f9c3da82a234', 1795838878201, 1795838878201);
INSERT INTO public.requests VALUES ('li', 'CreateOrder', 'rq-2', 'DONE', '4a598e80992f501af75bada594b1d0452fa7f809ee6d4046368424facb94fc42', 1, 'li', 1795838878752, 1795925278752, '', true, '\x0a2e0a09636172642d7061696412036d65691801220808bc051203434e593001380158a0c8da82a23460a0c8da82a234', 1795838878752, 1795838878752);
INSERT INTO public.requests VALUES ('li', 'CreateOrder', 'rq-3', 'DONE', 'bac8eff46a3ed07e69a5585afbd26dcebfd37888dd9287823dbb6157e6fd612e', 1, 'li', 1795838879613, 1795925279613, '', true, '\x0a2d0a08726576657273656412036d65691801220808a0061203434e593001380158fdceda82a23460fdceda82a234', 1795838879613, 1795838879613);
INSERT INTO public.requests VALUES ('li', 'CreateOrder', 'rq-4', 'DONE', '5a244f271bf2f92090b9dd0e5fd8172c9a701a44b031e74ad02f717055fbd523', 1, 'li', 1795838880744, 1795925280744, '', true, '\x0a2b0a06756e7061696412036d6569180122080884071203434e593001380158e8d7da82a23460e8d7da82a234', 1795838880744, 1795838880744);
INSERT INTO public.requests VALUES ('li', 'CreateOrder', 'rq-5', 'DONE', '6d0027ae9f188a5f18a1a325cfbce75ade40e6db85a4a439e06c956a8ac72cfd', 1, 'li', 1795838881648, 1795925281648, '', true, '\x0a2e0a0963616e63656c6c656412036d65691801220808b6071203434e593001380158f0deda82a23460f0deda82a234', 1795838881648, 1795838881648);
INSERT INTO public.requests VALUES ('li', 'CreateOrder', 'rq-6', 'DONE', 'e0bcfb9fca3ba7b7bb21db17c702807c988cb129530728d7075b4e0bea35c505', 1, 'li', 1795838883390, 1795925283390, '', true, '\x0a310a0c636172642d756e6b6e6f776e12036d65691801220808d8041203434e593001380158beecda82a23460beecda82a234', 1795838883390, 1795838883390);
INSERT INTO public.requests VALUES ('li', 'CreateOrder', 'rq-7', 'DONE', 'e82cc42a2309c69e85b4a3d476507066b2e0a3466668e4b0e62e731c3d4b557f', 1, 'li', 1795838885437, 1795925285437, '', true, '\x0a320a0d636172642d6465636c696e656412036d656918012208088a051203434e593001380158bdfcda82a23460bdfcda82a234', 1795838885437, 1795838885437);
INSERT INTO public.requests VALUES ('li', 'CreateOrder', 'rq-8', 'DONE', '9bc4921ba01d1b7ac7297f24836278f27a0d9055b77c61e66458fbe502e7dd96', 1, 'li', 1795838886415, 1795925286415, '', true, '\x0a300a0b77616c6c65742d7061696412036d65691801220808cc081203434e5930013801588f84db82a234608f84db82a234', 1795838886415, 1795838886415);
INSERT INTO public.requests VALUES ('li', 'CreateOrder', 'rq-9', 'DONE', 'b160eedfaad1c2383a1cce393c4a402a9d28b2e2d55a2289922fa910483586c7', 1, 'li', 1795838886930, 1795925286930, '', true, '\x0a320a0e6f662d637573746f6d65722d6c6912026c691801220808ac021203434e5930013801589288db82a234609288db82a234', 1795838886930, 1795838886930);
INSERT INTO public.requests VALUES ('li', 'CancelOrder', 'rq-c5', 'DONE', '777d7fb0441dca70895aaf48b0d50f1b65ccd904f3b0b73625df681b5c4c7095', 1, 'li', 1795838892024, 1795925292024, '', true, '\x0a2e0a0963616e63656c6c656412036d65691804220808b6071203434e593002380158f0deda82a23460f8afdb82a234', 1795838892024, 1795838892024);
SELECT pg_catalog.setval('public.ensemble_id_seq', 1, false);
SELECT pg_catalog.setval('public.orders_seq_seq', 9, true);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.ensemble
    ADD CONSTRAINT ensemble_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.order_events
    ADD CONSTRAINT order_events_pkey PRIMARY KEY (order_id, version);
ALTER TABLE ONLY public.order_lines
    ADD CONSTRAINT order_lines_pkey PRIMARY KEY (order_id, number);
ALTER TABLE ONLY public.orders
    ADD CONSTRAINT orders_order_id_key UNIQUE (order_id);
ALTER TABLE ONLY public.orders
    ADD CONSTRAINT orders_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY public.requests
    ADD CONSTRAINT requests_pkey PRIMARY KEY (caller, method, key);
CREATE INDEX orders_by_customer ON public.orders USING btree (customer_id, seq);
CREATE INDEX orders_by_state ON public.orders USING btree (state, seq);
CREATE INDEX requests_by_state ON public.requests USING btree (state, lease_until_ms);
CREATE TRIGGER order_events_refuses BEFORE DELETE OR UPDATE ON public.order_events FOR EACH ROW EXECUTE FUNCTION public.order_events_refuse();
CREATE TRIGGER order_events_refuses_truncate BEFORE TRUNCATE ON public.order_events FOR EACH STATEMENT EXECUTE FUNCTION public.order_events_refuse();
CREATE TRIGGER order_lines_refuses BEFORE DELETE OR UPDATE ON public.order_lines FOR EACH ROW EXECUTE FUNCTION public.order_lines_refuse();
CREATE TRIGGER order_lines_refuses_truncate BEFORE TRUNCATE ON public.order_lines FOR EACH STATEMENT EXECUTE FUNCTION public.order_lines_refuse();
CREATE TRIGGER orders_refuses BEFORE DELETE ON public.orders FOR EACH ROW EXECUTE FUNCTION public.orders_refuse();
CREATE TRIGGER orders_refuses_truncate BEFORE TRUNCATE ON public.orders FOR EACH STATEMENT EXECUTE FUNCTION public.orders_refuse();
ALTER TABLE ONLY public.order_events
    ADD CONSTRAINT order_events_order_id_fkey FOREIGN KEY (order_id) REFERENCES public.orders(order_id);
ALTER TABLE ONLY public.order_lines
    ADD CONSTRAINT order_lines_order_id_fkey FOREIGN KEY (order_id) REFERENCES public.orders(order_id);
