"""One reading of the catalog, for setup, doctor, recounts and the reader: names, facts, and what follows from them."""
