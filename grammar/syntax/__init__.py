"""The inside of `tfc.grammar.parser`: tokens, the tree built from them, and what is wrong with a text."""
