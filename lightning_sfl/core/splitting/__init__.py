"""How a model is cut in two: what is observed, three ways to build the halves, and the proof that they are right."""
