# The proofs: each exits 0 only if all held, and its last line is a summary. Each is a module with --help of its own;
# how long is SEEDS or MINUTES. `proofs-short` is what CI runs of them.

.PHONY: proofs-short

simulate: .venv/.made-dev ## SEEDS=n random interleavings of the protocol and of recounts
	$(python) -m tests.proofs.simulate --seeds $(SEEDS)

mutants: .venv/.made-dev ## takes each rule of the design out; some test must fail
	$(python) -m tests.proofs.mutants

chaos: .venv/.made-dev ## MINUTES=n of kill -9, cut connections and restarts under load
	$(python) -m tests.proofs.chaos --minutes $(MINUTES)

fuzz: .venv/.made-dev ## MINUTES=n of corrupt and random input to every decoder
	$(python) -m tests.proofs.fuzz --minutes $(MINUTES)

bench: .venv/.made-dev ## the speed figures of the docs, as ratios in one run
	$(python) -m benchmarks

soak: .venv/.made-dev ## MINUTES=n at a steady load: memory flat, no stall
	$(python) -m benchmarks.soak --minutes $(MINUTES)

proofs-short: .venv/.made-dev
	$(python) -m tests.proofs.simulate --seeds 100000
	$(python) -m tests.proofs.mutants --quick
	$(python) -m tests.proofs.fuzz --minutes 0.3
	$(python) -m benchmarks.core_speed
	$(python) -m tests.proofs.chaos --minutes 0.7 --seed 5
