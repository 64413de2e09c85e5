# The proofs: each exits 0 only if all held, and its last line is a summary.
