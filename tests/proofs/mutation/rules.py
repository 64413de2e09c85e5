"""All mutants."""

from __future__ import annotations

from tests.proofs.mutation.rules_core import CORE
from tests.proofs.mutation.rules_runtime import RUNTIME

MUTANTS = (*CORE, *RUNTIME)
