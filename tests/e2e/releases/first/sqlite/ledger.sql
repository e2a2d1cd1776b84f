BEGIN TRANSACTION;
CREATE TABLE accounts (
	account_id VARCHAR(100) NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	currency_code VARCHAR(3) NOT NULL, 
	overdraft_limit BIGINT NOT NULL, 
	balance BIGINT NOT NULL, 
	version BIGINT NOT NULL, 
	created_at_ms BIGINT NOT NULL, 
	PRIMARY KEY (account_id), 
	CONSTRAINT accounts_within_limits CHECK (balance >= -overdraft_limit AND balance <= 2305843009213693952), 
	CONSTRAINT accounts_limit_is_not_negative CHECK (overdraft_limit >= 0)
);
INSERT INTO "accounts" VALUES('drawer:CNY','ASSET','CNY',0,10250,5,1795838800480);
INSERT INTO "accounts" VALUES('bank:CNY','ASSET','CNY',0,0,1,1795838800480);
INSERT INTO "accounts" VALUES('acquirer:CNY','ASSET','CNY',0,700,2,1795838800480);
INSERT INTO "accounts" VALUES('sales:CNY','REVENUE','CNY',0,3050,6,1795838800480);
INSERT INTO "accounts" VALUES('drawer:EUR','ASSET','EUR',0,0,1,1795838800480);
INSERT INTO "accounts" VALUES('bank:EUR','ASSET','EUR',0,0,1,1795838800480);
INSERT INTO "accounts" VALUES('acquirer:EUR','ASSET','EUR',0,0,1,1795838800480);
INSERT INTO "accounts" VALUES('sales:EUR','REVENUE','EUR',0,0,1,1795838800480);
INSERT INTO "accounts" VALUES('drawer:USD','ASSET','USD',0,0,1,1795838800480);
INSERT INTO "accounts" VALUES('bank:USD','ASSET','USD',0,0,1,1795838800480);
INSERT INTO "accounts" VALUES('acquirer:USD','ASSET','USD',0,0,1,1795838800480);
INSERT INTO "accounts" VALUES('sales:USD','REVENUE','USD',0,0,1,1795838800480);
INSERT INTO "accounts" VALUES('wallet:mei:CNY','LIABILITY','CNY',0,7900,3,1795838802003);
INSERT INTO "accounts" VALUES('wallet:li:RMB','LIABILITY','RMB',0,0,1,1795838802460);
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE chain_head (
	id INTEGER NOT NULL, 
	sequence BIGINT NOT NULL, 
	hash VARCHAR(64) NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "chain_head" VALUES(1,6,'4dc809381806b9649337031242f821bcfdde977206e1e490e5952e049f5b4e54');
CREATE TABLE ensemble (
	id INTEGER NOT NULL, 
	generation BIGINT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "ensemble" VALUES(1,1);
CREATE TABLE journals (
	journal_id VARCHAR(64) NOT NULL, 
	sequence BIGINT NOT NULL, 
	business_key VARCHAR(160) NOT NULL, 
	currency_code VARCHAR(3) NOT NULL, 
	memo VARCHAR(200) NOT NULL, 
	order_id VARCHAR(64) NOT NULL, 
	payment_id VARCHAR(64) NOT NULL, 
	reversal_of VARCHAR(64), 
	previous_hash VARCHAR(64) NOT NULL, 
	hash VARCHAR(64) NOT NULL, 
	posted_at_ms BIGINT NOT NULL, 
	clerk_name VARCHAR(64) NOT NULL, 
	clerk_role VARCHAR(16) NOT NULL, 
	PRIMARY KEY (journal_id), 
	CONSTRAINT journals_count_from_one CHECK (sequence >= 1), 
	UNIQUE (sequence)
);
INSERT INTO "journals" VALUES('jnl_qhrgvqefff73849r',1,'pay:pay_hs4ye8mxvz16xz1d','CNY','','','pay_hs4ye8mxvz16xz1d',NULL,'0000000000000000000000000000000000000000000000000000000000000000','679e0e7e311335bc8bcb95d8ae040eddf9781617420d20bd35602feebe77ea50',1795838802955,'li','cashier');
INSERT INTO "journals" VALUES('jnl_pzy4y7ksdyhb640f',2,'settle:drawer-paid:1','CNY','','drawer-paid','pay_q2jpez7w4em74vx1',NULL,'679e0e7e311335bc8bcb95d8ae040eddf9781617420d20bd35602feebe77ea50','6f9614e029d4f23f00095aee3f6e9b247ebd93f325c31667e8ad90c4cea974d3',1795838807588,'li','cashier');
INSERT INTO "journals" VALUES('jnl_zycay4vxb4eeb7rg',3,'settle:card-paid:1','CNY','','card-paid','pay_gmg64m0ys6gkzvs8',NULL,'6f9614e029d4f23f00095aee3f6e9b247ebd93f325c31667e8ad90c4cea974d3','5b40d93d7101d66dad1a060dcaf0da568fae451bc0de334194980fabbd120e36',1795838808099,'li','cashier');
INSERT INTO "journals" VALUES('jnl_2esvehjdjfkmseqa',4,'settle:reversed:1','CNY','','reversed','pay_ceebzs21p44ffy92',NULL,'5b40d93d7101d66dad1a060dcaf0da568fae451bc0de334194980fabbd120e36','3fe04101008baad6a263b32fc6fcc5815f04c91ccc2392f2d525e316f4d0f9b1',1795838808594,'li','cashier');
INSERT INTO "journals" VALUES('jnl_1mjfp5v10m4gnaf5',5,'reverse:jnl_2esvehjdjfkmseqa','CNY','wrong order','reversed','pay_ceebzs21p44ffy92','jnl_2esvehjdjfkmseqa','3fe04101008baad6a263b32fc6fcc5815f04c91ccc2392f2d525e316f4d0f9b1','c3e0180c8a61724d0c4c472697d69dc909fa1e3fc698b5d8932e64da5ee52fe7',1795838809109,'wang','accountant');
INSERT INTO "journals" VALUES('jnl_1yf2xr4sfngrzt57',6,'settle:wallet-paid:1','CNY','','wallet-paid','pay_7z0fe4m6hmzyt614',NULL,'c3e0180c8a61724d0c4c472697d69dc909fa1e3fc698b5d8932e64da5ee52fe7','4dc809381806b9649337031242f821bcfdde977206e1e490e5952e049f5b4e54',1795838810027,'wang','accountant');
CREATE TABLE order_fences (
	order_id VARCHAR(64) NOT NULL, 
	generation BIGINT NOT NULL, 
	token BIGINT NOT NULL, 
	PRIMARY KEY (order_id)
);
INSERT INTO "order_fences" VALUES('drawer-paid',1,88);
INSERT INTO "order_fences" VALUES('card-paid',1,92);
INSERT INTO "order_fences" VALUES('reversed',1,100);
INSERT INTO "order_fences" VALUES('wallet-paid',1,106);
CREATE TABLE postings (
	journal_id VARCHAR(64) NOT NULL, 
	leg INTEGER NOT NULL, 
	account_id VARCHAR(100) NOT NULL, 
	amount BIGINT NOT NULL, 
	PRIMARY KEY (journal_id, leg), 
	CONSTRAINT postings_are_not_zero CHECK (amount <> 0), 
	FOREIGN KEY(journal_id) REFERENCES journals (journal_id), 
	FOREIGN KEY(account_id) REFERENCES accounts (account_id)
);
INSERT INTO "postings" VALUES('jnl_qhrgvqefff73849r',0,'drawer:CNY',9000);
INSERT INTO "postings" VALUES('jnl_qhrgvqefff73849r',1,'wallet:mei:CNY',-9000);
INSERT INTO "postings" VALUES('jnl_pzy4y7ksdyhb640f',0,'drawer:CNY',1250);
INSERT INTO "postings" VALUES('jnl_pzy4y7ksdyhb640f',1,'sales:CNY',-1250);
INSERT INTO "postings" VALUES('jnl_zycay4vxb4eeb7rg',0,'acquirer:CNY',700);
INSERT INTO "postings" VALUES('jnl_zycay4vxb4eeb7rg',1,'sales:CNY',-700);
INSERT INTO "postings" VALUES('jnl_2esvehjdjfkmseqa',0,'drawer:CNY',800);
INSERT INTO "postings" VALUES('jnl_2esvehjdjfkmseqa',1,'sales:CNY',-800);
INSERT INTO "postings" VALUES('jnl_1mjfp5v10m4gnaf5',0,'drawer:CNY',-800);
INSERT INTO "postings" VALUES('jnl_1mjfp5v10m4gnaf5',1,'sales:CNY',800);
INSERT INTO "postings" VALUES('jnl_1yf2xr4sfngrzt57',0,'wallet:mei:CNY',1100);
INSERT INTO "postings" VALUES('jnl_1yf2xr4sfngrzt57',1,'sales:CNY',-1100);
CREATE TABLE refusals (
	business_key VARCHAR(160) NOT NULL, 
	attempt VARCHAR(64) NOT NULL, 
	order_id VARCHAR(64) NOT NULL, 
	payment_id VARCHAR(64) NOT NULL, 
	error TEXT NOT NULL, 
	refused_at_ms BIGINT NOT NULL, 
	PRIMARY KEY (business_key, attempt)
);
CREATE TABLE requests (
	caller VARCHAR(64) NOT NULL, 
	method VARCHAR(32) NOT NULL, 
	"key" VARCHAR(64) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	fingerprint VARCHAR(64) NOT NULL, 
	attempt BIGINT NOT NULL, 
	owner VARCHAR(64) NOT NULL, 
	lease_until_ms BIGINT NOT NULL, 
	expires_at_ms BIGINT NOT NULL, 
	order_id VARCHAR(64) NOT NULL, 
	response_ok BOOLEAN, 
	response BLOB, 
	created_at_ms BIGINT NOT NULL, 
	updated_at_ms BIGINT NOT NULL, 
	PRIMARY KEY (caller, method, "key")
);
INSERT INTO "requests" VALUES('wang','OpenAccount','rq-o1','DONE','dd7269b29bb43b1bbd6e63961eaf82d6b7e6a1e3dedf62a973e694bc5197e8f6',1,'',1795838802003,1795925202003,'',1,X'0A200A0E77616C6C65743A6D65693A434E5910021A03434E59300138D3F0D582A234',1795838802003,1795838802003);
INSERT INTO "requests" VALUES('wang','OpenAccount','req_55208aemfnar66tf','DONE','597a7a9147e136899519cb6e95c2befff3833f3082815ab1f9cc6ad215a7696b',1,'',1795838802460,1795925202460,'',1,X'0A1F0A0D77616C6C65743A6C693A524D4210021A03524D423001389CF4D582A234',1795838802460,1795838802460);
CREATE INDEX journals_by_order ON journals (order_id, sequence);
CREATE UNIQUE INDEX journals_by_business_key ON journals (business_key);
CREATE UNIQUE INDEX journals_by_reversal_of ON journals (reversal_of);
CREATE INDEX postings_by_account ON postings (account_id, journal_id);
CREATE INDEX requests_by_state ON requests (state, lease_until_ms);
CREATE TRIGGER journals_refuse_update BEFORE UPDATE ON journals WHEN 1 BEGIN SELECT RAISE(ABORT, 'journals are never changed'); END;
CREATE TRIGGER journals_refuse_delete BEFORE DELETE ON journals WHEN 1 BEGIN SELECT RAISE(ABORT, 'journals are never changed'); END;
CREATE TRIGGER journals_refuse_insert BEFORE INSERT ON journals WHEN EXISTS (SELECT 1 FROM journals WHERE journal_id = NEW.journal_id OR sequence = NEW.sequence) BEGIN SELECT RAISE(ABORT, 'journals are never changed'); END;
CREATE TRIGGER postings_refuse_update BEFORE UPDATE ON postings WHEN 1 BEGIN SELECT RAISE(ABORT, 'postings are never changed'); END;
CREATE TRIGGER postings_refuse_delete BEFORE DELETE ON postings WHEN 1 BEGIN SELECT RAISE(ABORT, 'postings are never changed'); END;
CREATE TRIGGER postings_refuse_insert BEFORE INSERT ON postings WHEN EXISTS (SELECT 1 FROM postings WHERE journal_id = NEW.journal_id AND leg = NEW.leg) BEGIN SELECT RAISE(ABORT, 'postings are never changed'); END;
CREATE TRIGGER refusals_refuse_update BEFORE UPDATE ON refusals WHEN 1 BEGIN SELECT RAISE(ABORT, 'refusals are never changed'); END;
CREATE TRIGGER refusals_refuse_delete BEFORE DELETE ON refusals WHEN 1 BEGIN SELECT RAISE(ABORT, 'refusals are never changed'); END;
CREATE TRIGGER refusals_refuse_insert BEFORE INSERT ON refusals WHEN EXISTS (SELECT 1 FROM refusals WHERE business_key = NEW.business_key AND attempt = NEW.attempt) BEGIN SELECT RAISE(ABORT, 'refusals are never changed'); END;
CREATE TRIGGER accounts_refuse_update BEFORE UPDATE ON accounts WHEN NEW.account_id IS NOT OLD.account_id OR NEW.kind IS NOT OLD.kind OR NEW.currency_code IS NOT OLD.currency_code OR NEW.created_at_ms IS NOT OLD.created_at_ms BEGIN SELECT RAISE(ABORT, 'accounts are never changed'); END;
CREATE TRIGGER accounts_refuse_delete BEFORE DELETE ON accounts WHEN 1 BEGIN SELECT RAISE(ABORT, 'accounts are never changed'); END;
COMMIT;
