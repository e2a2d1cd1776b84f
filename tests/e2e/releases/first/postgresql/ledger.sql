CREATE FUNCTION public.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION '% are never changed', TG_TABLE_NAME USING ERRCODE = 'restrict_violation'; END $$;
CREATE TABLE public.accounts (
    account_id character varying(100) NOT NULL COLLATE pg_catalog."C",
    kind character varying(16) NOT NULL,
    currency_code character varying(3) NOT NULL,
    overdraft_limit bigint NOT NULL,
    balance bigint NOT NULL,
    version bigint NOT NULL,
    created_at_ms bigint NOT NULL,
    CONSTRAINT accounts_limit_is_not_negative CHECK ((overdraft_limit >= 0)),
    CONSTRAINT accounts_within_limits CHECK (((balance >= (- overdraft_limit)) AND (balance <= '2305843009213693952'::bigint)))
);
CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.chain_head (
    id integer NOT NULL,
    sequence bigint NOT NULL,
    hash character varying(64) NOT NULL
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
CREATE TABLE public.journals (
    journal_id character varying(64) NOT NULL,
    sequence bigint NOT NULL,
    business_key character varying(160) NOT NULL,
    currency_code character varying(3) NOT NULL,
    memo character varying(200) NOT NULL,
    order_id character varying(64) NOT NULL,
    payment_id character varying(64) NOT NULL,
    reversal_of character varying(64),
    previous_hash character varying(64) NOT NULL,
    hash character varying(64) NOT NULL,
    posted_at_ms bigint NOT NULL,
    clerk_name character varying(64) NOT NULL,
    clerk_role character varying(16) NOT NULL,
    CONSTRAINT journals_count_from_one CHECK ((sequence >= 1))
);
CREATE TABLE public.order_fences (
    order_id character varying(64) NOT NULL,
    generation bigint NOT NULL,
    token bigint NOT NULL
);
CREATE TABLE public.postings (
    journal_id character varying(64) NOT NULL,
    leg integer NOT NULL,
    account_id character varying(100) NOT NULL COLLATE pg_catalog."C",
    amount bigint NOT NULL,
    CONSTRAINT postings_are_not_zero CHECK ((amount <> 0))
);
CREATE TABLE public.refusals (
    business_key character varying(160) NOT NULL,
    attempt character varying(64) NOT NULL,
    order_id character varying(64) NOT NULL,
    payment_id character varying(64) NOT NULL,
    error text NOT NULL,
    refused_at_ms bigint NOT NULL
);
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
INSERT INTO public.accounts VALUES ('bank:CNY', 'ASSET', 'CNY', 0, 0, 1, 1795838871672);
INSERT INTO public.accounts VALUES ('drawer:EUR', 'ASSET', 'EUR', 0, 0, 1, 1795838871672);
INSERT INTO public.accounts VALUES ('bank:EUR', 'ASSET', 'EUR', 0, 0, 1, 1795838871672);
INSERT INTO public.accounts VALUES ('acquirer:EUR', 'ASSET', 'EUR', 0, 0, 1, 1795838871672);
INSERT INTO public.accounts VALUES ('sales:EUR', 'REVENUE', 'EUR', 0, 0, 1, 1795838871672);
INSERT INTO public.accounts VALUES ('drawer:USD', 'ASSET', 'USD', 0, 0, 1, 1795838871672);
INSERT INTO public.accounts VALUES ('bank:USD', 'ASSET', 'USD', 0, 0, 1, 1795838871672);
INSERT INTO public.accounts VALUES ('acquirer:USD', 'ASSET', 'USD', 0, 0, 1, 1795838871672);
INSERT INTO public.accounts VALUES ('sales:USD', 'REVENUE', 'USD', 0, 0, 1, 1795838871672);
INSERT INTO public.accounts VALUES ('wallet:li:RMB', 'LIABILITY', 'RMB', 0, 0, 1, 1795838877110);
INSERT INTO public.accounts VALUES ('acquirer:CNY', 'ASSET', 'CNY', 0, 700, 2, 1795838871672);
INSERT INTO public.accounts VALUES ('drawer:CNY', 'ASSET', 'CNY', 0, 10250, 5, 1795838871672);
INSERT INTO public.accounts VALUES ('sales:CNY', 'REVENUE', 'CNY', 0, 3050, 6, 1795838871672);
INSERT INTO public.accounts VALUES ('wallet:mei:CNY', 'LIABILITY', 'CNY', 0, 7900, 3, 1795838875775);
INSERT INTO public.alembic_version VALUES ('0001');
INSERT INTO public.chain_head VALUES (1, 6, '2e149f782d4a24ec914aa01e3c6c5de7d6eab95efac202480a408e0e6ec5da2b');
INSERT INTO public.ensemble VALUES (1, 1);
INSERT INTO public.journals VALUES ('jnl_sm9yrpdqv6r6wjqy', 1, 'pay:pay_007f8pa9p48k5kqt', 'CNY', '', '', 'pay_007f8pa9p48k5kqt', NULL, '0000000000000000000000000000000000000000000000000000000000000000', 'e788a805b8179c171c060cd2211560ccc109e7a2713d8176b2b1e11adc809888', 1795838877630, 'li', 'cashier');
INSERT INTO public.journals VALUES ('jnl_d3kr01wgccx1gpfj', 2, 'settle:drawer-paid:1', 'CNY', '', 'drawer-paid', 'pay_zdpm5x6mbk1zwrbf', NULL, 'e788a805b8179c171c060cd2211560ccc109e7a2713d8176b2b1e11adc809888', 'ae4fc6c76e20d127a54c82a73ae2009abaf36fe26ec69e8d22ed3ce2bae07667', 1795838887529, 'li', 'cashier');
INSERT INTO public.journals VALUES ('jnl_emy908q7rdep68ch', 3, 'settle:card-paid:1', 'CNY', '', 'card-paid', 'pay_6t4de5kbse0fw5b8', NULL, 'ae4fc6c76e20d127a54c82a73ae2009abaf36fe26ec69e8d22ed3ce2bae07667', 'c12b0608238489a4dfb82e34b63e5cb8cc38b069244249ed40fb062445c865ea', 1795838888142, 'li', 'cashier');
INSERT INTO public.journals VALUES ('jnl_p3xnexc5h5nj3c3h', 4, 'settle:reversed:1', 'CNY', '', 'reversed', 'pay_t8p9byzgp79f7xq3', NULL, 'c12b0608238489a4dfb82e34b63e5cb8cc38b069244249ed40fb062445c865ea', '8fa5b1ac356a29af51dcc5a0567abc09a77aeaf3b7943c3c98120bbc11777575', 1795838888675, 'li', 'cashier');
INSERT INTO public.journals VALUES ('jnl_de1k3vdkbas8h0kp', 5, 'reverse:jnl_p3xnexc5h5nj3c3h', 'CNY', 'wrong order', 'reversed', 'pay_t8p9byzgp79f7xq3', 'jnl_p3xnexc5h5nj3c3h', '8fa5b1ac356a29af51dcc5a0567abc09a77aeaf3b7943c3c98120bbc11777575', '9a966dad20731f926bdf7b97b812aec2853ffa7740e8846e0d8dc01d22b6ac0c', 1795838890473, 'wang', 'accountant');
INSERT INTO public.journals VALUES ('jnl_y3cxwe251w9ayhd9', 6, 'settle:wallet-paid:1', 'CNY', '', 'wallet-paid', 'pay_m3jk8epsh68ey0cs', NULL, '9a966dad20731f926bdf7b97b812aec2853ffa7740e8846e0d8dc01d22b6ac0c', '2e149f782d4a24ec914aa01e3c6c5de7d6eab95efac202480a408e0e6ec5da2b', 1795838892776, 'wang', 'accountant');
INSERT INTO public.order_fences VALUES ('drawer-paid', 1, 88);
INSERT INTO public.order_fences VALUES ('card-paid', 1, 92);
INSERT INTO public.order_fences VALUES ('reversed', 1, 100);
INSERT INTO public.order_fences VALUES ('wallet-paid', 1, 106);
INSERT INTO public.postings VALUES ('jnl_sm9yrpdqv6r6wjqy', 0, 'drawer:CNY', 9000);
INSERT INTO public.postings VALUES ('jnl_sm9yrpdqv6r6wjqy', 1, 'wallet:mei:CNY', -9000);
INSERT INTO public.postings VALUES ('jnl_d3kr01wgccx1gpfj', 0, 'drawer:CNY', 1250);
INSERT INTO public.postings VALUES ('jnl_d3kr01wgccx1gpfj', 1, 'sales:CNY', -1250);
INSERT INTO public.postings VALUES ('jnl_emy908q7rdep68ch', 0, 'acquirer:CNY', 700);
INSERT INTO public.postings VALUES ('jnl_emy908q7rdep68ch', 1, 'sales:CNY', -700);
INSERT INTO public.postings VALUES ('jnl_p3xnexc5h5nj3c3h', 0, 'drawer:CNY', 800);
INSERT INTO public.postings VALUES ('jnl_p3xnexc5h5nj3c3h', 1, 'sales:CNY', -800);
INSERT INTO public.postings VALUES ('jnl_de1k3vdkbas8h0kp', 0, 'drawer:CNY', -800);
INSERT INTO public.postings VALUES ('jnl_de1k3vdkbas8h0kp', 1, 'sales:CNY', 800);
INSERT INTO public.postings VALUES ('jnl_y3cxwe251w9ayhd9', 0, 'wallet:mei:CNY', 1100);
INSERT INTO public.postings VALUES ('jnl_y3cxwe251w9ayhd9', 1, 'sales:CNY', -1100);
INSERT INTO public.requests VALUES ('wang', 'OpenAccount', 'rq-o1', 'DONE', 'dd7269b29bb43b1bbd6e63961eaf82d6b7e6a1e3dedf62a973e694bc5197e8f6', 1, '', 1795838875775, 1795925275775, '', true, '\x0a200a0e77616c6c65743a6d65693a434e5910021a03434e59300138ffb0da82a234', 1795838875775, 1795838875775);
INSERT INTO public.requests VALUES ('wang', 'OpenAccount', 'req_5hn7nfzwemw714bm', 'DONE', '597a7a9147e136899519cb6e95c2befff3833f3082815ab1f9cc6ad215a7696b', 1, '', 1795838877110, 1795925277110, '', true, '\x0a1f0a0d77616c6c65743a6c693a524d4210021a03524d42300138b6bbda82a234', 1795838877110, 1795838877110);
SELECT pg_catalog.setval('public.ensemble_id_seq', 1, false);
ALTER TABLE ONLY public.accounts
    ADD CONSTRAINT accounts_pkey PRIMARY KEY (account_id);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.chain_head
    ADD CONSTRAINT chain_head_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.ensemble
    ADD CONSTRAINT ensemble_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.journals
    ADD CONSTRAINT journals_pkey PRIMARY KEY (journal_id);
ALTER TABLE ONLY public.journals
    ADD CONSTRAINT journals_sequence_key UNIQUE (sequence);
ALTER TABLE ONLY public.order_fences
    ADD CONSTRAINT order_fences_pkey PRIMARY KEY (order_id);
ALTER TABLE ONLY public.postings
    ADD CONSTRAINT postings_pkey PRIMARY KEY (journal_id, leg);
ALTER TABLE ONLY public.refusals
    ADD CONSTRAINT refusals_pkey PRIMARY KEY (business_key, attempt);
ALTER TABLE ONLY public.requests
    ADD CONSTRAINT requests_pkey PRIMARY KEY (caller, method, key);
CREATE UNIQUE INDEX journals_by_business_key ON public.journals USING btree (business_key);
CREATE INDEX journals_by_order ON public.journals USING btree (order_id, sequence);
CREATE UNIQUE INDEX journals_by_reversal_of ON public.journals USING btree (reversal_of);
CREATE INDEX postings_by_account ON public.postings USING btree (account_id, journal_id);
CREATE INDEX requests_by_state ON public.requests USING btree (state, lease_until_ms);
CREATE TRIGGER accounts_refuse_delete BEFORE DELETE ON public.accounts FOR EACH ROW EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER accounts_refuse_truncate BEFORE TRUNCATE ON public.accounts FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER accounts_refuse_update BEFORE UPDATE ON public.accounts FOR EACH ROW WHEN ((((new.account_id)::text IS DISTINCT FROM (old.account_id)::text) OR ((new.kind)::text IS DISTINCT FROM (old.kind)::text) OR ((new.currency_code)::text IS DISTINCT FROM (old.currency_code)::text) OR (new.created_at_ms IS DISTINCT FROM old.created_at_ms))) EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER journals_refuse_change BEFORE DELETE OR UPDATE ON public.journals FOR EACH ROW EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER journals_refuse_truncate BEFORE TRUNCATE ON public.journals FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER postings_refuse_change BEFORE DELETE OR UPDATE ON public.postings FOR EACH ROW EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER postings_refuse_truncate BEFORE TRUNCATE ON public.postings FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER refusals_refuse_change BEFORE DELETE OR UPDATE ON public.refusals FOR EACH ROW EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER refusals_refuse_truncate BEFORE TRUNCATE ON public.refusals FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
ALTER TABLE ONLY public.postings
    ADD CONSTRAINT postings_account_id_fkey FOREIGN KEY (account_id) REFERENCES public.accounts(account_id);
ALTER TABLE ONLY public.postings
    ADD CONSTRAINT postings_journal_id_fkey FOREIGN KEY (journal_id) REFERENCES public.journals(journal_id);
