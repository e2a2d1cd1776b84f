CREATE FUNCTION public.payment_events_refuse() RETURNS trigger
    LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'payment_events refuses %', TG_OP USING ERRCODE = 'restrict_violation'; END $$;
CREATE FUNCTION public.payments_refuse() RETURNS trigger
    LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'payments refuses %', TG_OP USING ERRCODE = 'restrict_violation'; END $$;
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
CREATE TABLE public.outbox (
    payment_id character varying(64) NOT NULL,
    purpose character varying(16) NOT NULL,
    order_id character varying(64) NOT NULL,
    created_at_ms bigint NOT NULL,
    delivered_at_ms bigint
);
CREATE TABLE public.payment_events (
    payment_id character varying(64) NOT NULL,
    version bigint NOT NULL,
    state character varying(16) NOT NULL,
    fence_generation bigint NOT NULL,
    fence_token bigint NOT NULL,
    at_ms bigint NOT NULL
);
CREATE TABLE public.payments (
    payment_id character varying(64) NOT NULL,
    request_caller character varying(64) NOT NULL,
    request_method character varying(32) NOT NULL,
    request_key character varying(64) NOT NULL,
    order_id character varying(64) NOT NULL,
    round integer NOT NULL,
    state character varying(16) NOT NULL,
    source character varying(16) NOT NULL,
    customer_id character varying(64) NOT NULL,
    amount_minor bigint NOT NULL,
    currency character varying(3) NOT NULL,
    payer_account_id character varying(100) NOT NULL,
    payee_account_id character varying(100) NOT NULL,
    clerk_name character varying(64) NOT NULL,
    clerk_role character varying(16) NOT NULL,
    memo character varying(200) NOT NULL,
    journal_id character varying(64) NOT NULL,
    reversal_caller character varying(64) NOT NULL,
    reversal_role character varying(16) NOT NULL,
    reversal_key character varying(64) NOT NULL,
    reversal_reason character varying(200) NOT NULL,
    reversal_journal_id character varying(64) NOT NULL,
    decline_reason character varying(64) NOT NULL,
    fence_generation bigint NOT NULL,
    fence_token bigint NOT NULL,
    version bigint NOT NULL,
    created_at_ms bigint NOT NULL,
    updated_at_ms bigint NOT NULL,
    settled_at_ms bigint NOT NULL,
    card character varying(64) DEFAULT ''::character varying NOT NULL,
    attempt integer DEFAULT 0 NOT NULL,
    acquirer_key character varying(80) DEFAULT ''::character varying NOT NULL,
    asks integer DEFAULT 0 NOT NULL,
    ask_at_ms bigint DEFAULT '0'::bigint NOT NULL,
    attention character varying(64) DEFAULT ''::character varying NOT NULL
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
INSERT INTO public.alembic_version VALUES ('0002');
INSERT INTO public.ensemble VALUES (1, 1);
INSERT INTO public.outbox VALUES ('pay_zdpm5x6mbk1zwrbf', 'COMPLETE', 'drawer-paid', 1795838887534, 1795838887549);
INSERT INTO public.outbox VALUES ('pay_6t4de5kbse0fw5b8', 'COMPLETE', 'card-paid', 1795838888147, 1795838888153);
INSERT INTO public.outbox VALUES ('pay_t8p9byzgp79f7xq3', 'COMPLETE', 'reversed', 1795838888679, 1795838888688);
INSERT INTO public.outbox VALUES ('pay_t8p9byzgp79f7xq3', 'REOPEN', 'reversed', 1795838890510, 1795838890537);
INSERT INTO public.outbox VALUES ('pay_m3jk8epsh68ey0cs', 'COMPLETE', 'wallet-paid', 1795838892783, 1795838892796);
INSERT INTO public.outbox VALUES ('pay_7qfym4ad5pqme1hs', 'RELEASE', 'card-declined', 1795838893255, 1795838893263);
INSERT INTO public.payment_events VALUES ('pay_007f8pa9p48k5kqt', 1, 'CREATED', 0, 0, 1795838877613);
INSERT INTO public.payment_events VALUES ('pay_007f8pa9p48k5kqt', 2, 'SUBMITTED', 0, 0, 1795838877621);
INSERT INTO public.payment_events VALUES ('pay_007f8pa9p48k5kqt', 3, 'SUCCEEDED', 0, 0, 1795838877640);
INSERT INTO public.payment_events VALUES ('pay_zdpm5x6mbk1zwrbf', 1, 'CREATED', 0, 0, 1795838887496);
INSERT INTO public.payment_events VALUES ('pay_zdpm5x6mbk1zwrbf', 2, 'SUBMITTED', 1, 88, 1795838887514);
INSERT INTO public.payment_events VALUES ('pay_zdpm5x6mbk1zwrbf', 3, 'SUCCEEDED', 1, 88, 1795838887534);
INSERT INTO public.payment_events VALUES ('pay_6t4de5kbse0fw5b8', 1, 'CREATED', 0, 0, 1795838888108);
INSERT INTO public.payment_events VALUES ('pay_6t4de5kbse0fw5b8', 2, 'SUBMITTED', 1, 92, 1795838888119);
INSERT INTO public.payment_events VALUES ('pay_6t4de5kbse0fw5b8', 3, 'SUCCEEDED', 1, 92, 1795838888147);
INSERT INTO public.payment_events VALUES ('pay_t8p9byzgp79f7xq3', 1, 'CREATED', 0, 0, 1795838888662);
INSERT INTO public.payment_events VALUES ('pay_t8p9byzgp79f7xq3', 2, 'SUBMITTED', 1, 96, 1795838888672);
INSERT INTO public.payment_events VALUES ('pay_t8p9byzgp79f7xq3', 3, 'SUCCEEDED', 1, 96, 1795838888679);
INSERT INTO public.payment_events VALUES ('pay_t8p9byzgp79f7xq3', 4, 'REVERSING', 1, 100, 1795838890454);
INSERT INTO public.payment_events VALUES ('pay_t8p9byzgp79f7xq3', 5, 'REVERSED', 1, 100, 1795838890510);
INSERT INTO public.payment_events VALUES ('pay_m3jk8epsh68ey0cs', 1, 'CREATED', 0, 0, 1795838892757);
INSERT INTO public.payment_events VALUES ('pay_m3jk8epsh68ey0cs', 2, 'SUBMITTED', 1, 106, 1795838892770);
INSERT INTO public.payment_events VALUES ('pay_m3jk8epsh68ey0cs', 3, 'SUCCEEDED', 1, 106, 1795838892783);
INSERT INTO public.payment_events VALUES ('pay_7qfym4ad5pqme1hs', 1, 'CREATED', 0, 0, 1795838893235);
INSERT INTO public.payment_events VALUES ('pay_7qfym4ad5pqme1hs', 2, 'SUBMITTED', 1, 110, 1795838893244);
INSERT INTO public.payment_events VALUES ('pay_7qfym4ad5pqme1hs', 3, 'DECLINED', 1, 110, 1795838893255);
INSERT INTO public.payment_events VALUES ('pay_mh3gwh0abfg7xh84', 1, 'CREATED', 0, 0, 1795838894120);
INSERT INTO public.payment_events VALUES ('pay_mh3gwh0abfg7xh84', 2, 'SUBMITTED', 1, 114, 1795838894138);
INSERT INTO public.payment_events VALUES ('pay_mh3gwh0abfg7xh84', 3, 'UNKNOWN', 1, 114, 1795838894145);
INSERT INTO public.payments VALUES ('pay_007f8pa9p48k5kqt', 'li', 'Pay', 'tkt_4tgp18srjmym2fbh', '', 0, 'SUCCEEDED', 'DRAWER', '', 9000, 'CNY', 'drawer:CNY', 'wallet:mei:CNY', 'li', 'cashier', '', 'jnl_sm9yrpdqv6r6wjqy', '', '', '', '', '', '', 0, 0, 3, 1795838877613, 1795838877640, 1795838877640, '', 0, '', 0, 0, '');
INSERT INTO public.payments VALUES ('pay_zdpm5x6mbk1zwrbf', 'li', 'Settle', 'rq-s1', 'drawer-paid', 1, 'SUCCEEDED', 'DRAWER', 'mei', 1250, 'CNY', 'drawer:CNY', 'sales:CNY', 'li', 'cashier', '', 'jnl_d3kr01wgccx1gpfj', '', '', '', '', '', '', 1, 88, 3, 1795838887496, 1795838887534, 1795838887534, '', 0, '', 0, 0, '');
INSERT INTO public.payments VALUES ('pay_6t4de5kbse0fw5b8', 'li', 'Settle', 'rq-s2', 'card-paid', 1, 'SUCCEEDED', 'CARD', 'mei', 700, 'CNY', 'acquirer:CNY', 'sales:CNY', 'li', 'cashier', '', 'jnl_emy908q7rdep68ch', '', '', '', '', '', '', 1, 92, 3, 1795838888108, 1795838888147, 1795838888147, 'tok-mei', 1, 'pay_6t4de5kbse0fw5b8:1', 0, 0, '');
INSERT INTO public.payments VALUES ('pay_t8p9byzgp79f7xq3', 'li', 'Settle', 'rq-s3', 'reversed', 1, 'REVERSED', 'DRAWER', 'mei', 800, 'CNY', 'drawer:CNY', 'sales:CNY', 'li', 'cashier', '', 'jnl_p3xnexc5h5nj3c3h', 'wang', 'accountant', 'rq-r3', 'wrong order', 'jnl_de1k3vdkbas8h0kp', '', 1, 100, 5, 1795838888662, 1795838890510, 1795838888679, '', 0, '', 0, 0, '');
INSERT INTO public.payments VALUES ('pay_m3jk8epsh68ey0cs', 'wang', 'Settle', 'rq-s8', 'wallet-paid', 1, 'SUCCEEDED', 'WALLET', 'mei', 1100, 'CNY', 'wallet:mei:CNY', 'sales:CNY', 'wang', 'accountant', '', 'jnl_y3cxwe251w9ayhd9', '', '', '', '', '', '', 1, 106, 3, 1795838892757, 1795838892783, 1795838892783, '', 0, '', 0, 0, '');
INSERT INTO public.payments VALUES ('pay_7qfym4ad5pqme1hs', 'li', 'Settle', 'rq-s7', 'card-declined', 1, 'DECLINED', 'CARD', 'mei', 650, 'CNY', 'acquirer:CNY', 'sales:CNY', 'li', 'cashier', '', '', '', '', '', '', '', 'CARD_DECLINED', 1, 110, 3, 1795838893235, 1795838893255, 0, 'tok-declined', 1, 'pay_7qfym4ad5pqme1hs:1', 0, 0, '');
INSERT INTO public.payments VALUES ('pay_mh3gwh0abfg7xh84', 'li', 'Settle', 'rq-s6', 'card-unknown', 1, 'UNKNOWN', 'CARD', 'mei', 600, 'CNY', 'acquirer:CNY', 'sales:CNY', 'li', 'cashier', '', '', '', '', '', '', '', '', 1, 143, 3, 1795838894120, 1795838894145, 0, 'tok-unknown', 1, 'pay_mh3gwh0abfg7xh84:1', 12, 1795838943228, '');
INSERT INTO public.requests VALUES ('li', 'IssueTicket', 'rq-ticket-1', 'DONE', '9bcb497c5bb0203637a746eefd9d5c82f9fcc0289041e65a706f3e752872e334', 1, 'payment-1', 1795838878421, 1795925273421, '', true, '\x0a1f0a14746b745f34746770313873726a6d796d32666268100120ed959183a234', 1795838873421, 1795838873421);
INSERT INTO public.requests VALUES ('li', 'Pay', 'tkt_4tgp18srjmym2fbh', 'DONE', 'cfca7fee70fc3726bb08b50d494f66d7163545a8f200a266c5edf94b4f5a3425', 1, 'payment-1', 1795838882613, 1795839773421, '', true, '\x0a8e010a147061795f30303766387061397034386b356b717420032802320808a8461203434e593a0a6472617765723a434e59420e77616c6c65743a6d65693a434e594a060a026c69100252146a6e6c5f736d39797270647176367236776a71797214746b745f34746770313873726a6d796d3266626878038001adbfda82a2348801c8bfda82a2349001c8bfda82a234', 1795838873421, 1795838877640);
INSERT INTO public.requests VALUES ('li', 'Settle', 'rq-s1', 'DONE', 'e3f12cd96569fbb59d7906ad8de5a538b9fcf4aac28758aac181cfb518c8eaeb', 1, 'payment-1', 1795838892496, 1795925287496, '', true, '\x0a82010a147061795f7a64706d3578366d626b317a77726266120b6472617765722d70616964180120032802320808e2091203434e593a0a6472617765723a434e59420973616c65733a434e594a060a026c69100252146a6e6c5f64336b7230317767636378316770666a78038001c88cdb82a2348801ee8cdb82a2349001ee8cdb82a234', 1795838887496, 1795838887534);
INSERT INTO public.requests VALUES ('li', 'Settle', 'rq-s2', 'DONE', '98ed15d785910396a112f2fd493ffd9ed4c88e0311365f74df522093fb65e7f7', 1, 'payment-1', 1795838893108, 1795925288108, '', true, '\x0aa8010a147061795f3674346465356b6273653066773562381209636172642d70616964180120032804320808bc051203434e593a0c61637175697265723a434e59420973616c65733a434e594a060a026c69100252146a6e6c5f656d793930387137726465703638636878038001ac91db82a2348801d391db82a2349001d391db82a2349a0107746f6b2d6d6569a00101aa01167061795f3674346465356b6273653066773562383a31', 1795838888108, 1795838888147);
INSERT INTO public.requests VALUES ('li', 'Settle', 'rq-s3', 'DONE', 'dc9466f09d3d8f579cf0826108039b6faabf08f2289651fa77de4658743c6141', 1, 'payment-1', 1795838893662, 1795925288662, '', true, '\x0a7f0a147061795f7438703962797a67703739663778713312087265766572736564180120032802320808a0061203434e593a0a6472617765723a434e59420973616c65733a434e594a060a026c69100252146a6e6c5f7033786e6578633568356e6a3363336878038001d695db82a2348801e795db82a2349001e795db82a234', 1795838888662, 1795838888679);
INSERT INTO public.requests VALUES ('wang', 'Reverse', 'rq-r3', 'DONE', '57561e1d1b0747c1d23fda4341432aec8bf036350dfa95ba630068f504cf46b9', 1, 'payment-1', 1795838895445, 1795925290445, '', true, '\x0a95010a147061795f7438703962797a67703739663778713312087265766572736564180120072802320808a0061203434e593a0a6472617765723a434e59420973616c65733a434e594a060a026c69100252146a6e6c5f7033786e6578633568356e6a336333685a146a6e6c5f6465316b3376646b6261733868306b7078058001d695db82a23488018ea4db82a2349001e795db82a234', 1795838890445, 1795838890510);
INSERT INTO public.requests VALUES ('wang', 'Settle', 'rq-s8', 'DONE', '5a0750437758677583807b662e1036fe8bd4f867ad1cbc74d0dd003d29104fc5', 1, 'payment-1', 1795838897757, 1795925292757, '', true, '\x0a88010a147061795f6d336a6b386570736836386579306373120b77616c6c65742d70616964180120032801320808cc081203434e593a0e77616c6c65743a6d65693a434e59420973616c65733a434e594a080a0477616e67100352146a6e6c5f7933637877653235317739617968643978038001d5b5db82a2348801efb5db82a2349001efb5db82a234', 1795838892757, 1795838892783);
INSERT INTO public.requests VALUES ('li', 'Settle', 'rq-s7', 'DONE', '07ef88fce3af5470cea115cd3ada473c9431e7fab8b3676f5ac2886ad9b74774', 1, 'payment-1', 1795838898235, 1795925293235, '', false, '\x0809124e6465636c696e65643a207468652061637175697265722072656675736564207468652063617264206f66207061795f377166796d3461643570716d653168733a20434152445f4445434c494e45441a4a0a28747970652e676f6f676c65617069732e636f6d2f676f6f676c652e7270632e4572726f72496e666f121e0a0d434152445f4445434c494e4544120d636f756e74696e67686f757365', 1795838893235, 1795838893255);
INSERT INTO public.requests VALUES ('mei', 'Pay', 'tkt_b2wpkj1a19516g6z', 'ISSUED', '', 0, '', 0, 1795839794691, 'unpaid', NULL, NULL, 1795838894691, 1795838894691);
INSERT INTO public.requests VALUES ('mei', 'IssueTicket', 'rq-ticket-2', 'DONE', '9b5cdb45e65720ae07d7e85a8f7943dc0014a1577ac085bf4fec6d3997bafbd2', 1, 'payment-1', 1795838899691, 1795925294691, '', true, '\x0a270a14746b745f623277706b6a3161313935313667367a10011a06756e706169642083bc9283a234', 1795838894691, 1795838894691);
INSERT INTO public.requests VALUES ('li', 'Settle', 'rq-s6', 'IN_PROGRESS', 'dedb1af2f6b2d403398e78f35b041f27241a996a573de330b05a2f23e8812082', 12, 'payment-1', 1795838938245, 1795925294120, '', NULL, NULL, 1795838894120, 1795838938174);
SELECT pg_catalog.setval('public.ensemble_id_seq', 1, false);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.ensemble
    ADD CONSTRAINT ensemble_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.outbox
    ADD CONSTRAINT outbox_pkey PRIMARY KEY (payment_id, purpose);
ALTER TABLE ONLY public.payment_events
    ADD CONSTRAINT payment_events_pkey PRIMARY KEY (payment_id, version);
ALTER TABLE ONLY public.payments
    ADD CONSTRAINT payments_pkey PRIMARY KEY (payment_id);
ALTER TABLE ONLY public.requests
    ADD CONSTRAINT requests_pkey PRIMARY KEY (caller, method, key);
CREATE INDEX outbox_undelivered ON public.outbox USING btree (delivered_at_ms, created_at_ms);
CREATE INDEX payments_by_age ON public.payments USING btree (created_at_ms, payment_id);
CREATE INDEX payments_by_order ON public.payments USING btree (order_id);
CREATE INDEX payments_by_request ON public.payments USING btree (request_caller, request_method, request_key);
CREATE INDEX payments_by_reversal ON public.payments USING btree (reversal_caller, reversal_key);
CREATE INDEX payments_needing_attention ON public.payments USING btree (created_at_ms, payment_id) WHERE ((attention)::text <> ''::text);
CREATE UNIQUE INDEX payments_one_active_per_order ON public.payments USING btree (order_id) WHERE (((order_id)::text <> ''::text) AND ((state)::text = ANY ((ARRAY['SUBMITTED'::character varying, 'UNKNOWN'::character varying, 'SUCCEEDED'::character varying, 'REVERSING'::character varying])::text[])));
CREATE INDEX requests_by_state ON public.requests USING btree (state, lease_until_ms);
CREATE TRIGGER payment_events_refuses BEFORE DELETE OR UPDATE ON public.payment_events FOR EACH ROW EXECUTE FUNCTION public.payment_events_refuse();
CREATE TRIGGER payment_events_refuses_truncate BEFORE TRUNCATE ON public.payment_events FOR EACH STATEMENT EXECUTE FUNCTION public.payment_events_refuse();
CREATE TRIGGER payments_refuses BEFORE DELETE ON public.payments FOR EACH ROW EXECUTE FUNCTION public.payments_refuse();
CREATE TRIGGER payments_refuses_truncate BEFORE TRUNCATE ON public.payments FOR EACH STATEMENT EXECUTE FUNCTION public.payments_refuse();
