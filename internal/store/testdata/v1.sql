-- A database of version 1, as the program of version 1 made it: four sessions,
-- one of them pending, one torn down, one not yet in the log. Never edited.
-- key PRIVATE+KEY+log.example/v1+6e2ff83a+Ab8IaLlH/1kqio9NgRDH8W0xwi/cOF/baX4JgRzBgKAT
-- public log.example/v1+6e2ff83a+AZ2Ij0dvpJPNAYAp6WIW8j94g6asFHqIB5sz4Lk7JKpX
PRAGMA application_id = 1162756940;
CREATE TABLE schema (version INTEGER NOT NULL) STRICT;
CREATE TABLE counter (last INTEGER NOT NULL) STRICT;
CREATE TABLE sessions (
	n            INTEGER PRIMARY KEY,
	id           TEXT NOT NULL UNIQUE,
	org          TEXT NOT NULL CHECK (org <> ''),
	created_by   TEXT NOT NULL,
	phase        TEXT NOT NULL CHECK (phase IN ('pending', 'running', 'succeeded', 'failed', 'killed', 'torn_down')),
	outcome      TEXT NOT NULL,
	kill_reason  TEXT NOT NULL,
	language     TEXT NOT NULL,
	limits       TEXT NOT NULL,
	egress       TEXT NOT NULL,
	backend      TEXT NOT NULL,
	isolation    TEXT NOT NULL,
	labels       TEXT NOT NULL,
	created      INTEGER,
	started      INTEGER,
	finished     INTEGER,
	sandbox      TEXT NOT NULL,
	idempotency  TEXT NOT NULL,
	request_hash TEXT NOT NULL,
	version      INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX sessions_idempotency ON sessions (org, idempotency) WHERE idempotency <> '';
CREATE INDEX sessions_org ON sessions (org, n);
CREATE INDEX sessions_unended ON sessions (n) WHERE phase IN ('pending', 'running');
CREATE TABLE work (
	session INTEGER PRIMARY KEY REFERENCES sessions (n),
	body    BLOB NOT NULL
) STRICT;
CREATE TABLE results (
	session   INTEGER PRIMARY KEY REFERENCES sessions (n),
	exit_code INTEGER,
	stdout    BLOB NOT NULL,
	stderr    BLOB NOT NULL,
	json      BLOB,
	truncated INTEGER NOT NULL,
	duration  INTEGER NOT NULL -- nanoseconds
) STRICT;
CREATE TABLE events (
	position INTEGER PRIMARY KEY,
	session  INTEGER NOT NULL REFERENCES sessions (n),
	seq      INTEGER NOT NULL,
	time     INTEGER NOT NULL,
	type     TEXT NOT NULL,
	data     TEXT NOT NULL,
	hash     TEXT NOT NULL,
	UNIQUE (session, seq)
) STRICT;
CREATE TABLE tree ( -- the stored hashes of golang.org/x/mod/sumdb/tlog
	i    INTEGER PRIMARY KEY,
	hash BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;
CREATE TABLE checkpoints (
	size INTEGER PRIMARY KEY,
	note TEXT NOT NULL
) STRICT;
CREATE TABLE keys (
	id      TEXT PRIMARY KEY,
	org     TEXT NOT NULL CHECK (org <> ''),
	user    TEXT NOT NULL,
	role    TEXT NOT NULL,
	scopes  TEXT NOT NULL,
	hash    BLOB NOT NULL CHECK (length(hash) = 32),
	created INTEGER,
	revoked INTEGER
) STRICT;
CREATE INDEX keys_org ON keys (org);
INSERT INTO schema VALUES (1);
INSERT INTO counter VALUES (4);
INSERT INTO sessions VALUES (1, 's-0a1b2c-1', 'acme', 'ada', 'succeeded', 'succeeded', '', 'python', '{"pidsLimit":64,"memoryMb":512,"cpuMillis":1000,"cpuSeconds":60,"wallSeconds":300,"diskMb":512,"outputBytes":10000000,"egressBytes":100000000}', '{"mode":"allowlist","allow":["api.example.com"]}', 'gvisor', 'userspace_kernel', '{"team":"é''"}', 1795219198000000, 1795219198250000, 1795219198750000, 'abcdefghij0123456780', '', 'ab12', 3);
INSERT INTO sessions VALUES (2, 's-0a1b2c-2', 'acme', 'ada', 'pending', '', '', 'python', '{"pidsLimit":64,"memoryMb":512,"cpuMillis":1000,"cpuSeconds":60,"wallSeconds":300,"diskMb":512,"outputBytes":10000000,"egressBytes":100000000}', '{"mode":"allowlist","allow":["api.example.com"]}', 'gvisor', 'userspace_kernel', '{"team":"é''"}', 1795219199500000, NULL, NULL, 'abcdefghij0123456781', 'key', 'ab12', 1);
INSERT INTO sessions VALUES (3, 's-0a1b2c-3', 'acme', 'ada', 'torn_down', 'succeeded', '', 'python', '{"pidsLimit":64,"memoryMb":512,"cpuMillis":1000,"cpuSeconds":60,"wallSeconds":300,"diskMb":512,"outputBytes":10000000,"egressBytes":100000000}', '{"mode":"allowlist","allow":["api.example.com"]}', 'gvisor', 'userspace_kernel', '{"team":"é''"}', 1795219199750000, 1795219200000000, 1795219200500000, 'abcdefghij0123456782', '', 'ab12', 4);
INSERT INTO sessions VALUES (4, 's-0a1b2c-4', 'other', 'ada', 'succeeded', 'succeeded', '', 'python', '{"pidsLimit":64,"memoryMb":512,"cpuMillis":1000,"cpuSeconds":60,"wallSeconds":300,"diskMb":512,"outputBytes":10000000,"egressBytes":100000000}', '{"mode":"allowlist","allow":["api.example.com"]}', 'gvisor', 'userspace_kernel', '{"team":"é''"}', 1795219201500000, 1795219201750000, 1795219202250000, 'abcdefghij0123456783', 'key', 'ab12', 3);
INSERT INTO work VALUES (1, x'7b22636f6465223a2263484a70626e516f4d536b3d222c2266696c6573223a5b7b2270617468223a2259513d3d222c22636f6e74656e74223a222f773d3d227d5d7d');
INSERT INTO work VALUES (2, x'7b22636f6465223a2263484a70626e516f4d536b3d222c2266696c6573223a5b7b2270617468223a2259513d3d222c22636f6e74656e74223a222f773d3d227d5d7d');
INSERT INTO work VALUES (3, x'7b22636f6465223a2263484a70626e516f4d536b3d222c2266696c6573223a5b7b2270617468223a2259513d3d222c22636f6e74656e74223a222f773d3d227d5d7d');
INSERT INTO work VALUES (4, x'7b22636f6465223a2263484a70626e516f4d536b3d222c2266696c6573223a5b7b2270617468223a2259513d3d222c22636f6e74656e74223a222f773d3d227d5d7d');
INSERT INTO results VALUES (1, 0, x'686900ff0a', x'', x'7b22616e73776572223a3238357d', 0, 1234567);
INSERT INTO results VALUES (3, 0, x'686900ff0a', x'', x'7b22616e73776572223a3238357d', 0, 1234567);
INSERT INTO results VALUES (4, 0, x'686900ff0a', x'', x'7b22616e73776572223a3238357d', 0, 1234567);
INSERT INTO events VALUES (1, 1, 1, 1795219198250000, 'session_created', '{"caller":"k1","language":"python","requestHash":"ab12","policyDigest":"cd34"}', 'fe7d8726f26da1096204b2de59eff6e2290c6debb90d2ec7cc7a32f33c16963f');
INSERT INTO events VALUES (2, 1, 2, 1795219198500000, 'sandbox_started', '{"backend":"gvisor","isolation":"userspace_kernel","image":"sha256:00"}', '1525f1945b4d746801f9543ca3f5967d241a55869fcf8970d7eedca6a3d11e3d');
INSERT INTO events VALUES (3, 1, 3, 1795219198750000, 'egress_denied', '{"host":"evil.example.com","protocol":"dns","reason":"not_allowed","count":1}', 'a19aeb2b8830287d4d276fa5f60a8408d49cf3f65a0fc691fd01dc66a922b12e');
INSERT INTO events VALUES (4, 1, 4, 1795219199000000, 'result_collected', '{"resultBytes":14}', 'cc8f1cebcd14c1dff3f7b4be9323556c3e56189d4423317da51b124800004a3c');
INSERT INTO events VALUES (5, 1, 5, 1795219199250000, 'workload_exited', '{"outcome":"succeeded","exitCode":0}', '3277e7ce8a5c486c2659b5b746b720f7704e466c601893c60b84fb24da3db309');
INSERT INTO events VALUES (6, 1, 6, 1795219199500000, 'usage_metered', '{"outputBytes":5,"cpuSeconds":0.1,"wallSeconds":0.25,"peakMemoryBytes":1048576,"bytesIn":10,"bytesOut":20}', 'c52dcb4336875e40924656ba006543b56aebf7ba0f06114e96e1363ace255667');
INSERT INTO events VALUES (7, 2, 1, 1795219199750000, 'session_created', '{"caller":"k1","language":"python","requestHash":"ab12","policyDigest":"cd34"}', 'b3a124753bca5834711273c3dc3776f1192a4a97c77fa41c7867a8903c6b0820');
INSERT INTO events VALUES (8, 3, 1, 1795219200000000, 'session_created', '{"caller":"k1","language":"python","requestHash":"ab12","policyDigest":"cd34"}', '414517b3ae53a89d10cfb947dc2d8178a1723f203f3de7e4621f82acf7c233a8');
INSERT INTO events VALUES (9, 3, 2, 1795219200250000, 'sandbox_started', '{"backend":"gvisor","isolation":"userspace_kernel","image":"sha256:00"}', 'f6a598f85b136e5e647564737770222cc0d920c19f5a8f9a2fd3f28e3803d788');
INSERT INTO events VALUES (10, 3, 3, 1795219200500000, 'egress_denied', '{"host":"evil.example.com","protocol":"dns","reason":"not_allowed","count":1}', '87952bcb9b6e12adefcfbc56b9f363c73bb37317c4a8cd38127bcc8314f22881');
INSERT INTO events VALUES (11, 3, 4, 1795219200750000, 'result_collected', '{"resultBytes":14}', '3a3cac75b3885eb668eff69d1a567ff3e1a42c0e3ace4937a8a90145e8cb899a');
INSERT INTO events VALUES (12, 3, 5, 1795219201000000, 'workload_exited', '{"outcome":"succeeded","exitCode":0}', '4acaa4652345cfa18340de3978e14638849c2ff22b9f8d59e7a44676c42f9505');
INSERT INTO events VALUES (13, 3, 6, 1795219201250000, 'usage_metered', '{"outputBytes":5,"cpuSeconds":2.1,"wallSeconds":0.25,"peakMemoryBytes":3145728,"bytesIn":10,"bytesOut":20}', 'a61c6a8e12493485b2cae13f557842f1fc95b5b8795093e57cd0e5a13ec2b51e');
INSERT INTO events VALUES (14, 3, 7, 1795219201500000, 'session_torn_down', '{"caller":"k1"}', '4210ade94a268c96763ea1e94fed093256ab68dd94cbb157fbbe66b6e06318e3');
INSERT INTO events VALUES (15, 4, 1, 1795219201750000, 'session_created', '{"caller":"k1","language":"python","requestHash":"ab12","policyDigest":"cd34"}', '78bc732ce58eeb47ffa1d513012f6e5680460ba95c37346c51ec4a808c2338e5');
INSERT INTO events VALUES (16, 4, 2, 1795219202000000, 'sandbox_started', '{"backend":"gvisor","isolation":"userspace_kernel","image":"sha256:00"}', '0ad8789d1f30979b8e6b00fceb39a40123835c3967ccd54ad40636533be816e0');
INSERT INTO events VALUES (17, 4, 3, 1795219202250000, 'egress_denied', '{"host":"evil.example.com","protocol":"dns","reason":"not_allowed","count":1}', '4c1fb67b65ce7851d1d4facf9603bc5469384865c7d967d9ec5fd8831c4d0414');
INSERT INTO events VALUES (18, 4, 4, 1795219202500000, 'result_collected', '{"resultBytes":14}', 'ac59df4b67a0cadb862c523482f89f8fb160221934c21d87fb3cf6fdff13597c');
INSERT INTO events VALUES (19, 4, 5, 1795219202750000, 'workload_exited', '{"outcome":"succeeded","exitCode":0}', '52482e3220b6767f96f083851e7b1b9f6d05b568eeb75677424765a51ac95244');
INSERT INTO events VALUES (20, 4, 6, 1795219203000000, 'usage_metered', '{"outputBytes":5,"cpuSeconds":3.1,"wallSeconds":0.25,"peakMemoryBytes":4194304,"bytesIn":10,"bytesOut":20}', '3bfe2f89614a1d6b45a70dab2a74b61fff2c94dd460804a2b9cb4487032051ae');
INSERT INTO tree VALUES (0, x'd7d2f255f3a2c10a13cbcc6b0bc10d658ffa8454bd5ff6ab99a83b3c2fc44802');
INSERT INTO tree VALUES (1, x'be8e70d27427085fa1ec6500eb53ecc3f96b60227051f3f089813d14cdcb8f40');
INSERT INTO tree VALUES (2, x'c3710e52a783592ff2ee985239b7eb92d687606563b7782ab2a7b9c6cc77a0b0');
INSERT INTO tree VALUES (3, x'01e9cd182beb4939b382d22e142a7dd66b40ccfcfaa897d6a1b1e91aeeac4126');
INSERT INTO tree VALUES (4, x'813b0c0463fa2eaa222afdcb257a6cadca4748365a80cb07db2ec41671519f3f');
INSERT INTO tree VALUES (5, x'c37f812fc3586c26a89a6a48c56043b3da5a07639508cb2699196d74a8b352d5');
INSERT INTO tree VALUES (6, x'3ed55e9d44ca04e131e59611d776da78d4412a01e847fd2b230c1bde855f61b9');
INSERT INTO tree VALUES (7, x'd91e26803f236346325956129c17755385dd49bfd3ba929da03fca27302a5545');
INSERT INTO tree VALUES (8, x'0e8df6595474f6e4ad9e23797bb76b19d131fc7f04e2f56bf7e36cbef60ec5ac');
INSERT INTO tree VALUES (9, x'df0e838cac94901948407ea12a48e90b4d251da85cdcdbf49db97eb6d771dafb');
INSERT INTO tree VALUES (10, x'8cd9f5a5dd1e03f8aae2e3665b8dd6e54513f061eb531d27c4d5c09e0e413dcc');
INSERT INTO tree VALUES (11, x'f0ead94c690084911357c19eecbddd9d7caf5d6fbb3c62eae17b2d6d3791d460');
INSERT INTO tree VALUES (12, x'ed6fb34c84f032d9a08076d405c9a062d3661527242c76065e0fe11b900e7ff4');
INSERT INTO tree VALUES (13, x'969919ea5fd243c2f48776f81a2f0e274a0873c9d61707ee8cbad005e66f0671');
INSERT INTO tree VALUES (14, x'ffff096bad9813fdad231ab149e6015991134779704b033578036fa2db9e7b8e');
INSERT INTO tree VALUES (15, x'1cdff52b8bd1653982122b5162b35d6b4828311940db8c6e9e462e1956bd87ba');
INSERT INTO tree VALUES (16, x'3a1ace128af1c874833016e3c9596429544ba7445d567cd3f43507281c99aaf1');
INSERT INTO tree VALUES (17, x'62471827b756c3dc107fff93b0c49b4880c3d622f8c2480e4253886f7c97ab38');
INSERT INTO tree VALUES (18, x'6f3424763cfd60e3bd2ed629301d55122269f3a7452110bb564a02ff786ad446');
INSERT INTO tree VALUES (19, x'04ae5a8c070226ae2e2cf346bbf29cdf795fdb7065fee3a38ff1f8821aea57d0');
INSERT INTO tree VALUES (20, x'290e854191abaac7ea055acf76f1242acdb55c01b82e177a3539b2813f198abf');
INSERT INTO tree VALUES (21, x'fc945378d69717566010e9a71869f30c384aedf6d9ffffdd09f6a33710a3191e');
INSERT INTO tree VALUES (22, x'37e4450031881d1ace5a0bd7fff3a0e29ee45ac6b7b39b5c688a6ddef87c3a1c');
INSERT INTO tree VALUES (23, x'91e6fdbd5b3fc030f4e527f5505295df5bbf5e2169aabb872641a835178c2739');
INSERT INTO tree VALUES (24, x'f4dc02a6b12b50da7aa09bf3d72781884207dcb3b5c6f6c1a4cc8cf9119cf9ff');
INSERT INTO checkpoints VALUES (14, 'log.example/v1
14
raGQEqbknCG6UK8Fye869N9IT++rAxxkV8nF5eslm7U=

— log.example/v1 bi/4OuIij8KRcY2g6yd5t7Mk364Psty25pIF0vC2xxJ1Q6OYrsFPbFNa7zetO6VjojM99VS7Inz2Jgnwk0PdZMToggg=
');
INSERT INTO keys VALUES ('0011223344556677', 'acme', 'ada', 'developer', '["sessions:read"]', x'2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881', 1795219203000000, NULL);
CREATE TRIGGER events_stay BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are never removed'); END;
CREATE TRIGGER events_are BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
CREATE TRIGGER tree_stays BEFORE DELETE ON tree BEGIN SELECT RAISE(ABORT, 'the log is never shortened'); END;
CREATE TRIGGER tree_is BEFORE UPDATE ON tree BEGIN SELECT RAISE(ABORT, 'the log is never changed'); END;
CREATE TRIGGER checkpoints_stay BEFORE DELETE ON checkpoints BEGIN SELECT RAISE(ABORT, 'checkpoints are never removed'); END;
CREATE TRIGGER checkpoints_are BEFORE UPDATE ON checkpoints BEGIN SELECT RAISE(ABORT, 'checkpoints are never changed'); END;
