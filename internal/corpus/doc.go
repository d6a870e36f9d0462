// Package corpus attacks sandboxes: it runs the named cases of
// testdata/corpus.jsonl on every real backend of this host, through a whole
// control plane, and judges them by what the host shows, never by what the
// workload says. It holds tests only.
//
// A run is CONTAINED, or of the class that says what broke: ESCAPE (something of
// the host was changed, or the sandbox's processes became more than they were),
// HOSTLEAK (something of the host was read), SECRETLEAK (a secret of the control
// plane was), EXFIL (bytes left for where the policy does not let them), LATERAL
// (another sandbox or a service of the host was reached), HOSTDOS and PEERDOS
// (the host or a neighbour suffers), SPOOF (a verdict was forged), AUDIT (the
// record is not what it must be), VACUOUS (nothing was shown) and INFRA (the
// platform failed). Everything but CONTAINED fails.
//
// # Adding a case
//
// Each line of the corpus has an attack in the file of its group, or its reason
// for having none; a test fails if it has neither. An attack is Go data:
//
//	{
//	    id:    "C02",
//	    code:  "print('$ARMED', flush=True)\nprint(open('$FLAG').read())",
//	    judge: nil,
//	    control: onBare(bare{}),
//	}
//
// In code, $NONCE is 32 hex digits that only this run has, $FLAG the path of a
// file of the host whose content is random and written after the code is fixed,
// $ARMED the receipt, a line for stdout right before the decisive call, and $HELD
// the line after which a held attack waits for its end: then the host is looked
// at while the sandbox lives (run.tasks: the processes of its control group).
// The code prints what it is told and waits: it is not hostile to the harness.
//
// Every run is judged by judgeAlways: receipt, flag, canary and key on every
// public surface, sinks, files and settings of the host, marks of the nonce on it,
// processes left, the plane's health, the order of the record. What only this
// attack can break is judged by its judge, which returns findings.
//
// The network is of the lab's own (sinks): every address answers there, and every
// packet is seen. What an attack's policy lets out it names in lets; how its session
// must end, on every backend alike, and each row of its record, it says in ends; what
// it may take of the host in bounds, which a meter holds against the host's counters.
//
// The control is the same payload where what contains it is missing, and must be
// found out by the same judgement: onBare runs it as root on an overlay of this
// host in namespaces and a control group of its own, with sinks in the network in
// which everything that is sent arrives; allowing runs it in a session whose policy
// or limits allow it. An attack whose control is not found out, as the class that it
// says in breaks, is VACUOUS.
package corpus
