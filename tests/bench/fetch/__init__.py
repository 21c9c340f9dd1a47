"""How fast the fetch engine is beside the programs that people use instead."""
