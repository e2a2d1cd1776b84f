BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE charges (
	"key" VARCHAR(64) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	card VARCHAR(64) NOT NULL, 
	amount_minor BIGINT NOT NULL, 
	currency VARCHAR(3) NOT NULL, 
	reference VARCHAR(64) NOT NULL, 
	decline_reason VARCHAR(64) NOT NULL, 
	number BIGINT NOT NULL, 
	decided_at_ms BIGINT NOT NULL, 
	refunded_at_ms BIGINT NOT NULL, 
	PRIMARY KEY ("key"), 
	UNIQUE (number)
);
INSERT INTO "charges" VALUES('pay_gmg64m0ys6gkzvs8:1','CHARGED','tok-mei',700,'CNY','pay_gmg64m0ys6gkzvs8','',2,1795838808092,0);
INSERT INTO "charges" VALUES('pay_sgadmxqqjfzrfj1p:1','DECLINED','tok-declined',650,'CNY','pay_sgadmxqqjfzrfj1p','CARD_DECLINED',4,1795838810537,0);
CREATE TABLE counter (
	id INTEGER NOT NULL, 
	last BIGINT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "counter" VALUES(1,16);
CREATE TABLE log (
	number BIGINT NOT NULL, 
	at_ms BIGINT NOT NULL, 
	method VARCHAR(32) NOT NULL, 
	caller VARCHAR(64) NOT NULL, 
	"key" VARCHAR(64) NOT NULL, 
	word VARCHAR(16) NOT NULL, 
	card VARCHAR(64) NOT NULL, 
	amount_minor BIGINT NOT NULL, 
	currency VARCHAR(3) NOT NULL, 
	reference VARCHAR(64) NOT NULL, 
	PRIMARY KEY (number)
);
INSERT INTO "log" VALUES(1,1795838808090,'Charge','payment-service','pay_gmg64m0ys6gkzvs8:1','RECEIVED','tok-mei',700,'CNY','pay_gmg64m0ys6gkzvs8');
INSERT INTO "log" VALUES(2,1795838808090,'Charge','payment-service','pay_gmg64m0ys6gkzvs8:1','CHARGED','tok-mei',700,'CNY','pay_gmg64m0ys6gkzvs8');
INSERT INTO "log" VALUES(3,1795838810534,'Charge','payment-service','pay_sgadmxqqjfzrfj1p:1','RECEIVED','tok-declined',650,'CNY','pay_sgadmxqqjfzrfj1p');
INSERT INTO "log" VALUES(4,1795838810534,'Charge','payment-service','pay_sgadmxqqjfzrfj1p:1','DECLINED','tok-declined',650,'CNY','pay_sgadmxqqjfzrfj1p');
INSERT INTO "log" VALUES(5,1795838811536,'Charge','payment-service','pay_x3e2nxknhfb00zma:1','RECEIVED','tok-unknown',600,'CNY','pay_x3e2nxknhfb00zma');
INSERT INTO "log" VALUES(6,1795838812306,'Charge','payment-service','pay_x3e2nxknhfb00zma:1','RECEIVED','tok-unknown',600,'CNY','pay_x3e2nxknhfb00zma');
INSERT INTO "log" VALUES(7,1795838813323,'Charge','payment-service','pay_x3e2nxknhfb00zma:1','RECEIVED','tok-unknown',600,'CNY','pay_x3e2nxknhfb00zma');
INSERT INTO "log" VALUES(8,1795838815351,'Charge','payment-service','pay_x3e2nxknhfb00zma:1','RECEIVED','tok-unknown',600,'CNY','pay_x3e2nxknhfb00zma');
INSERT INTO "log" VALUES(9,1795838819389,'Charge','payment-service','pay_x3e2nxknhfb00zma:1','RECEIVED','tok-unknown',600,'CNY','pay_x3e2nxknhfb00zma');
INSERT INTO "log" VALUES(10,1795838824453,'Charge','payment-service','pay_x3e2nxknhfb00zma:1','RECEIVED','tok-unknown',600,'CNY','pay_x3e2nxknhfb00zma');
INSERT INTO "log" VALUES(11,1795838829547,'Charge','payment-service','pay_x3e2nxknhfb00zma:1','RECEIVED','tok-unknown',600,'CNY','pay_x3e2nxknhfb00zma');
INSERT INTO "log" VALUES(12,1795838834649,'Charge','payment-service','pay_x3e2nxknhfb00zma:1','RECEIVED','tok-unknown',600,'CNY','pay_x3e2nxknhfb00zma');
INSERT INTO "log" VALUES(13,1795838839710,'Charge','payment-service','pay_x3e2nxknhfb00zma:1','RECEIVED','tok-unknown',600,'CNY','pay_x3e2nxknhfb00zma');
INSERT INTO "log" VALUES(14,1795838844778,'Charge','payment-service','pay_x3e2nxknhfb00zma:1','RECEIVED','tok-unknown',600,'CNY','pay_x3e2nxknhfb00zma');
INSERT INTO "log" VALUES(15,1795838849855,'Charge','payment-service','pay_x3e2nxknhfb00zma:1','RECEIVED','tok-unknown',600,'CNY','pay_x3e2nxknhfb00zma');
INSERT INTO "log" VALUES(16,1795838854905,'Charge','payment-service','pay_x3e2nxknhfb00zma:1','RECEIVED','tok-unknown',600,'CNY','pay_x3e2nxknhfb00zma');
CREATE INDEX log_by_key ON log ("key", number);
CREATE TRIGGER charges_refuses_delete BEFORE DELETE ON charges BEGIN SELECT RAISE(ABORT, 'charges refuses DELETE'); END;
CREATE TRIGGER log_refuses_update BEFORE UPDATE ON log BEGIN SELECT RAISE(ABORT, 'log refuses UPDATE'); END;
CREATE TRIGGER log_refuses_delete BEFORE DELETE ON log BEGIN SELECT RAISE(ABORT, 'log refuses DELETE'); END;
COMMIT;
