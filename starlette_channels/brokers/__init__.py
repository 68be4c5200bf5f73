"""What carries broadcasts between processes: one module for each engine, and what they have in common."""
