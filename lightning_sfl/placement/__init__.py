"""Which process and device holds which half. Today: one process, both halves on its device."""
