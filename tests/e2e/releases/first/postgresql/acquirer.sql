CREATE FUNCTION public.charges_refuse() RETURNS trigger
    LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'charges refuses %', TG_OP USING ERRCODE = 'restrict_violation'; END $$;
CREATE FUNCTION public.log_refuse() RETURNS trigger
    LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'log refuses %', TG_OP USING ERRCODE = 'restrict_violation'; END $$;
CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.charges (
    key character varying(64) NOT NULL,
    state character varying(16) NOT NULL,
    card character varying(64) NOT NULL,
    amount_minor bigint NOT NULL,
    currency character varying(3) NOT NULL,
    reference character varying(64) NOT NULL,
    decline_reason character varying(64) NOT NULL,
    number bigint NOT NULL,
    decided_at_ms bigint NOT NULL,
    refunded_at_ms bigint NOT NULL
);
CREATE TABLE public.counter (
    id integer NOT NULL,
    last bigint NOT NULL
);
CREATE TABLE public.log (
    number bigint NOT NULL,
    at_ms bigint NOT NULL,
    method character varying(32) NOT NULL,
    caller character varying(64) NOT NULL,
    key character varying(64) NOT NULL,
    word character varying(16) NOT NULL,
    card character varying(64) NOT NULL,
    amount_minor bigint NOT NULL,
    currency character varying(3) NOT NULL,
    reference character varying(64) NOT NULL
);
INSERT INTO public.alembic_version VALUES ('0001');
INSERT INTO public.charges VALUES ('pay_6t4de5kbse0fw5b8:1', 'CHARGED', 'tok-mei', 700, 'CNY', 'pay_6t4de5kbse0fw5b8', '', 2, 1795838888131, 0);
INSERT INTO public.charges VALUES ('pay_7qfym4ad5pqme1hs:1', 'DECLINED', 'tok-declined', 650, 'CNY', 'pay_7qfym4ad5pqme1hs', 'CARD_DECLINED', 4, 1795838893251, 0);
INSERT INTO public.counter VALUES (1, 16);
INSERT INTO public.log VALUES (1, 1795838888127, 'Charge', 'payment-service', 'pay_6t4de5kbse0fw5b8:1', 'RECEIVED', 'tok-mei', 700, 'CNY', 'pay_6t4de5kbse0fw5b8');
INSERT INTO public.log VALUES (2, 1795838888127, 'Charge', 'payment-service', 'pay_6t4de5kbse0fw5b8:1', 'CHARGED', 'tok-mei', 700, 'CNY', 'pay_6t4de5kbse0fw5b8');
INSERT INTO public.log VALUES (3, 1795838893250, 'Charge', 'payment-service', 'pay_7qfym4ad5pqme1hs:1', 'RECEIVED', 'tok-declined', 650, 'CNY', 'pay_7qfym4ad5pqme1hs');
INSERT INTO public.log VALUES (4, 1795838893250, 'Charge', 'payment-service', 'pay_7qfym4ad5pqme1hs:1', 'DECLINED', 'tok-declined', 650, 'CNY', 'pay_7qfym4ad5pqme1hs');
INSERT INTO public.log VALUES (5, 1795838894142, 'Charge', 'payment-service', 'pay_mh3gwh0abfg7xh84:1', 'RECEIVED', 'tok-unknown', 600, 'CNY', 'pay_mh3gwh0abfg7xh84');
INSERT INTO public.log VALUES (6, 1795838894678, 'Charge', 'payment-service', 'pay_mh3gwh0abfg7xh84:1', 'RECEIVED', 'tok-unknown', 600, 'CNY', 'pay_mh3gwh0abfg7xh84');
INSERT INTO public.log VALUES (7, 1795838895783, 'Charge', 'payment-service', 'pay_mh3gwh0abfg7xh84:1', 'RECEIVED', 'tok-unknown', 600, 'CNY', 'pay_mh3gwh0abfg7xh84');
INSERT INTO public.log VALUES (8, 1795838897846, 'Charge', 'payment-service', 'pay_mh3gwh0abfg7xh84:1', 'RECEIVED', 'tok-unknown', 600, 'CNY', 'pay_mh3gwh0abfg7xh84');
INSERT INTO public.log VALUES (9, 1795838902016, 'Charge', 'payment-service', 'pay_mh3gwh0abfg7xh84:1', 'RECEIVED', 'tok-unknown', 600, 'CNY', 'pay_mh3gwh0abfg7xh84');
INSERT INTO public.log VALUES (10, 1795838907134, 'Charge', 'payment-service', 'pay_mh3gwh0abfg7xh84:1', 'RECEIVED', 'tok-unknown', 600, 'CNY', 'pay_mh3gwh0abfg7xh84');
INSERT INTO public.log VALUES (11, 1795838912273, 'Charge', 'payment-service', 'pay_mh3gwh0abfg7xh84:1', 'RECEIVED', 'tok-unknown', 600, 'CNY', 'pay_mh3gwh0abfg7xh84');
INSERT INTO public.log VALUES (12, 1795838917429, 'Charge', 'payment-service', 'pay_mh3gwh0abfg7xh84:1', 'RECEIVED', 'tok-unknown', 600, 'CNY', 'pay_mh3gwh0abfg7xh84');
INSERT INTO public.log VALUES (13, 1795838922609, 'Charge', 'payment-service', 'pay_mh3gwh0abfg7xh84:1', 'RECEIVED', 'tok-unknown', 600, 'CNY', 'pay_mh3gwh0abfg7xh84');
INSERT INTO public.log VALUES (14, 1795838927834, 'Charge', 'payment-service', 'pay_mh3gwh0abfg7xh84:1', 'RECEIVED', 'tok-unknown', 600, 'CNY', 'pay_mh3gwh0abfg7xh84');
INSERT INTO public.log VALUES (15, 1795838933020, 'Charge', 'payment-service', 'pay_mh3gwh0abfg7xh84:1', 'RECEIVED', 'tok-unknown', 600, 'CNY', 'pay_mh3gwh0abfg7xh84');
INSERT INTO public.log VALUES (16, 1795838938212, 'Charge', 'payment-service', 'pay_mh3gwh0abfg7xh84:1', 'RECEIVED', 'tok-unknown', 600, 'CNY', 'pay_mh3gwh0abfg7xh84');
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.charges
    ADD CONSTRAINT charges_number_key UNIQUE (number);
ALTER TABLE ONLY public.charges
    ADD CONSTRAINT charges_pkey PRIMARY KEY (key);
ALTER TABLE ONLY public.counter
    ADD CONSTRAINT counter_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.log
    ADD CONSTRAINT log_pkey PRIMARY KEY (number);
CREATE INDEX log_by_key ON public.log USING btree (key, number);
CREATE TRIGGER charges_refuses BEFORE DELETE ON public.charges FOR EACH ROW EXECUTE FUNCTION public.charges_refuse();
CREATE TRIGGER charges_refuses_truncate BEFORE TRUNCATE ON public.charges FOR EACH STATEMENT EXECUTE FUNCTION public.charges_refuse();
CREATE TRIGGER log_refuses BEFORE DELETE OR UPDATE ON public.log FOR EACH ROW EXECUTE FUNCTION public.log_refuse();
CREATE TRIGGER log_refuses_truncate BEFORE TRUNCATE ON public.log FOR EACH STATEMENT EXECUTE FUNCTION public.log_refuse();
