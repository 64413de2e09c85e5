"""All mutants, by group."""

from __future__ import annotations

from tests.proofs.mutation.rules_core import CORE
from tests.proofs.mutation.rules_interfaces import INTERFACES
from tests.proofs.mutation.rules_runtime import RUNTIME

GROUPS = {"core": CORE, "runtime": RUNTIME, "interfaces": INTERFACES}
MUTANTS = tuple(mutant for group in GROUPS.values() for mutant in group)
