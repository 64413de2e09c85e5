"""Faults that are put into the code on purpose: where (`places`), what (`changes`), and the list (`rules`)."""
